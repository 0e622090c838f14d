"""Checkpoints of a run: the newest few and the best, restorable on any mesh."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jspec.distill.step import TrainState

STATE = "state"
SCORE = "score"
DESCRIPTION = "_CHECKPOINT_METADATA"
Note = Callable[[str], None]


class Checkpoints:
    """Those below `folder`.

    Args:
      note: told of those that cannot be read.
      keep: how many of the newest stay; the one of the highest score stays, too.
      provenance: stored with them: the recipe, and what made it.
    """

    def __init__(
        self,
        folder: Path,
        note: Note,
        *,
        keep: int = 1,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self._note, self._folder = note, folder
        self._set_aside_broken()
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            n=1,
            get_metric_fn=lambda metrics: metrics[SCORE],
            keep_checkpoints_without_metrics=False,
        )
        policy = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
        self._opened = functools.partial(
            ocp.training.Checkpointer,
            folder,
            preservation_policy=policy,
            custom_metadata=None if provenance is None else json.loads(json.dumps(provenance)),
            cleanup_tmp_directories=True,
        )
        self._open = self._opened()

    def close(self) -> None:
        """Waits until all are on disk."""
        with self._writing():
            self._open.close()

    @property
    def steps(self) -> list[int]:
        """Those there are, in order."""
        return sorted(found.step for found in self._open.checkpoints)

    @property
    def best(self) -> int | None:
        """The step of the highest score; None where nothing was scored."""
        return _best(self._open)

    def restore(self, state: TrainState) -> TrainState:
        """The newest that can be read, laid out as `state` is; `state` where there is none.

        Newer ones that cannot be read are set aside, since none could be saved before them.
        """
        failed: list[int] = []
        for step in reversed(self.steps):
            try:
                found = self.load(step, state)
            # Whatever the reader raises for files that are broken.
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                self._note(f"checkpoint {step} cannot be read ({type(error).__name__}: {reason})")
                failed.append(step)
            else:
                self._set_aside(failed)
                return found
        if failed:
            raise ValueError(
                f"{self._open.directory} has no checkpoint that can be read: restore one of "
                f"{', '.join(map(str, failed))}, or delete the folder to begin again"
            )
        return state

    def load(self, step: int, state: TrainState) -> TrainState:
        """The state of a step, laid out as `state` is."""
        return self._open.load_checkpointables(step, {STATE: state})[STATE]

    def save(self, step: int, state: TrainState, score: float | None = None) -> None:
        """Begins to write the state, once what is being written is done.

        Raises `OSError` if that, or what was being written, cannot be.
        """
        with self._writing():
            # A save that is asked for while another is being written is left out in silence.
            self._open.wait()
            self._open.save_checkpointables_async(
                step,
                {STATE: state},
                overwrite=True,
                metrics=None if score is None else {SCORE: score},
            )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        # Whatever the writer raises for a disk that is full, or gone.
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise OSError(
                f"{self._open.directory}: a checkpoint cannot be written ({reason}): those before "
                "it are whole; make room, and the same command goes on"
            ) from error

    def _set_aside(self, steps: Sequence[int]) -> None:
        if not steps:
            return
        self._open.close()
        for step in steps if jax.process_index() == 0 else ():
            place = self._folder / str(step)
            place.rename(place.with_name(f"{step}.broken"))
        multihost_utils.sync_global_devices("checkpoints are set aside")
        self._open = self._opened()

    def _set_aside_broken(self) -> None:
        """Renames checkpoints whose description is broken, at which opening all of them fails."""
        for place in self._folder.glob("*") if jax.process_index() == 0 else ():
            described = place / DESCRIPTION
            if not place.name.isdigit() or not described.is_file():
                continue
            try:
                json.loads(described.read_text(encoding="utf-8"))
            except ValueError:
                self._note(f"checkpoint {place.name} cannot be read: {described} is broken")
                place.rename(place.with_name(f"{place.name}.broken"))
        multihost_utils.sync_global_devices("checkpoints are there")


def read(folder: Path, wanted: str, state: TrainState) -> TrainState:
    """One of the checkpoints below `folder`, where a run may be under way: nothing is touched.

    Args:
      wanted: `newest`, `best` or a step. Raises `ValueError` if it is not there, or not readable.
      state: laid out as what is returned.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there: the run has saved nothing yet")
    with closing(ocp.training.Checkpointer(folder)) as opened:
        steps = sorted(found.step for found in opened.checkpoints)
        if not steps:
            raise ValueError(f"{folder} holds no checkpoint: the run has saved none yet")
        named = {"newest": steps[-1], "best": _best(opened), **{str(step): step for step in steps}}
        step = named.get(wanted)
        if step is None:
            there = ", ".join(name for name, found in named.items() if found is not None)
            raise ValueError(f"step={wanted!r}: {folder} has {there}")
        try:
            return opened.load_checkpointables(step, {STATE: state})[STATE]
        # Whatever the reader raises for files that are broken.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            others = ", ".join(str(other) for other in steps if other != step) or "no other"
            raise ValueError(
                f"step={wanted!r}: checkpoint {step} cannot be read ({type(error).__name__}: "
                f"{reason}): there is {others}"
            ) from error


def _best(opened: ocp.training.Checkpointer) -> int | None:
    scored = [found for found in opened.checkpoints if found.metrics]
    return max(scored, key=lambda found: found.metrics[SCORE]).step if scored else None
