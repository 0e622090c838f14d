"""The loop around a step: batches in, checkpoints and a log out, resuming where it stopped."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from orbax.checkpoint import v1 as ocp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jspec.distill.data import Source, batch_at
from jspec.distill.objective import Objective
from jspec.distill.recipe import Recipe, optimizer
from jspec.distill.step import start, step
from jspec.formats.folder import read_json, write_json
from jspec.models.protocol import Params


def train(
    recipe: Recipe,
    objective: Objective,
    params: Params,
    frozen: Params,
    source: Source,
    measure: Callable[[Params], Mapping[str, float]],
) -> Params:
    """Lowers `objective` to the last step and returns the parameters; goes on from the newest
    checkpoint.

    Writes `recipe.json`, `log.jsonl` and `checkpoints/` below `output/name`. Raises
    `FloatingPointError` at the first loss or parameter that is not finite, leaving the last good
    checkpoint, and `ValueError` if the run that is there is another one.

    Args:
      frozen: what the objective reads and nothing trains.
      measure: what to log of the parameters every so many steps.
    """
    folder = Path(recipe.output).absolute() / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder, recipe)
    rule = optimizer(recipe)
    advance = jax.jit(
        functools.partial(step, objective=objective, optimizer=rule), donate_argnames=("state",)
    )
    with _checkpoints(folder, recipe) as checkpoints, _progress(recipe) as show:
        # The state is given away at every step; the caller keeps what is theirs.
        state = start(jax.tree.map(jnp.copy, params), optimizer=rule)
        if checkpoints.latest is not None:
            state = checkpoints.load_checkpointables(None, {"state": state})["state"]
        began, first = time.monotonic(), int(state.step)
        for number in range(first, recipe.steps):
            state, metrics = advance(state, frozen, batch_at(source, number, recipe.batch))
            done = number + 1
            check_finite(done, metrics)
            show(done, "")
            last = done == recipe.steps
            if last or done % recipe.evaluate_every == 0:
                tokens = (done - first) * recipe.batch * recipe.length
                speed = _speed(tokens, time.monotonic() - began)
                found = measure(state.params)
                check_finite(done, found)
                _log(folder / "log.jsonl", {"step": done, **metrics, **found, **speed})
                show(done, ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
            if last or done % recipe.save_every == 0:
                check_finite(done, {"norm of the parameters": optax.tree.norm(state.params)})
                # A save that is asked for while another is being written is left out in silence.
                checkpoints.wait()
                checkpoints.save_checkpointables_async(done, {"state": state}, overwrite=True)
        return state.params


def check_finite(step: int, numbers: Mapping[str, Any]) -> None:
    """Raises `FloatingPointError` for a number that is not."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"step {step}: {name} is {float(value)}")


def _check_same(folder: Path, recipe: Recipe) -> None:
    """Refuses to go on with another run, and notes which recipe this one follows."""
    file, ours = folder / "recipe.json", json.loads(json.dumps(asdict(recipe)))
    if file.is_file():
        theirs = read_json(file)
        now, then = (
            flatten_dict({name: run[name] for name in recipe.FIXED if name in run}, sep=".")
            for run in (ours, theirs)
        )
        differing = [
            f"{name}={value!r} where the run has {then.get(name)!r}"
            for name, value in now.items()
            if then.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"name={recipe.name!r}: {folder} holds another run ({', '.join(differing)}): "
                "take another name, or go on with that one"
            )
    write_json(file, ours)


def _speed(tokens: int, seconds: float) -> dict[str, float]:
    return {"seconds": round(seconds, 1), "tokens_per_second": round(tokens / seconds)}


@contextlib.contextmanager
def _progress(recipe: Recipe) -> Iterator[Callable[[int, str], None]]:
    """A bar on stderr with the time left and the last evaluation."""
    columns = (
        TextColumn(recipe.name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(recipe.name, total=recipe.steps, note="compiling the first step")

        def show(done: int, note: str) -> None:
            bar.update(task, completed=done, **({"note": note} if note else {}))

        yield show


def _checkpoints(folder: Path, recipe: Recipe) -> ocp.training.Checkpointer:
    policies = ocp.training.preservation_policies
    return ocp.training.Checkpointer(
        folder / "checkpoints", preservation_policy=policies.LatestN(recipe.keep)
    )


def _log(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a") as file:
        # Of numbers that a program computed, JSON knows none.
        file.write(json.dumps(record, default=float) + "\n")
