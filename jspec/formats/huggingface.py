"""Models in Hugging Face's layout: a folder of config.json, safetensors and a tokenizer."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jspec.formats.families import family_of, fitting_family, read_config
from jspec.formats.fields import LARGEST
from jspec.formats.folder import find, read_json, replacing, write_json
from jspec.formats.heads import layout_of
from jspec.formats.tokenizer import TokenizerSource, read_tokenizer, write_tokenizer
from jspec.formats.weights import (
    Stored,
    equal_tensors,
    flat_params,
    float_dtype,
    list_tensors,
    read_params,
    to_stored,
    write_tensors,
)
from jspec.models.protocol import Params
from jspec.models.transformer import TransformerModel, transformer
from jspec.parallel.sharding import RULES, Rules

GENERATION = "generation_config.json"
END, OTHER_TOKENS = "eos_token_id", ("bos_token_id", "pad_token_id")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model that was read, as `load` returns it.

    Attributes:
      stop_token_ids: tokens that end a text.
      folder: where it was found.
      family: its `model_type` there.
      generation_config: what else its files say of generating: defaults of sampling, and the tokens
        for the beginning of a text and for padding.

    >>> import jspec
    >>> target = jspec.load("zoo:target")
    >>> target.family
    'llama'
    """

    model: TransformerModel
    params: Params = field(repr=False)
    stop_token_ids: tuple[int, ...]
    folder: Path
    family: str
    generation_config: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The folder's transformers tokenizer, read when first used; None if it has none."""
        return read_tokenizer(self.folder)


def load(
    source: str | Path,
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> Checkpoint:
    """Reads a model, one tensor at a time. Opens no pickle and runs no code of the folder's.

    Raises `ValueError` for a model that cannot be computed or whose weights do not fit it, and
    `FileNotFoundError` where there is none.

    Args:
      source: a local folder, a name on the Hugging Face hub, or `zoo:NAME`.
      dtype: of all parameters: float32, bfloat16 or float16.
      mesh: where to put them; each device reads its own pieces of the files and no others.
      rules: which axes of the mesh shard which axes of parameters; `sharding.REPLICATED` puts the
        whole model on every device.
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
    stop_token_ids, generation = _read_generation(folder, config)
    stored = list_tensors(folder)
    layout = layout_of(config, stored)
    if layout is not None:
        raise ValueError(
            f"{folder} is a head of the {layout} layout, and no whole model: use it as a draft "
            "(--draft, load_head), beside the target that it was made for"
        )
    params = read_params(
        folder,
        stored,
        model,
        family.key,
        functools.partial(_check_tied, stored, family.keys),
        dtype=dtype,
        mesh=mesh,
        rules=rules,
    )
    return Checkpoint(model, params, stop_token_ids, folder, family.model_type, generation)


def save(
    folder: str | Path,
    model: TransformerModel,
    params: Params,
    *,
    tokenizer: TokenizerSource = None,
    stop_token_ids: tuple[int, ...] = (),
    generation_config: Mapping[str, Any] | None = None,
    dtype: Any = None,
    family: str | None = None,
) -> None:
    """Writes a model that `load` and transformers (4.56 and later) read; all of it, or nothing.

    In a launch of several processes all of them call it, and the first writes.

    Args:
      folder: where to; a model that is there is replaced, other files beside it stay.
      model: as `transformer` makes it.
      params: as `model.init` returns them.
      tokenizer: a folder to copy it from, or a tokenizer of transformers or tokenizers.
      stop_token_ids: tokens that end a text.
      generation_config: as `Checkpoint` has it.
      dtype: of the file; None for that of the embedding.
      family: the `model_type` to write; None for the first family, Llama before the others, that
        can describe the model.
    """
    if not isinstance(model, TransformerModel):
        name = type(getattr(model, "module", model)).__name__
        raise ValueError(f"model={name} has no such layout: Transformer has")
    weights = flat_params(model, params)
    written = fitting_family(model.config, family)
    dtype = float_dtype(params["embedding"].dtype if dtype is None else dtype)
    tokens = [int(token) for token in stop_token_ids]
    stop = {END: tokens[0] if len(tokens) == 1 else tokens or None}
    generation = {**(generation_config or {}), **stop}
    config = {
        **written.write_config(model.config),
        # Readers fill absent fields with the family's own tokens, so null is written too.
        **{name: generation.get(name) for name in OTHER_TOKENS},
        **stop,
        "torch_dtype": dtype.name,
        "dtype": dtype.name,
    }
    named = {written.key(path): x for path, x in weights.items()}
    tensors = {name: to_stored(x, dtype, name) for name, x in named.items()}
    if jax.process_index() == 0:
        with replacing(Path(folder)) as partial:
            write_json(partial / "config.json", config)
            write_json(partial / GENERATION, generation)
            write_tokenizer(partial, tokenizer, stop_token_ids=stop_token_ids)
            write_tensors(partial, tensors)
    multihost_utils.sync_global_devices("the model is written")


def _check_tied(
    stored: Mapping[str, Stored], keys: Mapping[str, str], name: str, tensor: Stored
) -> str | None:
    """What is wrong with an output matrix that is no parameter: it must be the embedding."""
    if name != keys["head.weight"]:
        return None
    embedding = stored.get(keys["embedding"])
    if embedding is None or not equal_tensors(embedding, tensor):
        return f"{name} differs from the embedding it is tied to"
    return ""


def _read_generation(
    folder: Path, config: dict[str, Any]
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The tokens that end a text, and what else is said of generating: from
    generation_config.json, and tokens that it does not name from config.json."""
    file = folder / GENERATION
    found = read_json(file) if file.is_file() else {}
    for name in (END, *OTHER_TOKENS):
        if found.get(name) is None and config.get(name) is not None:
            found[name] = config[name]
    stop = found.pop(END, None)
    tokens = [] if stop is None else stop if isinstance(stop, list) else [stop]
    if not all(type(token) is int and abs(token) <= LARGEST for token in tokens):
        raise ValueError(f"{folder}: eos_token_id={stop!r} must be a token's number, or a list")
    return tuple(tokens), found
