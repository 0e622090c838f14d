"""`jspec import`: a model from the hub or a folder, checked to the last key, into a folder."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from jspec.cli.pair import Dtype, read_model
from jspec.cli.transfer import transfer
from jspec.cli.verb import Verb


@dataclass(kw_only=True)
class Import(Verb):
    """Read a model, refuse what is not understood, and keep it in a folder."""

    source: Positional[str]
    """A local Hugging Face folder, or a hub name."""
    folder: Positional[Path]
    """Where to. A model that is there is replaced; a folder of anything else is refused."""
    dtype: Dtype = "bfloat16"
    """Of the weights in the file."""

    def run(self) -> int:
        model = read_model("source", self.source, self.dtype)
        return transfer(self.source, model, self.folder, self.dtype, json=self.json)
