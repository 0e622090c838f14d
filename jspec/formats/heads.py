"""Heads as folders, in the layouts in which they are exchanged, checked to the last key."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jspec.formats.eagle import EAGLE
from jspec.formats.eagle3 import EAGLE3, SPECULATORS, SPECULATORS_TYPE
from jspec.formats.fields import Fields
from jspec.formats.folder import find, read_json, replacing, write_json
from jspec.formats.head_layout import (
    EMBEDDING,
    HeadLayout,
    Serving,
    embedding_shape,
    place_d2t,
    read_d2t,
    write_d2t,
)
from jspec.formats.weights import (
    Stored,
    flat_params,
    float_dtype,
    list_tensors,
    read_params,
    to_stored,
    write_tensors,
)
from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import EmbeddingModel, Params
from jspec.models.transformer import check_layers
from jspec.parallel.sharding import RULES, Rules, check

# A head is written in the first layout that holds it, unless another is asked for.
LAYOUTS: dict[str, HeadLayout] = {layout.name: layout for layout in (EAGLE, EAGLE3, SPECULATORS)}


@dataclass(frozen=True, eq=False)
class HeadCheckpoint:
    """A head that was read, as `load_head` returns it.

    Attributes:
      folder: where it was found.
      format: its layout there, a name of `LAYOUTS`.
      d2t: as `HeadParams` has it.

    >>> import jspec
    >>> target = jspec.load("zoo:target")
    >>> head = jspec.load_head("zoo:eagle", target.model, target.params)
    >>> head.format, head.head.kind
    ('eagle', 'eagle')
    """

    head: Head
    params: Params = field(repr=False)
    folder: Path
    format: str
    d2t: Array | None = field(default=None, repr=False)

    def params_for(self, target: Params) -> HeadParams:
        """What it drafts with, given its target's parameters."""
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

    Raises `ValueError` where the head's hidden size, vocabulary or embedding is not the target's,
    and for every key and shape that does not fit.

    Args:
      source: a local folder, a name on the Hugging Face hub, or `zoo:NAME`.
      target: whose hidden states, embedding and output matrix it uses.
      params: the target's.
      dtype, mesh, rules: as `load` takes them.
    """
    dtype = float_dtype(dtype)
    folder = find(source)
    config, stored, layout = _open(folder)
    try:
        head = layout.read_head(config, stored, target, params)
        check_target(head, target, params)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    if mesh is not None:
        check(mesh, head.module, rules)
    own = read_params(
        folder,
        stored,
        head,
        _key_of(layout.keys(head, stored)),
        functools.partial(layout.check_extra, head, target, params),
        dtype=dtype,
        mesh=mesh,
        rules=rules,
    )
    try:
        d2t = place_d2t(read_d2t(head, stored), mesh)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    return HeadCheckpoint(head, own, folder, layout.name, d2t)


def save_head(
    folder: str | Path,
    head: Head,
    params: Params,
    *,
    d2t: Array | None = None,
    embedding: Any = None,
    dtype: Any = None,
    format: str | None = None,  # noqa: A002
    serving: Serving | None = None,
) -> None:
    """Writes a head that `load_head` and the layout's other readers read; all of it, or nothing.

    In a launch of several processes all of them call it, and the first writes.

    Args:
      folder: where to; a head that is there is replaced, other files beside it stay.
      params: as `head.init` returns them.
      d2t: as `HeadParams` has it, of a head that has fewer tokens than the target.
      embedding: `[V, D]` the target's. Other readers expect it in the file, ours do not; the layout
        `speculators` must have it. Of a head with an embedding of its own, that one is written.
      dtype: of the file; None for that of the parameters.
      format: the layout to write, a name of `LAYOUTS`; None for `native_format`.
      serving: how vLLM serves it, which the layout `speculators` must have.
    """
    layout = _layout_for(head, native_format(head) if format is None else format)
    weights = flat_params(head, params)
    dtype = float_dtype(jax.tree.leaves(params)[0].dtype if dtype is None else dtype)
    config = layout.write_head(head, _shared_fields(dtype), serving)
    key = _key_of(layout.keys(head, ()))
    tensors = {key(path): to_stored(x, dtype, key(path)) for path, x in weights.items()}
    if EMBEDDING not in tensors and embedding is not None:
        shape = (head.config.vocab_size, head.config.hidden_size)
        if embedding.shape != shape:
            raise ValueError(
                f"embedding is {embedding.shape}, and the head's target has {shape}: give that of "
                "the target that it was made for"
            )
        tensors[EMBEDDING] = to_stored(embedding, dtype, EMBEDDING)
    if layout.needs_embedding and EMBEDDING not in tensors:
        raise ValueError(
            f"embedding=None: the layout of {layout.name} holds the target's, so give it"
        )
    tensors |= write_d2t(head, d2t, always=layout.always_d2t)
    if jax.process_index() == 0:
        with replacing(Path(folder)) as partial:
            write_json(partial / "config.json", config)
            write_tensors(partial, tensors)
    multihost_utils.sync_global_devices("the head is written")


def check_target(head: Head, target: EmbeddingModel, params: Params) -> None:
    """Raises `ValueError` for a head of other sizes, or that reads layers that are not there."""
    vocab_size, width = embedding_shape(target, params)
    same_width = head.target_hidden_size == head.config.hidden_size
    sizes = {
        "hidden_size" if same_width else "target_hidden_size": (head.target_hidden_size, width),
        "vocab_size": (head.config.vocab_size, vocab_size),
    }
    for name, (own, wanted) in sizes.items():
        if own != wanted:
            raise ValueError(
                f"{name}={own}, and the target's is {wanted}: take the target that the head was "
                "made for, or a head that was made for this one"
            )
    check_layers(head.layers, target.config.num_hidden_layers)


def layout_of(config: Fields, names: Iterable[str]) -> str | None:
    """The name in `LAYOUTS` for a `config.json` and names of tensors; None for a whole model."""
    names = tuple(names)

    def some(*beginnings: str) -> bool:
        return any(name.startswith(beginnings) for name in names)

    if SPECULATORS_TYPE in config:
        return SPECULATORS.name
    if some("midlayer.", "d2t", "t2d", "hidden_norm.", "layers.0.hidden_norm."):
        return EAGLE3.name
    # A layer without a last norm is a head that lost its first matrix.
    alone = some("layers.0.self_attn.") and "norm.weight" not in names
    return EAGLE.name if some("fc.") or alone else None


def head_layout(source: str | Path) -> str | None:
    """`layout_of` a folder or a hub name; None for anything that is no head."""
    folder = find(source)
    if not (folder / "config.json").is_file():
        return None
    return layout_of(read_json(folder / "config.json"), list_tensors(folder))


def native_format(head: Head) -> str:
    """The name in `LAYOUTS` of the one that a head's authors write."""
    return formats_for(head)[0]


