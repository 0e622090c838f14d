"""`jspec import`: a model or a head from the hub or a folder, checked to the last key."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from jspec.cli.transfer import Transfer


@dataclass(kw_only=True)
class Import(Transfer):
    """Read a model or a head, refuse what is not understood, and keep it in a folder."""

    source: Positional[str]
    """A local folder, or a hub name."""
    folder: Positional[Path]
    """Where to. A model that is there is replaced; a folder of anything else is refused."""

    def run(self) -> int:
        return self.transfer("source", self.source, self.folder)
