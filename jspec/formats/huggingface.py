"""Models in Hugging Face's layout: a folder of config.json, safetensors and a tokenizer."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jspec.formats.families import FAMILIES, family_of, fitting, key, read_config
from jspec.formats.fields import LARGEST
from jspec.formats.folder import TOKENIZER_FILES, read_json, replacing, write_json
from jspec.formats.tensors import write_tensors
from jspec.formats.tokenizer import TokenizerSource, read_tokenizer, write_tokenizer
from jspec.formats.weights import read_params
from jspec.models.protocol import LinenModel, Params
from jspec.models.transformer import Transformer, transformer
from jspec.sharding import RULES, Rules

FLOATS = ("float32", "bfloat16", "float16")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


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
    dtype = _float(dtype)
    folder = _find(source)
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
    params = read_params(folder, model, family, dtype, mesh, rules)
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
    weights = _check_params(model, params)
    family = fitting(model.config, family)
    dtype = _float(params["embedding"].dtype if dtype is None else dtype)
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
    tensors = {
        key(family, path): _here(weight).astype(dtype, "C", copy=False)
        for path, weight in weights.items()
    }
    if jax.process_index() == 0:
        with replacing(Path(folder)) as partial:
            write_json(partial / "config.json", config)
            write_json(partial / "generation_config.json", end)
            write_tokenizer(partial, tokenizer, end_of_text=end_of_text)
            write_tensors(partial, tensors)
    multihost_utils.sync_global_devices("the model is written")


def _find(source: str | Path) -> Path:
    """The local folder of a model, after downloading it if it has to be."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ValueError(f"source={str(source)!r} is a file: give the folder that holds it")
    if isinstance(source, Path) or not HUB_NAME.fullmatch(source):
        raise FileNotFoundError(f"source={str(source)!r}: no such folder")
    return _download(source)


def _download(name: str) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name,
                allow_patterns=["*.json", "*.safetensors", *TOKENIZER_FILES],
                ignore_patterns=["*/*", "consolidated*"],
            )
        )
    # The client raises its own, its transport's and the system's errors, by release.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"source={name!r} is no local folder, and the hub did not give it: a local folder "
            f"works without the hub ({type(error).__name__}: {reason})"
        ) from error


def _here(weight: Any) -> np.ndarray:
    """All of a parameter, of which other processes may hold parts."""
    if isinstance(weight, jax.Array) and not weight.is_fully_addressable:
        weight = multihost_utils.process_allgather(weight, tiled=True)
    return np.asarray(weight)


def _float(dtype: Any) -> np.dtype:
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    if known is None or known.name not in FLOATS:
        raise ValueError(f"dtype={dtype!r} is no dtype of weights: {', '.join(FLOATS)} are")
    return known


def _read_end(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """The tokens that end a text: generation_config.json's word, else config.json's."""
    generation = folder / "generation_config.json"
    end = read_json(generation).get("eos_token_id") if generation.is_file() else None
    end = config.get("eos_token_id") if end is None else end
    tokens = [] if end is None else end if isinstance(end, list) else [end]
    if not all(type(token) is int and abs(token) <= LARGEST for token in tokens):
        raise ValueError(f"{folder}: eos_token_id={end!r} must be a token's number, or a list")
    return tuple(tokens)


def _check_params(model: LinenModel, params: Params) -> dict[tuple[str, ...], jax.Array]:
    """The parameters by their paths, when they are the model's."""
    module = getattr(model, "module", model)
    if not isinstance(module, Transformer):
        raise ValueError(f"model={type(module).__name__} has no such layout: Transformer has")
    shapes = flatten_dict(jax.eval_shape(model.init, jax.random.key(0)))
    given = flatten_dict(params)
    wrong = sorted(
        {".".join(path) for path in shapes.keys() ^ given.keys()}
        | {".".join(p) for p in shapes.keys() & given if shapes[p].shape != given[p].shape}
    )
    if wrong:
        raise ValueError(f"params do not fit the model at {', '.join(wrong)}: give model.init's")
    return given
