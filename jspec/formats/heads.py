"""Heads that read features, in the layouts in which they are exchanged, checked to the last key."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jspec.formats import eagle, eagle3, layouts, speculators
from jspec.formats.embedding import embedding_shape
from jspec.formats.folder import read_json, replacing, write_json
from jspec.formats.hub import find
from jspec.formats.speculators import Served
from jspec.formats.tensors import Stored, list_tensors, write_tensors
from jspec.formats.vocabulary import laid, read_vocabulary, write_vocabulary
from jspec.formats.weights import flat_params, float_dtype, read_params, stored_array
from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import EmbeddingModel, Params
from jspec.models.transformer import check_layers
from jspec.parallel.sharding import RULES, Rules, check

# By `layouts.HEADS`, the one that a head is written in if nothing is said before others of its
# kind. Each has MODULE and OF, which heads it holds, EMBEDDING, keys, spare, read_head, write_head.
DIALECTS: dict[str, ModuleType] = {"eagle": eagle, "eagle3": eagle3, "speculators": speculators}


@dataclass(frozen=True, eq=False)
class HeadCheckpoint:
    """A head that was read.

    Attributes:
      folder: where it was found; format: its layout there, one of `DIALECTS`.
      d2t: as `HeadParams` has it.
    """

    head: Head
    params: Params
    folder: Path
    format: str
    d2t: Array | None = None

    def params_for(self, target: Params) -> HeadParams:
        """What it guesses with, given its target's parameters."""
        return HeadParams(self.params, target, self.d2t)


def load_head(
    source: str | Path,
    target: EmbeddingModel,
    params: Params,
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> HeadCheckpoint:
    """Reads a head, one tensor at a time, for the target that it was made for.

    Raises `ValueError` where the head's width, vocabulary or embedding is not the target's, and for
    every key and shape that does not fit.

    Args:
      source: a local folder, or a name on the Hugging Face hub.
      target: whose features, embedding and head it uses; params: the target's.
      dtype, mesh, rules: as `load` has them.
    """
    dtype = float_dtype(dtype)
    folder = find(source)
    config, stored, layout = _open(folder)
    dialect = DIALECTS[layout]
    try:
        head = dialect.read_head(config, stored, target, params)
        check_target(head, target, params)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    if mesh is not None:
        check(mesh, head.module, rules)
    own = read_params(
        folder,
        stored,
        head,
        _names(dialect.keys(head, stored)),
        functools.partial(dialect.spare, head, target, params),
        dtype=dtype,
        mesh=mesh,
        rules=rules,
    )
    try:
        d2t = laid(read_vocabulary(head, stored), mesh)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return HeadCheckpoint(head, own, folder, layout, d2t)


def save_head(
    folder: str | Path,
    head: Head,
    params: Params,
    *,
    d2t: Array | None = None,
    embedding: Any = None,
    dtype: Any = None,
    format: str | None = None,
    served: Served | None = None,
) -> None:
    """Writes a head that `load_head` and the layout's other readers read. All of it, or nothing.

    In a launch of several processes all of them call it, and the first writes.

    Args:
      folder: where to; a head that is there is replaced, other files beside it stay.
      params: as `head.init` gives them.
      d2t: as `HeadParams` has it, of a head that has fewer tokens than the target.
      embedding: `[V, D]` the target's, which other readers expect in the file, and those of
        `speculators` must have; ours do not. Of a head with its own, that one is written.
      dtype: of the file; when None, that of the parameters.
      format: the layout to write, one of `DIALECTS`; when None, `own_format`.
      served: what vLLM is told, in the layout of `speculators`, which has to have it.
    """
    format = own_format(head) if format is None else format
    dialect = _holding(head, format)
    weights = flat_params(head, params)
    dtype = float_dtype(jax.tree.leaves(params)[0].dtype if dtype is None else dtype)
    config = dialect.write_head(head, _rest(dtype), served)
    name = _names(dialect.keys(head))
    tensors = {name(path): stored_array(x, dtype) for path, x in weights.items()}
    if dialect.EMBEDDING not in tensors and embedding is not None:
        shape = (head.config.vocabulary, head.config.width)
        if embedding.shape != shape:
            raise ValueError(
                f"embedding is {embedding.shape}, and the head's target has {shape}: give that of "
                "the target that it was made for"
            )
        tensors[dialect.EMBEDDING] = stored_array(embedding, dtype)
    if dialect is speculators and dialect.EMBEDDING not in tensors:
        raise ValueError("embedding=None: the layout of speculators holds the target's, so give it")
    tensors |= write_vocabulary(head, d2t, always=dialect is eagle3)
    if jax.process_index() == 0:
        with replacing(Path(folder)) as partial:
            write_json(partial / "config.json", config)
            write_tensors(partial, tensors)
    multihost_utils.sync_global_devices("the head is written")


def check_target(head: Head, target: EmbeddingModel, params: Params) -> None:
    """Raises `ValueError` for a head that is not of the target's sizes, or reads layers that it
    has not."""
    vocabulary, width = embedding_shape(target, params)
    alike = head.target_width == head.config.width
    sizes = {
        "hidden_size" if alike else "target_hidden_size": (head.target_width, width),
        "vocab_size": (head.config.vocabulary, vocabulary),
    }
    for field, (own, wanted) in sizes.items():
        if own != wanted:
            raise ValueError(
                f"{field}={own}, and the target's is {wanted}: take the target that the head was "
                "made for, or a head that was made for this one"
            )
    check_layers(head.layers, target.config.layers)


def head_layout(source: str | Path) -> str | None:
    """The layout of a folder that holds a head, whether it is read or not; None for others."""
    folder = find(source)
    if not (folder / "config.json").is_file():
        return None
    return layouts.layout_of(read_json(folder / "config.json"), list_tensors(folder))


def own_format(head: Head) -> str:
    """The layout, one of `DIALECTS`, that a head's authors wrote."""
    return formats(head)[0]


def formats(head: Head) -> list[str]:
    """All layouts, of `DIALECTS`, that hold such a head."""
    return [name for name, one in DIALECTS.items() if isinstance(head.module, one.MODULE)]


def _open(folder: Path) -> tuple[dict[str, Any], dict[str, Stored], str]:
    """A head's configuration, its tensors and its layout."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: a head's folder holds it and weights"
        )
    config, stored = read_json(folder / "config.json"), list_tensors(folder)
    layout = layouts.layout_of(config, stored)
    if layout is None:
        raise ValueError(
            f"{folder} holds no head, which has keys such as fc.weight: a whole model is read by "
            "load, and --draft takes it as it is"
        )
    return config, stored, layout


def _holding(head: Head, format: str) -> ModuleType:
    """What writes a layout; raises `ValueError` where that does not hold such a head."""
    if format not in DIALECTS:
        raise ValueError(f"format={format!r} is not known: {', '.join(DIALECTS)} are")
    dialect = DIALECTS[format]
    if not isinstance(head.module, dialect.MODULE):
        of = DIALECTS[own_format(head)].OF
        raise ValueError(
            f"format={format!r} holds heads of {dialect.OF}, and this is one of {of}, which cannot "
            f"become the other: take {' or '.join(formats(head))}"
        )
    return dialect


def _names(keys: dict[str, str]) -> Callable[[tuple[str, ...]], str]:
    return lambda path: keys[".".join(path)]


def _rest(dtype: np.dtype) -> dict[str, Any]:
    """Fields that every `config.json` has; absent ones would be filled with a family's own."""
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {**tokens, "torch_dtype": dtype.name, "dtype": dtype.name}
