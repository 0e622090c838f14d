"""Stop networks as two files: a description and the weights.

They are in a folder of their own, or beside the draft, where readers of models ignore them. The
weights' file holds the description too: one that is written over another is whole at every moment.
"""

import json
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jspec.formats.fields import LARGEST, Fields, number
from jspec.formats.folder import read_json, write_json, writing
from jspec.formats.weights import file_about, file_tensors, write_tensors
from jspec.models.protocol import Params
from jspec.models.stop_networks import (
    DISTRIBUTION_SIZES,
    NETWORKS,
    PUBLISHED_THRESHOLD,
    StopNetwork,
)

ABOUT, WEIGHTS = "decision.json", "decision.safetensors"
INSIDE = "decision"  # the description's name in the file of the weights
# Earlier files call the kind that reads the draft's distribution so.
EARLIER_KINDS = {"law": "distribution"}
FIELDS = ("kind", "sizes", "threshold", "width", "temperatures")
STORED = "F32"


@dataclass(frozen=True, eq=False)
class Decision:
    """A trained stop network, and for which draft.

    Attributes:
      params: as `network.init` returns them.
      width: of its draft's hidden states.
      temperatures: of the texts that it was trained on.
      threshold: the score above which another level is drafted.

    >>> network = NETWORKS["distribution"](DISTRIBUTION_SIZES)
    >>> Decision(network, (), 768, temperatures=(0.0, 1.0)).threshold
    0.4
    """

    network: StopNetwork
    params: Params
    width: int
    temperatures: tuple[float, ...]
    threshold: float = PUBLISHED_THRESHOLD


def save_decision(folder: str | Path, decision: Decision) -> None:
    """Writes both files over those that are there; other files beside them stay."""
    folder = Path(folder).expanduser()
    decision.network.check_params(decision.params)
    tensors = {
        f"layers.{layer}.{name}": np.asarray(x, np.float32)
        for layer, weights in enumerate(decision.params)
        for name, x in weights.items()
    }
    about = {
        "kind": decision.network.kind,
        "sizes": list(decision.network.sizes),
        "threshold": decision.threshold,
        "width": decision.width,
        "temperatures": list(decision.temperatures),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / WEIGHTS) as partial:
        write_tensors(folder, tensors, partial.name, about={INSIDE: json.dumps(about)})
        # From here until it is there again, the weights' own description counts.
        (folder / ABOUT).unlink(missing_ok=True)
    write_json(folder / ABOUT, about)


def has_decision(folder: Path) -> bool:
    """Whether a folder has one of the two files."""
    return any((folder / name).is_file() for name in (ABOUT, WEIGHTS))


def load_decision(folder: str | Path, *, width: int | None = None) -> Decision:
    """Reads what `save_decision` wrote, checked to the last key.

    Raises `ValueError` that names the field or tensor that is wrong.

    Args:
      width: of the hidden states of the draft; a network for another width is refused.
    """
    folder = Path(folder).expanduser()
    about, weights = folder / ABOUT, folder / WEIGHTS
    try:
        decision = _read_about(_description(folder))
    except ValueError as error:
        raise ValueError(f"{about}: {str(error).removeprefix(f'{about} ')}") from None
    if width is not None and decision.width != width:
        raise ValueError(
            f"{about}: width={decision.width}, and the draft's hidden states have {width}: train "
            "one for this draft by jspec decide"
        )
    params = _read_weights(weights, decision.network)
    return replace(decision, params=params)


def _description(folder: Path) -> Fields:
    """What decision.json says; where a process was ended before it was there, what the weights say
    of themselves."""
    about, weights = folder / ABOUT, folder / WEIGHTS
    inside = None
    if not about.is_file() and weights.is_file():
        inside = file_about(weights).get(INSIDE)
    for file in (about, weights):
        if not file.is_file() and not (file == about and inside):
            raise FileNotFoundError(
                f"{folder} has no {file.name}: jspec decide writes {ABOUT} and {WEIGHTS}"
            )
    return json.loads(inside) if inside else read_json(about)


def _read_about(fields: Fields) -> Decision:
    """Everything but the weights."""
    for name in FIELDS:
        if name not in fields:
            raise ValueError(f"{name} is missing: write it again by jspec decide")
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} is not known: {', '.join(FIELDS)} are")
    kind, sizes, threshold = (fields[name] for name in ("kind", "sizes", "threshold"))
    kind = EARLIER_KINDS.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise ValueError(f"kind={kind!r} is not known: {' or '.join(NETWORKS)} is")
    whole = isinstance(sizes, list) and all(type(x) is int and 0 < x <= LARGEST for x in sizes)
    if not whole:
        raise ValueError(f"sizes={sizes!r}: give positive whole numbers, from the input to 1")
    if not _is_number(threshold) or not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold!r}: must be between 0 (never stop) and 1")
    network, width = NETWORKS[kind](tuple(sizes)), number(fields, "width")
    read = width if kind == "hidden" else DISTRIBUTION_SIZES[0]
    if sizes[0] != read:
        raise ValueError(f"sizes={sizes}: a network of kind={kind!r} reads {read} numbers here")
    return Decision(network, (), width, _temperatures(fields["temperatures"]), threshold)


def _temperatures(given: Any) -> tuple[float, ...]:
    if (
        not isinstance(given, list)
        or not given
        or not all(_is_number(x) and 0 <= x <= sys.float_info.max for x in given)
    ):
        raise ValueError(f"temperatures={given!r}: give a list of numbers that are not negative")
    return tuple(map(float, given))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_weights(file: Path, network: StopNetwork) -> Params:
    """The parameters of the network, in memory, so that any device can use them."""
    layers = list(enumerate(pairwise(network.sizes)))
    shapes = {f"layers.{layer}.weight": (out, into) for layer, (into, out) in layers}
    shapes |= {f"layers.{layer}.bias": (out,) for layer, (_, out) in layers}
    stored = {tensor.key: tensor for tensor in file_tensors(file)}
    if stored.keys() != shapes.keys():
        differing = ", ".join(sorted(stored.keys() ^ shapes.keys()))
        raise ValueError(
            f"{file}: {differing} is missing or not known: a network of sizes "
            f"{list(network.sizes)} has weight and bias of layers.0 to layers.{len(layers) - 1}"
        )
    read = {}
    for key, shape in shapes.items():
        tensor = stored[key]
        if (tensor.shape, tensor.dtype) != (shape, STORED):
            raise ValueError(
                f"{file}: {key} is {tensor.dtype} {list(tensor.shape)}, and {ABOUT} says {STORED} "
                f"{list(shape)}: write both again by jspec decide"
            )
        read[key] = tensor.read()
        if not np.isfinite(read[key]).all():
            raise ValueError(
                f"{file}: {key} holds numbers that are not finite: write it again by jspec decide"
            )
    names = ("weight", "bias")
    return tuple({name: read[f"layers.{layer}.{name}"] for name in names} for layer, _ in layers)
