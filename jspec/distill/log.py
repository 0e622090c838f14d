"""The numbers of a run, as JSON lines and for TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax


class Log:
    """`log.jsonl` and `tensorboard/` below `folder`; written by the first process alone."""

    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writes = jax.process_index() == 0
        if self._writes:
            self._file = folder / "log.jsonl"
            self._board = SummaryWriter(str(folder / "tensorboard"))

    def close(self) -> None:
        """Flushes what is written."""
        if self._writes:
            self._board.close()

    def write(self, step: int, numbers: Mapping[str, Any]) -> None:
        """Adds what is known of a step."""
        if self._writes:
            plain = {name: float(value) for name, value in numbers.items()}
            with self._file.open("a") as file:
                file.write(json.dumps({"step": step, **plain}) + "\n")
            for name, value in plain.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
