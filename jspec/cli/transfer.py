"""A model on its way into a folder, and what it is."""

from pathlib import Path
from typing import TYPE_CHECKING

from jspec.cli.pair import write_model
from jspec.cli.screen import console, emit
from jspec.cli.verb import DONE

if TYPE_CHECKING:
    from jspec.formats.huggingface import Checkpoint


def transfer(source: str, model: "Checkpoint", folder: Path, dtype: str, *, json: bool) -> int:
    """Writes the model, says what was written, and returns the exit code."""
    import jax

    write_model(folder, model, dtype)
    place = folder.expanduser().absolute()
    config = model.model.config
    record = {
        "source": source,
        "folder": str(place),
        "family": model.family,
        "dtype": dtype,
        "parameters": sum(x.size for x in jax.tree.leaves(model.params)),
        "bytes": sum(file.stat().st_size for file in place.glob("*.safetensors")),
        "layers": config.layers,
        "width": config.width,
        "vocabulary": config.vocabulary,
        "context": config.context,
        "end_of_text": list(model.end_of_text),
    }
    if json:
        emit(record)
    else:
        console().print(
            f"{source}: {model.family} of {record['parameters']:,} parameters in {dtype}, "
            f"{record['bytes'] / 1e6:.1f} MB, in {place}",
            soft_wrap=True,
        )
    return DONE
