"""Models in Hugging Face's layout: a folder of config.json, safetensors and a tokenizer."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jspec.formats.families import FAMILIES, family_of, fitting, key, read_config
from jspec.formats.fields import LARGEST
from jspec.formats.folder import read_json, replacing, write_json
from jspec.formats.hub import find
from jspec.formats.layouts import layout_of
from jspec.formats.tensors import Stored, list_tensors, same, write_tensors
from jspec.formats.tokenizer import TokenizerSource, read_tokenizer, write_tokenizer
from jspec.formats.weights import flat_params, float_dtype, read_params, stored_array
from jspec.models.protocol import LinenModel, Params
from jspec.models.transformer import Transformer, transformer
from jspec.parallel.sharding import RULES, Rules


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that was read.

    Attributes:
      end_of_text: tokens that end a text.
      folder: where it was found; family: its `model_type` there.
    """

    model: LinenModel
    params: Params
    end_of_text: tuple[int, ...]
    folder: Path
    family: str

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The folder's transformers tokenizer, read when first asked for; None if it has none."""
        return read_tokenizer(self.folder)


def load(
    source: str | Path,
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> Checkpoint:
    """Reads a model, one tensor at a time. Opens no pickle and runs no code of the folder's.

    Args:
      source: a local folder, or a name on the Hugging Face hub.
      dtype: what all parameters become: float32, bfloat16 or float16.
      mesh: where to put them; each device reads its own pieces of the files and no others.
      rules: which axis of a parameter lives on which axis of the mesh; `sharding.REPLICATED` puts
        all of the model on every device.
    """
    dtype = float_dtype(dtype)
    folder = find(source)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"source={str(source)!r} has no config.json: a model folder holds config.json, "
            "safetensors and, for text, tokenizer.json"
        )
    config = read_json(folder / "config.json")
    try:
        model = transformer(read_config(config))
        family = family_of(config)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    end_of_text = _read_end(folder, config)
    stored = list_tensors(folder)
    layout = layout_of(config, stored)
    if layout is not None:
        raise ValueError(
            f"{folder} is a head of the {layout} layout, and no whole model: it is a draft "
            "(--draft, load_head), beside the target that it was made for"
        )
    params = read_params(
        folder,
        stored,
        model,
        functools.partial(key, family),
        functools.partial(_tied, stored, FAMILIES[family].KEYS),
        dtype=dtype,
        mesh=mesh,
        rules=rules,
    )
    return Checkpoint(model, params, end_of_text, folder, family)


def save(
    folder: str | Path,
    model: LinenModel,
    params: Params,
    *,
    tokenizer: TokenizerSource = None,
    end_of_text: tuple[int, ...] = (),
    dtype: Any = None,
    family: str | None = None,
) -> None:
    """Writes a model that `load` and transformers (4.56 and later) read. All of it, or nothing.

    In a launch of several processes all of them call it, and the first writes.

    Args:
      folder: where to; a model that is there is replaced, other files beside it stay.
      model: as `transformer` makes it.
      params: as `model.init` gives them.
      tokenizer: a folder to copy it from, or a tokenizer of transformers or tokenizers.
      end_of_text: tokens that end a text.
      dtype: of the file; when None, that of the embedding.
      family: the `model_type` to write; when None, the first of Llama and the others that has all
        that the model has.
    """
    module = getattr(model, "module", model)
    if not isinstance(module, Transformer):
        raise ValueError(f"model={type(module).__name__} has no such layout: Transformer has")
    weights = flat_params(model, params)
    family = fitting(model.config, family)
    dtype = float_dtype(params["embedding"].dtype if dtype is None else dtype)
    ends = [int(token) for token in end_of_text]
    end = {"eos_token_id": ends[0] if len(ends) == 1 else ends or None}
    config = {
        **FAMILIES[family].write_config(model.config),
        # Readers fill absent fields with the family's own tokens, so null is written too.
        "bos_token_id": None,
        "pad_token_id": None,
        **end,
        "torch_dtype": dtype.name,
        "dtype": dtype.name,
    }
    tensors = {key(family, path): stored_array(x, dtype) for path, x in weights.items()}
    if jax.process_index() == 0:
        with replacing(Path(folder)) as partial:
            write_json(partial / "config.json", config)
            write_json(partial / "generation_config.json", end)
            write_tokenizer(partial, tokenizer, end_of_text=end_of_text)
            write_tensors(partial, tensors)
    multihost_utils.sync_global_devices("the model is written")


def _tied(
    stored: Mapping[str, Stored], keys: Mapping[str, str], name: str, tensor: Stored
) -> str | None:
    """What is wrong with a head where none is wanted, which is tied and so to be the embedding."""
    if name != keys["head.weight"]:
        return None
    embedding = stored.get(keys["embedding"])
    if embedding is None or not same(embedding, tensor):
        return f"{name} differs from the embedding it is tied to"
    return ""


def _read_end(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """The tokens that end a text: generation_config.json's word, else config.json's."""
    generation = folder / "generation_config.json"
    end = read_json(generation).get("eos_token_id") if generation.is_file() else None
    end = config.get("eos_token_id") if end is None else end
    tokens = [] if end is None else end if isinstance(end, list) else [end]
    if not all(type(token) is int and abs(token) <= LARGEST for token in tokens):
        raise ValueError(f"{folder}: eos_token_id={end!r} must be a token's number, or a list")
    return tuple(tokens)
