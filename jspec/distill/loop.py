"""The loop around a step: batches in, checkpoints and a log out, resuming where it stopped."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jspec.distill.checkpoints import Checkpoints, Note
from jspec.distill.data import Source, batch_at
from jspec.distill.log import Log
from jspec.distill.preemption import watching
from jspec.distill.progress import progress
from jspec.distill.recipe import Recipe
from jspec.distill.step import Program
from jspec.formats import folder as disk
from jspec.models.protocol import Params

RECIPE, CHECKPOINTS = "recipe.json", "checkpoints"
Numbers = Mapping[str, float]


class Run(NamedTuple):
    """What came of a run: the parameters, and the step they are of, which may not be the last."""

    params: Params
    step: int


def train(
    recipe: Recipe,
    program: Program,
    params: Params,
    frozen: Params,
    source_at: Callable[[int, Params], Source],
    measure: Callable[[Params], Numbers],
    score: Callable[[Numbers], float],
    *,
    mesh: Mesh | None = None,
    note: Note,
) -> Run:
    """Takes steps from the newest checkpoint to the last, or until the machine is taken away.

    Writes `recipe.json`, `log.jsonl`, `tensorboard/` and `checkpoints/` below `output/name`. Raises
    `FloatingPointError` at the first loss or parameter that is not finite, leaving the last good
    checkpoint, and `ValueError` if the run that is there is another one.

    Args:
      frozen: what the objective reads and nothing trains.
      source_at: where the batch of a step comes from, given the parameters there are before it.
      measure: what to log of the parameters every so many steps; score: how good that is.
      note: told what is worth knowing, such as a checkpoint that cannot be read.
    """
    folder = Path(recipe.output).absolute() / recipe.name
    claim(folder, recipe, note)
    place, made_by = folder / CHECKPOINTS, provenance(recipe)
    with (
        closing(Checkpoints(place, note, keep=recipe.keep, provenance=made_by)) as checkpoints,
        closing(Log(folder)) as log,
        progress(recipe.name, recipe.steps) as show,
        watching() as taken_away,
    ):
        state = checkpoints.restore(program.start(params))
        first, clock = int(state.step), _Clock()
        show(first, "compiling the first step" if first < recipe.steps else "all steps are done")
        pending: tuple[int, Any] | None = None
        for number in range(first, recipe.steps):
            with clock.stopped():
                source = source_at(number, state.params)
            batch = batch_at(source, number, recipe.batch, mesh)
            state, metrics = program.step(state, frozen, batch)
            # The host looks at a step once the next one is under way.
            _check_finite(recipe, pending)
            done, pending = number + 1, (number + 1, metrics)
            show(done, "")
            last, leaving = done == recipe.steps, taken_away(done)
            found = None
            if last or done % recipe.evaluate_every == 0:
                _check_finite(recipe, pending)
                with clock.stopped():
                    found = measure(state.params)
                _check_finite(recipe, (done, found))
                log.write(done, {**metrics, **found, **clock.speed(done - first, recipe)})
                show(done, _summary(found))
            if last or leaving or done % recipe.save_every == 0:
                _check_finite(recipe, pending)
                _check_finite(recipe, (done, {"norm of the parameters": program.norm(state)}))
                checkpoints.save(done, state, None if found is None else score(found))
            if leaving:
                break
    return Run(state.params, int(state.step))


def claim(folder: Path, recipe: Recipe, note: Note) -> None:
    """Makes a run's folder and notes which recipe it follows; refuses the folder of another run.

    Args:
      note: told of what a run that goes on does otherwise than before.
    """
    found = disk.claim(folder / RECIPE, asdict(recipe), fixed=recipe.FIXED, what="run")
    if found:
        note(f"{recipe.name} goes on with {', '.join(found)}")


def provenance(recipe: Recipe) -> dict[str, Any]:
    """The recipe and the versions of what runs it."""
    packages = ("jspec", "jax", "flax", "optax", "orbax-checkpoint")
    return {
        "recipe": asdict(recipe),
        "versions": {package: version(package) for package in packages},
        "devices": [str(jax.device_count()), jax.devices()[0].device_kind],
    }


def _check_finite(recipe: Recipe, told: tuple[int, Numbers] | None) -> None:
    """Raises `FloatingPointError` for a number that is not, naming the step and its rows."""
    if told is None:
        return
    step, numbers = told
    for name, value in numbers.items():
        if not math.isfinite(value):
            rows = f"rows {(step - 1) * recipe.batch} to {step * recipe.batch - 1} of its data"
            raise FloatingPointError(f"step {step} ({rows}): {name} is {float(value)}")


def _summary(found: Numbers) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in found.items() if "kept" not in name)


class _Clock:
    """Seconds of training, and not of what is done in between."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._began += time.monotonic() - before

    def speed(self, steps: int, recipe: Recipe) -> Numbers:
        seconds = time.monotonic() - self._began
        tokens = steps * recipe.batch * recipe.length
        return {"seconds": round(seconds, 1), "tokens_per_second": round(tokens / seconds)}
