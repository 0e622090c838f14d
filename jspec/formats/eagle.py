"""EAGLE's heads and FSPAD's, in their authors' layout: `config.json` and keys, both ways.

The configuration is that of a Llama of one layer. The keys are those of the layer, which has no
norm before attention, and those of the matrix that fuses embedding and feature, in this order. The
keys and the rows of the last matrix say which of the four heads it is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jspec.config import ModelConfig
from jspec.formats import families
from jspec.formats.fields import Fields, flag
from jspec.formats.head_layout import (
    EMBEDDING,
    HeadLayout,
    Serving,
    check_written,
    embedding_difference,
)
from jspec.formats.llama import LLAMA
from jspec.formats.weights import Stored
from jspec.models.heads import FeatureLayer, Head
from jspec.models.protocol import EmbeddingModel, Params

DOWN = "layers.0.mlp.down_proj.weight"
# From our parameters to theirs.
LAYER = {
    ours.removeprefix("layer_{}."): theirs.removeprefix("model.").format(0)
    for ours, theirs in LLAMA.keys.items()
    if ours.startswith("layer_{}.") and "attention_norm" not in ours
}
FUSED = {"fuse.weight": "fc.weight", "fuse.bias": "fc.bias"}
SAMPLED = {
    "fuse.weight": "fc.fc.weight",
    "fuse.bias": "fc.fc.bias",
    "sampling.gate.weight": "fc.mlp.gate_proj.weight",
    "sampling.up.weight": "fc.mlp.up_proj.weight",
    "sampling.down.weight": "fc.mlp.down_proj.weight",
    "sampling_norm.weight": "fc.post_attention_layernorm.weight",
}


def _keys(head: Head, _names: Iterable[str]) -> dict[str, str]:
    return {**LAYER, **(SAMPLED if head.module.sampling else FUSED)}


def _check_extra(
    _head: Head, target: EmbeddingModel, params: Params, name: str, tensor: Stored
) -> str | None:
    return embedding_difference(name, tensor, target, params) if name == EMBEDDING else None


def _read_head(
    config: Fields, stored: Mapping[str, Stored], _target: EmbeddingModel, _params: Params
) -> Head:
    found = _read_layer(config)
    sampling = any(name.startswith("fc.fc.") for name in stored)
    fused = SAMPLED if sampling else FUSED
    bias, name = flag(config, "bias", True), fused["fuse.bias"]
    if bias != (name in stored) and fused["fuse.weight"] in stored:
        there = "is there" if name in stored else "is missing"
        raise ValueError(
            f"bias={str(bias).lower()}, and {name} {there}: write "
            f'"bias": {str(not bias).lower()} if the head was trained so (true where it is absent)'
        )
    rows = stored[DOWN].shape[:1] if DOWN in stored else ()
    return Head(FeatureLayer(found, sampling, rows == (2 * found.hidden_size,), bias), found)


def _write_head(head: Head, rest: Mapping[str, Any], _serving: Serving | None) -> dict[str, Any]:
    config = head.config
    alone = config.attention_bias and not config.out_bias
    biases = {"attention_bias": False, "qkv_bias": True} if alone else {}
    written = {**LLAMA.write_config(config), **biases}
    check_written(config, "EAGLE", _read_layer, written)
    # True is not written: readers made for Llama take the field for biases of attention.
    return {**written, **({} if head.module.bias else {"bias": False}), **rest}


def _read_layer(config: Fields) -> ModelConfig:
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2"):
        raise ValueError(f"model_type={kind!r} is not read where a head is: llama and qwen2 are")
    found = families.read_config(config)
    if found.num_hidden_layers != 1:
        raise ValueError(
            f"num_hidden_layers={found.num_hidden_layers}: a head of this layout has 1, so take "
            "another head"
        )
    if found.sliding_window is not None:
        raise ValueError(
            f"sliding_window={found.sliding_window}: a head sees all, so it must be null"
        )
    if found.mlp_bias:
        raise ValueError("mlp_bias=true: a head of this layout has none")
    return replace(found, attention_bias=flag(config, "qkv_bias", found.attention_bias))


EAGLE = HeadLayout(
    "eagle", "EAGLE or FSPAD", FeatureLayer, _keys, _check_extra, _read_head, _write_head
)
