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
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jspec.distill.data import Blocks
from jspec.distill.objective import Objective, language_model
from jspec.distill.recipe import Recipe, optimizer
from jspec.distill.step import TrainState, start, step
from jspec.formats.folder import read_json, write_json
from jspec.models.protocol import Model, Params

EVALUATION_BATCHES = 8


def train(recipe: Recipe, model: Model, params: Params, blocks: Blocks, held_out: Blocks) -> Params:
    """Trains `params` to the last step and returns them; goes on from the newest checkpoint.

    Writes `recipe.json`, `log.jsonl` and `checkpoints/` below `output/name`. Raises
    `FloatingPointError` at the first loss or parameter that is not finite, leaving the last good
    checkpoint, and `ValueError` if the run that is there is of another model.
    """
    folder = Path(recipe.output).absolute() / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(folder, recipe)
    rule = optimizer(recipe)
    objective = functools.partial(language_model, model=model, chunk=recipe.chunk)
    advance = jax.jit(
        functools.partial(step, objective=objective, optimizer=rule), donate_argnames=("state",)
    )
    measure = jax.jit(objective)
    with _checkpoints(folder, recipe) as checkpoints, _progress(recipe) as show:
        # The state is given away at every step; the caller keeps what is theirs.
        state = start(jax.tree.map(jnp.copy, params), optimizer=rule)
        if checkpoints.latest is not None:
            state = checkpoints.load_checkpointables(None, {"state": state})["state"]
        began, first = time.monotonic(), int(state.step)
        for number in range(first, recipe.steps):
            state, metrics = advance(state, (), blocks.batch_at(number, recipe.batch))
            done = number + 1
            check_finite(done, metrics)
            show(done, "")
            last = done == recipe.steps
            if last or done % recipe.evaluate_every == 0:
                found = evaluate(state, measure, held_out, recipe)
                check_finite(done, found)
                tokens = (done - first) * recipe.batch * recipe.length
                speed = _speed(tokens, time.monotonic() - began)
                _log(folder / "log.jsonl", {"step": done, **metrics, **found, **speed})
                show(done, f"loss {metrics['loss']:.3f}, held out {found['held_out_loss']:.3f}")
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


def evaluate(
    state: TrainState, measure: Objective, held_out: Blocks, recipe: Recipe
) -> dict[str, float]:
    """The mean loss over the first held-out batches."""
    losses = [
        measure(state.params, (), held_out.batch_at(number, recipe.batch))[0]
        for number in range(EVALUATION_BATCHES)
    ]
    return {"held_out_loss": float(np.mean(jax.device_get(losses)))}


def _check_same(folder: Path, recipe: Recipe) -> None:
    """Refuses to go on with a run of another model, and notes which recipe this one follows."""
    file, ours = folder / "recipe.json", asdict(recipe)
    if file.is_file():
        theirs = read_json(file).get("model", {})
        differing = [
            f"model.{name}={value!r} where the run has {theirs.get(name)!r}"
            for name, value in json.loads(json.dumps(ours["model"])).items()
            if theirs.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"name={recipe.name!r}: {folder} holds a run of another model "
                f"({', '.join(differing)}): take another name, or go on with that model"
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
