"""Checkpoints of a run (the newest few and the best, restorable on any mesh), and preemption."""

import functools
import itertools
import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax.experimental import multihost_utils

from jspec.formats.folder import locked
from jspec.training.step import TrainState

if TYPE_CHECKING:
    from orbax.checkpoint import v1 as ocp

STATE = "state"
SCORE = "score"
DESCRIPTION = "_CHECKPOINT_METADATA"
Note = Callable[[str], None]
"""Takes a line for the user."""


class Checkpoints:
    """The checkpoints in `folder`.

    Args:
      note: called with those that cannot be read.
      keep: how many of the newest stay, besides the one with the highest score.
      provenance: stored with them: the recipe, and the versions of what made them.
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
        self._lock = ExitStack()
        self._take_lock()
        try:
            self._set_aside_broken()
            self._reopen = self._opener(keep, provenance)
            self._open = self._reopen()
        except BaseException:
            self._lock.close()
            raise

    def _opener(
        self, keep: int, provenance: Mapping[str, Any] | None
    ) -> "Callable[[], ocp.training.Checkpointer]":
        from orbax.checkpoint import v1 as ocp  # most of a second to import

        policies = ocp.training.preservation_policies
        best = policies.BestN(
            n=1,
            get_metric_fn=lambda metrics: metrics[SCORE],
            keep_checkpoints_without_metrics=False,
        )
        policy: Any = policies.AnyPreservationPolicy([policies.LatestN(keep), best])
        return functools.partial(
            ocp.training.Checkpointer,
            str(self._folder),
            preservation_policy=policy,
            custom_metadata=None if provenance is None else json.loads(json.dumps(provenance)),
            cleanup_tmp_directories=True,
        )

    def close(self) -> None:
        """Waits until all are on disk."""
        with self._lock, self._writing():
            self._open.close()

    @property
    def steps(self) -> list[int]:
        """The steps that are saved, in order."""
        return sorted(found.step for found in self._open.checkpoints)

    @property
    def best(self) -> int | None:
        """The step with the highest score; None if none has a score."""
        return _best(self._open)

    def restore(self, state: TrainState) -> TrainState:
        """The newest checkpoint that can be read, with the shardings of `state`; `state` itself if
        there is none.

        Newer ones that cannot be read are renamed, since orbax saves no step before them.
        """
        failed: list[int] = []
        for step in reversed(self.steps):
            try:
                found = self.load(step, state)
            # Whatever the reader raises for broken files.
            except Exception as error:
                self._note(f"checkpoint {step} cannot be read ({_in_short(error)})")
                failed.append(step)
            else:
                self._set_aside(failed)
                return found
        if failed:
            raise ValueError(
                f"{self._open.directory} has no checkpoint that can be read: restore one of "
                f"{', '.join(map(str, failed))}, or delete the folder to start again"
            )
        return state

    def load(self, step: int, state: TrainState) -> TrainState:
        """The state of a step, with the shardings of `state`."""
        return self._open.load_checkpointables(step, {STATE: state})[STATE]

    def save(self, step: int, state: TrainState, score: float | None = None) -> None:
        """Starts to write the state, once the write before it is done.

        Raises `OSError` if either of the two fails.
        """
        with self._writing():
            # Orbax skips a save in silence while another is being written.
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
                "it are whole; make room, and run the same command again to resume"
            ) from error

    def _take_lock(self) -> None:
        """Raises `OSError` where another process is writing checkpoints of the same run."""
        if jax.process_index() > 0:
            return  # the first process has it for all of a launch
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.enter_context(locked(self._folder))
        except BlockingIOError:
            raise OSError(
                f"{self._folder.parent} is in use by another process: wait for it, or take another "
                "name"
            ) from None

    def _set_aside(self, steps: Sequence[int]) -> None:
        if not steps:
            return
        self._open.close()
        for step in steps if jax.process_index() == 0 else ():
            _mark_broken(self._folder / str(step))
        multihost_utils.sync_global_devices("checkpoints are set aside")
        self._open = self._reopen()

    def _set_aside_broken(self) -> None:
        """Renames checkpoints whose description is broken: one such stops orbax opening any; and
        removes what is left of those that were being removed."""
        for place in self._folder.glob("*") if jax.process_index() == 0 else ():
            described = place / DESCRIPTION
            if not place.name.isdigit():
                continue
            if not described.is_file():
                shutil.rmtree(place, ignore_errors=True)
                continue
            try:
                json.loads(described.read_text(encoding="utf-8"))
            except ValueError:
                self._note(f"checkpoint {place.name} cannot be read: {described} is broken")
                _mark_broken(place)
        multihost_utils.sync_global_devices("checkpoints are there")


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in a folder, whole or not; -1 where there is none."""
    places = folder.glob("*") if folder.is_dir() else ()
    return max((int(place.name) for place in places if place.name.isdigit()), default=-1)


def _mark_broken(checkpoint: Path) -> None:
    """Renames it to a name that is free."""
    names = (f"{checkpoint.name}.broken{number or ''}" for number in itertools.count())
    free = next(name for name in names if not checkpoint.with_name(name).exists())
    checkpoint.rename(checkpoint.with_name(free))


def read_checkpoint(folder: Path, wanted: str, state: TrainState) -> TrainState:
    """A checkpoint in `folder`, which may be that of a running run: nothing there is touched.

    Args:
      wanted: `newest`, `best` or a step.
      state: with the shardings of what is returned.

    Raises `ValueError` if it is not there, or cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    if not folder.is_dir():
        raise ValueError(f"{folder} does not exist: the run has saved nothing yet")
    with closing(ocp.training.Checkpointer(str(folder))) as opened:
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
        # Whatever the reader raises for broken files.
        except Exception as error:
            others = ", ".join(str(other) for other in steps if other != step) or "no other"
            raise ValueError(
                f"step={wanted!r}: checkpoint {step} cannot be read ({_in_short(error)}): there is "
                f"{others}"
            ) from error


def _best(opened: "ocp.training.Checkpointer") -> int | None:
    scored = [found for found in opened.checkpoints if found.metrics]
    return max(scored, key=_score).step if scored else None


def _score(found: Any) -> float:
    return found.metrics[SCORE]


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextmanager
def exit_on_sigterm(note: Note) -> Iterator[None]:
    """Within, SIGTERM ends the process with exit code 0, after what is running has saved its work.

    Args:
      note: called when it arrives.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal arrives there
        return

    def leave(*_: Any) -> None:
        note("stopped; run the same command again to resume")
        raise SystemExit(0)

    with _sigterm_handler(leave):
        yield


@contextmanager
def preemption_notice() -> Iterator[Callable[[int], bool]]:
    """Yields a function of the step: whether to save and stop, the same on all processes.

    A single process listens to SIGTERM itself. Of several, JAX's coordinator tells all at which
    step to stop, once any of them has had a signal or a notice.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    noticed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: False  # no signal arrives there
        return
    with _sigterm_handler(lambda *_: noticed.set()):
        yield lambda _: noticed.is_set()


@contextmanager
def _sigterm_handler(handler: Callable[..., None]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
