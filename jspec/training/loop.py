"""The loop around a step: batches in, checkpoints and a log out; it resumes where it stopped."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jspec.formats import folder as files
from jspec.models.protocol import Params
from jspec.training.checkpoints import Checkpoints, Note, newest_step, preemption_notice
from jspec.training.config_files import recipe_from_json
from jspec.training.data import Source, batch_at
from jspec.training.means import LOSS, Means, read_means
from jspec.training.recipe import Recipe
from jspec.training.step import TrainProgram

RECIPE, CHECKPOINTS, LOG, TENSORBOARD = "recipe.json", "checkpoints", "log.jsonl", "tensorboard"
Numbers = Mapping[str, float]
Show = Callable[..., None]
"""Of how much is done and, if there is one, a note."""


class Trained(NamedTuple):
    """The parameters after a run, and their step, which is not the last where the run stopped."""

    params: Params
    step: int


def train(
    recipe: Recipe,
    program: TrainProgram,
    params: Params,
    frozen: Any,
    source_at: Callable[[int, Params], Source],
    evaluate: Callable[[Params], Numbers],
    score: Callable[[Numbers], float],
    *,
    mesh: Mesh | None = None,
    note: Note,
) -> Trained:
    """Takes steps from the newest checkpoint to the last, or until the machine is preempted.

    Writes `log.jsonl`, `tensorboard/` and `checkpoints/` below `output/name`, which `claim_run` has
    made.

    Args:
      frozen: what the objective reads and nothing trains.
      source_at: the source of a step's batch, given the parameters before that step.
      evaluate: metrics of the parameters, logged every `evaluate_every` steps; score: of these,
        higher is better.
      note: called with what is worth knowing, such as a checkpoint that cannot be read.

    Raises `FloatingPointError` at the first loss or parameter that is not finite, leaving the last
    good checkpoint.
    """
    folder = recipe.folder
    made_by = provenance(recipe)
    with (
        closing(
            Checkpoints(folder / CHECKPOINTS, note, keep=recipe.keep, provenance=made_by)
        ) as checkpoints,
        closing(Log(folder)) as log,
        progress(recipe.name, recipe.steps) as show,
        preemption_notice() as preempted,
    ):
        state = checkpoints.restore(program.start(params))
        first, clock, steps = int(state.step), _Clock(), _Steps(recipe)
        show(first, "compiling the first step" if first < recipe.steps else "all steps are done")
        for number in range(first, recipe.steps):
            with clock.stopped():
                source = source_at(number, state.params)
            batch = batch_at(source, number, recipe.batch_size, mesh)
            state, means = program.step(state, frozen, batch)
            done = number + 1
            steps.add(done, means)
            show(done)
            last, leaving = done == recipe.steps, preempted(done)
            found = None
            if last or done % recipe.evaluate_every == 0:
                metrics = steps.read()
                with clock.stopped():
                    found = evaluate(state.params)
                _check_finite(recipe, done, found)
                log.write(done, {**metrics, **found, **clock.speed(done - first, recipe)})
                show(done, _summary(found))
            if last or leaving or done % recipe.save_every == 0:
                steps.read()
                _check_finite(recipe, done, {"norm of the parameters": program.norm(state)})
                checkpoints.save(done, state, None if found is None else score(found))
            if leaving:
                break
        if steps.left_out:
            note(f"{steps.left_out} steps had no token to learn from, and changed nothing")
    return Trained(state.params, int(state.step))


def claim_run(recipe: Recipe, note: Note) -> None:
    """Makes a run's folder and writes its recipe there; refuses the folder of another run, and one
    that cannot be written.

    Args:
      note: called with the fields that differ from those the run had before; the recipe of a run
        that has all of its steps stays.
    """
    make_folder(recipe)
    file = recipe.folder / RECIPE
    _write_current_names(file, type(recipe))
    finished = newest_step(recipe.folder / CHECKPOINTS) >= recipe.steps
    found = files.claim(file, asdict(recipe), fixed=recipe.FIXED, what="run", finished=finished)
    if found and finished:
        note(
            f"{recipe.name} has all of its steps, so {', '.join(found)} changes nothing: take more "
            "steps, or another name"
        )
    elif found:
        note(f"{recipe.name} resumes with {', '.join(found)}")


def make_folder(recipe: Recipe) -> None:
    """Makes a run's folder; raises `ValueError` where that cannot be."""
    try:
        recipe.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"output={recipe.output!r}: {error.strerror}: give a folder that can be written"
        ) from error


