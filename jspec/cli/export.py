"""`jspec export`: a model of the zoo, or any that can be read, as a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from jspec.cli.pair import Dtype, read_model
from jspec.cli.transfer import transfer
from jspec.cli.verb import Verb


@dataclass(kw_only=True)
class Export(Verb):
    """Write a model as a Hugging Face folder, which transformers and vLLM read."""

    name: Positional[str]
    """target, wide, deep or distilled of the zoo; or a folder, or a hub name."""
    folder: Positional[Path]
    """Where to. A model that is there is replaced; a folder of anything else is refused."""
    dtype: Dtype = "bfloat16"
    """Of the weights in the file; the zoo's are bfloat16."""

    def run(self) -> int:
        from jspec import zoo

        source = zoo.PREFIX + self.name if self.name in zoo.NAMES else self.name
        model = read_model("name", source, self.dtype)
        return transfer(source, model, self.folder, self.dtype, json=self.json)
