"""`jspec export`: a model of the zoo, or any that can be read, as a Hugging Face folder."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from jspec.cli.pair import Dtype, read_model, write_model
from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE, Verb


@dataclass(kw_only=True)
class Export(Verb):
    """Write a model as a Hugging Face folder, which transformers and vLLM read."""

    name: Positional[str]
    """target, wide or deep of the zoo; or a folder, or a hub name."""
    folder: Positional[Path]
    """Where to. A model that is there is replaced; a folder of anything else is refused."""
    dtype: Dtype = "bfloat16"
    """Of the weights in the file; the zoo's are bfloat16."""

    def run(self) -> int:
        import jax

        from jspec import zoo

        source = zoo.PREFIX + self.name if self.name in zoo.NAMES else self.name
        model = read_model("name", source, self.dtype)
        write_model(self.folder, model, self.dtype)
        weights = sum(x.size for x in jax.tree.leaves(model.params))
        place = self.folder.expanduser().absolute()
        size = sum(file.stat().st_size for file in place.glob("*.safetensors"))
        record = {
            "source": source,
            "folder": str(place),
            "dtype": self.dtype,
            "parameters": weights,
            "bytes": size,
        }
        if self.json:
            emit(record)
        else:
            console().print(
                f"{source}: {weights:,} parameters in {self.dtype}, {size / 1e6:.1f} MB, "
                f"in {place}",
                soft_wrap=True,
            )
        return DONE