def provenance(recipe: Recipe) -> dict[str, Any]:
    """The recipe and the versions of what runs it."""
    packages = ("jspec", "jax", "flax", "optax", "orbax-checkpoint")
    return {
        "recipe": asdict(recipe),
        "versions": {package: version(package) for package in packages},
        "devices": [str(jax.device_count()), jax.devices()[0].device_kind],
    }


def print_note(text: str) -> None:
    """Prints a line on stderr, from the first process alone."""
    if jax.process_index() == 0:
        print(text, file=sys.stderr, flush=True)


class Log:
    """`log.jsonl` and `tensorboard/` below `folder`; written by the first process alone."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writes = jax.process_index() == 0
        if self._writes:
            self._file = folder / LOG
            self._board = SummaryWriter(str(folder / TENSORBOARD))

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._writes:
            self._board.close()

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds the metrics of a step."""
        if self._writes:
            plain = {name: float(value) for name, value in numbers.items()}
            whole = not self._file.is_file() or self._file.read_bytes()[-1:] in (b"", b"\n")
            with self._file.open("a") as file:
                # A line that was cut off, when the disk was full, stays alone.
                file.write("\n" * (not whole) + json.dumps({"step": step, **plain}) + "\n")
            for name, value in plain.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()


def last_metrics(folder: Path) -> dict[str, float]:
    """The metrics that a run logged last, with their `step`; empty if it has logged none."""
    file = folder / LOG
    lines = file.read_text().splitlines() if file.is_file() else []
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # the line was cut off when its process ended
            return json.loads(line)
    return {}


@contextmanager
def progress(name: str, total: int) -> Iterator[Show]:
    """A bar on stderr with the time left; yields a function of how much of `total` is done.

    Where stderr is no terminal each note is a line, and so is every tenth of the total. Of several
    processes only the first shows anything.
    """
    console = Console(stderr=True, quiet=jax.process_index() > 0, highlight=False)
    if not console.is_terminal:
        yield _lines(console, name, total)
        return
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, total=total, note="")

        def show(done: int, note: str = "") -> None:
            fields: Any = {"note": note} if note else {}
            bar.update(task, completed=done, **fields)

        yield show


def _lines(console: Console, name: str, total: int) -> Show:
    tenth = -1

    def show(done: int, note: str = "") -> None:
        nonlocal tenth
        if note or 10 * done // total > tenth:
            tenth = 10 * done // total
            console.print(f"{name} {done}/{total} {note}".rstrip(), soft_wrap=True)

    return show


def _write_current_names(file: Path, kind: type[Recipe]) -> None:
    """Writes a recipe that is there with today's names of its fields."""
    if file.is_file():
        before = files.read_json(file)
        with contextlib.suppress(ValueError):  # a recipe of another kind, which is refused later
            now = json.loads(json.dumps(asdict(recipe_from_json(kind, before))))
            if now != before and jax.process_index() == 0:
                files.write_json(file, now)
    multihost_utils.sync_global_devices("the recipe has today's names")


def _check_finite(recipe: Recipe, step: int, numbers: Mapping[str, Any]) -> None:
    """Raises `FloatingPointError` for a number that is not finite, with its step and rows."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            first, last = (step - 1) * recipe.batch_size, step * recipe.batch_size - 1
            raise FloatingPointError(
                f"step {step} (rows {first} to {last} of its data): {name} is {float(value)}"
            )


def _summary(found: Numbers) -> str:
    return ", ".join(f"{name} {x:.3f}" for name, x in found.items() if "accepted_at" not in name)


class _Steps:
    """The metrics of steps: the host reads those of one when the next one is running."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._waiting: tuple[int, Means] | None = None
        self._metrics: Numbers = {}
        self.left_out = 0

    def add(self, step: int, means: Means) -> None:
        self.read()
        self._waiting = step, means

    def read(self) -> Numbers:
        """The metrics of the newest step; `left_out` counts the steps that have no loss."""
        if self._waiting is not None:
            (step, means), self._waiting = self._waiting, None
            self._metrics = read_means(means)
            _check_finite(self._recipe, step, self._metrics)
            self.left_out += LOSS not in self._metrics
        counted = {"steps_left_out": self.left_out} if self.left_out else {}
        return {**self._metrics, **counted}


class _Clock:
    """Seconds of training, without those of what is done in between."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        before = time.monotonic()
        yield
        self._began += time.monotonic() - before

    def speed(self, steps: int, recipe: Recipe) -> Numbers:
        seconds = time.monotonic() - self._began
        tokens = steps * recipe.batch_size * recipe.sequence_length
        return {"seconds": round(seconds, 1), "tokens_per_second": round(tokens / seconds)}
