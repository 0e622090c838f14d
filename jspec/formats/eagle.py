"""EAGLE's heads and FSPAD's as their authors wrote them: `config.json` and keys, both ways.

The configuration is a Llama's of one layer. The keys are that layer's, which has no norm before
attention, beside those of the matrix that fuses embedding and feature, in this order. Which of the
four heads it is, the keys and the height of the last matrix tell.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from jspec.config import ModelConfig
from jspec.formats import families, llama
from jspec.formats.embedding import unlike
from jspec.formats.fields import Fields, flag
from jspec.formats.tensors import Stored
from jspec.models.heads import FeatureLayer, Head
from jspec.models.protocol import EmbeddingModel, Params

MODULE, OF = FeatureLayer, "EAGLE or FSPAD"
EMBEDDING = "embed_tokens.weight"
DOWN = "layers.0.mlp.down_proj.weight"
# Ours and theirs.
LAYER = {
    ours.removeprefix("layer_{}."): theirs.removeprefix("model.").format(0)
    for ours, theirs in llama.KEYS.items()
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


def keys(head: Head, names: Iterable[str] = ()) -> dict[str, str]:
    """Keys in the file by paths in our tree."""
    return {**LAYER, **(SAMPLED if head.module.sampling else FUSED)}


def spare(
    head: Head, target: EmbeddingModel, params: Params, name: str, tensor: Stored
) -> str | None:
    """What is wrong with a tensor that is no parameter; None if it does not belong there."""
    return unlike(name, tensor, target, params) if name == EMBEDDING else None


def read_head(
    config: Fields, stored: Mapping[str, Stored], target: EmbeddingModel, params: Params
) -> Head:
    """The head that a folder holds; raises `ValueError` that names the field or the key."""
    found = read_config(config)
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
    return Head(FeatureLayer(found, sampling, rows == (2 * found.width,), bias), found)


def write_head(head: Head, rest: Mapping[str, Any], served: Any = None) -> dict[str, Any]:
    """The `config.json` of a head; raises `ValueError` for one that this layout does not hold.

    Args:
      rest: fields that every configuration has.
    """
    config = head.config
    try:
        again = read_config(write_config(config))
    except ValueError as error:
        raise ValueError(f"head: {error}") from None
    names = [name for name, value in vars(config).items() if getattr(again, name) != value]
    if names:
        fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in names)
        raise ValueError(f"head has {fields}, which the layout of EAGLE has not: change it")
    # True is left unsaid: readers made for Llama take the field for biases of attention.
    bias = {} if head.module.bias else {"bias": False}
    return {**write_config(config), **bias, **rest}


def read_config(config: Fields) -> ModelConfig:
    """The layer that a `config.json` describes."""
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2"):
        raise ValueError(f"model_type={kind!r} is not read where a head is: llama and qwen2 are")
    found = families.read_config(config)
    if found.layers != 1:
        raise ValueError(
            f"num_hidden_layers={found.layers}: a head of this layout has 1, so take another head"
        )
    if found.window is not None:
        raise ValueError(f"sliding_window={found.window}: a head sees all, so it must be null")
    if found.feedforward_bias:
        raise ValueError("mlp_bias=true: a head of this layout has none")
    return replace(found, attention_bias=flag(config, "qkv_bias", found.attention_bias))


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The same fields as they write them."""
    alone = config.attention_bias and not config.out_bias
    return llama.write_config(config) | (
        {"attention_bias": False, "qkv_bias": True} if alone else {}
    )