def formats_for(head: Head) -> list[str]:
    """The names in `LAYOUTS` of all that hold such a head."""
    return [name for name, layout in LAYOUTS.items() if isinstance(head.module, layout.module)]


def _open(folder: Path) -> tuple[dict[str, Any], dict[str, Stored], HeadLayout]:
    """A head's configuration, its tensors and its layout."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: a head's folder holds it and weights"
        )
    config, stored = read_json(folder / "config.json"), list_tensors(folder)
    layout = layout_of(config, stored)
    if layout is None:
        raise ValueError(
            f"{folder} holds no head, which has keys such as fc.weight: a whole model is read by "
            "load, and --draft takes it as it is"
        )
    return config, stored, LAYOUTS[layout]


def _layout_for(head: Head, name: str) -> HeadLayout:
    """A layout by its name; raises `ValueError` where it does not hold such a head."""
    if name not in LAYOUTS:
        raise ValueError(f"format={name!r} is not known: {', '.join(LAYOUTS)} are")
    layout = LAYOUTS[name]
    if not isinstance(head.module, layout.module):
        own = LAYOUTS[native_format(head)].heads
        raise ValueError(
            f"format={name!r} holds heads of {layout.heads}, and this is one of {own}, which "
            f"cannot become the other: take {' or '.join(formats_for(head))}"
        )
    return layout


def _key_of(keys: dict[str, str]) -> Callable[[tuple[str, ...]], str]:
    return lambda path: keys[".".join(path)]


def _shared_fields(dtype: np.dtype) -> dict[str, Any]:
    """Fields of every `config.json`; readers would fill absent ones with a family's own."""
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {**tokens, "torch_dtype": dtype.name, "dtype": dtype.name}
