"""The loop around a step: batches in, checkpoints and a log out, resuming where it stopped."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jspec.distill.data import Blocks
from jspec.distill.recipe import Recipe, optimizer
from jspec.distill.step import TrainState, loss, start, step
from jspec.models.protocol import Model, Params

EVALUATION_BATCHES = 8


def train(recipe: Recipe, model: Model, params: Params, blocks: Blocks, held_out: Blocks) -> Params:
    """Trains `params` to the last step and returns them; goes on from the newest checkpoint.

    Writes `log.jsonl` and `checkpoints/` below `output/name`. Raises `FloatingPointError` at the
    first loss that is not finite, leaving the last good checkpoint.
    """
    folder = Path(recipe.output).absolute() / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    rule = optimizer(recipe)
    advance = jax.jit(
        functools.partial(step, model=model, optimizer=rule, chunk=recipe.chunk),
        donate_argnames=("state",),
    )
    measure = jax.jit(functools.partial(loss, model=model, chunk=recipe.chunk))
    with _checkpoints(folder, recipe) as checkpoints, _progress(recipe) as show:
        state = start(params, optimizer=rule)
        if checkpoints.latest is not None:
            state = checkpoints.load_checkpointables(None, {"state": state})["state"]
        began, first = time.monotonic(), int(state.step)
        for number in range(first, recipe.steps):
            state, metrics = advance(state, blocks.batch_at(number, recipe.batch))
            done = number + 1
            if done % recipe.evaluate_every and done != recipe.steps:
                show(done, "")
                continue
            record = {"step": done, **{name: float(value) for name, value in metrics.items()}}
            if not math.isfinite(record["loss"]):
                raise FloatingPointError(f"the loss of step {done} is {record['loss']}")
            record["held_out_loss"] = evaluate(state, measure, held_out, recipe)
            seconds = time.monotonic() - began
            record["seconds"] = round(seconds, 1)
            tokens = (done - first) * recipe.batch * recipe.length
            record["tokens_per_second"] = round(tokens / seconds)
            _log(folder / "log.jsonl", record)
            show(done, f"loss {record['loss']:.3f}, held out {record['held_out_loss']:.3f}")
            if done % recipe.save_every == 0 or done == recipe.steps:
                checkpoints.save_checkpointables_async(done, {"state": state}, overwrite=True)
        return state.params


def evaluate(
    state: TrainState, measure: Callable[..., jax.Array], held_out: Blocks, recipe: Recipe
) -> float:
    """The mean loss over the first held-out batches."""
    losses = [
        measure(state.params, held_out.batch_at(number, recipe.batch))
        for number in range(EVALUATION_BATCHES)
    ]
    return float(np.mean(jax.device_get(losses)))


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


def _log(path: Path, record: dict[str, float]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
