"""Checkpoints in a folder: whoever else writes there, and whatever ended the process before."""

import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.training.checkpoints import DESCRIPTION, Checkpoints, read_checkpoint
from jspec.training.step import TrainState


def state_of(step: int) -> TrainState:
    params = {"a": jnp.full((4, 3), step, jnp.float32)}
    return TrainState(jnp.int32(step), params, (params,))


def written(folder: Path, *steps: int) -> Path:
    with closing(Checkpoints(folder, print, keep=9)) as opened:
        for step in steps:
            opened.save(step, state_of(step), score=-step)
    return folder


def assert_read(state: TrainState, step: int) -> None:
    jax.tree.map(np.testing.assert_array_equal, state, state_of(step))


def test_what_is_left_of_a_checkpoint_in_removal_is_no_checkpoint(tmp_path):
    folder = written(tmp_path / "checkpoints", 2, 4, 6)
    (folder / "2" / DESCRIPTION).unlink()
    shutil.rmtree(folder / "2" / "state")
    with closing(Checkpoints(folder, pytest.fail, keep=9)) as opened:
        assert opened.steps == [4, 6] and opened.best == 4
        assert_read(opened.restore(state_of(0)), 6)
    assert not (folder / "2").exists()


def test_a_checkpoint_that_breaks_again_is_set_aside_beside_the_first(tmp_path):
    folder, said = written(tmp_path / "checkpoints", 2, 4), []
    for _ in range(2):
        (folder / "4" / DESCRIPTION).write_text("{")
        with closing(Checkpoints(folder, said.append, keep=9)) as opened:
            assert_read(opened.restore(state_of(0)), 2)
            opened.save(4, state_of(4))
    assert {entry.name for entry in folder.iterdir()} == {"2", "4", "4.broken", "4.broken1"}
    assert len(said) == 2 and all("checkpoint 4 cannot be read" in line for line in said)


def test_two_processes_do_not_write_one_run(tmp_path):
    folder = written(tmp_path / "run" / "checkpoints", 2)
    program = (
        "import sys; from pathlib import Path; from jspec.formats.folder import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"in\n"
        with pytest.raises(OSError, match=r"run is in use by another process: wait for it, or"):
            Checkpoints(folder, print)
        # Who only reads does not have to wait.
        assert_read(read_checkpoint(folder, "newest", state_of(0)), 2)
        other.kill()
    written(folder, 3)
    assert_read(read_checkpoint(folder, "newest", state_of(0)), 3)


def test_a_folder_that_could_not_be_opened_can_be_opened_again(tmp_path, monkeypatch):
    folder = written(tmp_path / "checkpoints", 2)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="no") as _:
        patched.setattr(
            Checkpoints, "_opener", lambda *_: (_ for _ in ()).throw(RuntimeError("no"))
        )
        Checkpoints(folder, print)
    written(folder, 3)
