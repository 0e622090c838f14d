"""What a model family is, and the keys and fields that most families share with Llama."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jspec.config import CHOICES, ModelConfig, RopeScaling
from jspec.formats.fields import Fields, choice, flag, number, refuse


@dataclass(frozen=True, eq=False)
class Family:
    """A family of models in Hugging Face's layout.

    Attributes:
      model_type: of its `config.json`.
      keys: from the names of our parameters to those of the files; `{}` is the number of a layer.
        Weights are `[out, in]` on both sides, so that nothing is transposed.
      read_config: the model that a `config.json` describes; raises `ValueError` that names the
        field for what we cannot compute.
      write_config: the architecture part of a `config.json`, as transformers 4 and 5 read it.

    >>> from jspec.formats.llama import LLAMA
    >>> LLAMA.key(("layer_3", "feedforward", "up", "weight"))
    'model.layers.3.mlp.up_proj.weight'
    """

    model_type: str
    keys: Mapping[str, str]
    read_config: Callable[[Fields], ModelConfig]
    write_config: Callable[[ModelConfig], dict[str, Any]]

    def key(self, path: tuple[str, ...]) -> str:
        """A parameter's key in the file, from its path in our tree."""
        name = ".".join(path)
        layer = re.match(r"layer_(\d+)\.", name)
        if layer is None:
            return self.keys[name]
        return self.keys["layer_{}." + name[layer.end() :]].format(layer[1])


KEYS = {
    "embedding": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "layer_{}.attention_norm.weight": "model.layers.{}.input_layernorm.weight",
    "layer_{}.attention.query.weight": "model.layers.{}.self_attn.q_proj.weight",
    "layer_{}.attention.key.weight": "model.layers.{}.self_attn.k_proj.weight",
    "layer_{}.attention.value.weight": "model.layers.{}.self_attn.v_proj.weight",
    "layer_{}.attention.out.weight": "model.layers.{}.self_attn.o_proj.weight",
    "layer_{}.feedforward_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "layer_{}.feedforward.gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "layer_{}.feedforward.up.weight": "model.layers.{}.mlp.up_proj.weight",
    "layer_{}.feedforward.down.weight": "model.layers.{}.mlp.down_proj.weight",
}
INPUT_BIASES = {
    "layer_{}.attention.query.bias": "model.layers.{}.self_attn.q_proj.bias",
    "layer_{}.attention.key.bias": "model.layers.{}.self_attn.k_proj.bias",
    "layer_{}.attention.value.bias": "model.layers.{}.self_attn.v_proj.bias",
}
OUTPUT_BIAS = {"layer_{}.attention.out.bias": "model.layers.{}.self_attn.o_proj.bias"}
QK_NORMS = {
    "layer_{}.attention.query_norm.weight": "model.layers.{}.self_attn.q_norm.weight",
    "layer_{}.attention.key_norm.weight": "model.layers.{}.self_attn.k_norm.weight",
}


def read_decoder(config: Fields, *, activation: str = "hidden_act") -> dict[str, Any]:
    """The fields of `ModelConfig` that all of them have; `activation` is their name for it."""
    refuse(config, use_bidirectional_attention=False, dual_chunk_attention_config=None)
    width, heads = number(config, "hidden_size"), number(config, "num_attention_heads")
    return {
        "vocab_size": number(config, "vocab_size"),
        "hidden_size": width,
        "intermediate_size": number(config, "intermediate_size"),
        "num_hidden_layers": number(config, "num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": number(config, "num_key_value_heads", heads),
        "head_dim": number(config, "head_dim", width // heads),
        "max_position_embeddings": number(config, "max_position_embeddings", 2048),
        "hidden_act": choice(config, activation, CHOICES["hidden_act"], "silu"),
        "norm_eps": number(config, "rms_norm_eps", 1e-6, kind=float),
        "tie_word_embeddings": flag(config, "tie_word_embeddings"),
    }


def write_decoder(
    config: ModelConfig, architecture: str, model_type: str, *, activation: str = "hidden_act"
) -> dict[str, Any]:
    """The same fields as a `config.json` holds them."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        activation: config.hidden_act,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


FULL, SLIDING = "full_attention", "sliding_attention"


def read_windows(config: Fields, default: Sequence[str]) -> dict[str, Any]:
    """`sliding_window` and `sliding_layers`, from `layer_types`, or else from the default."""
    layers = number(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    kinds = list(default) if kinds is None else kinds
    known = isinstance(kinds, list) and all(kind in (FULL, SLIDING) for kind in kinds)
    if not known or len(kinds) != layers:
        raise ValueError(f"layer_types={kinds!r} is not read: {layers} times {FULL} or {SLIDING}")
    sliding = tuple(i for i, kind in enumerate(kinds) if kind == SLIDING)
    if not sliding:
        return {"sliding_window": None, "sliding_layers": ()}
    if config.get("sliding_window") is None:
        raise ValueError(f"layer_types has {SLIDING}, but sliding_window is off: give its size")
    return {"sliding_window": number(config, "sliding_window"), "sliding_layers": sliding}


def layer_types(config: ModelConfig) -> list[str]:
    """Each layer's kind in their words."""
    layers = range(config.num_hidden_layers)
    return [SLIDING if i in config.sliding_layers else FULL for i in layers]


ROPE_FIELDS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
}


def read_rope(config: Fields, default: float = 10_000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, from transformers 4's fields, 5's, or both if they agree."""
    refuse(config, partial_rotary_factor=1.0)
    spellings = [_group(config, name) for name in ("rope_scaling", "rope_parameters")]
    scalings = {_read_scaling(fields, config) for fields in spellings if fields} or {None}
    thetas = {
        number(fields, "rope_theta", kind=float)
        for fields in (config, *spellings)
        if fields.get("rope_theta") is not None
    } or {default}
    if len(scalings) > 1 or len(thetas) > 1:
        names = ("rope_theta", "rope_scaling", "rope_parameters")
        said = ", ".join(f"{name}={config[name]}" for name in names if config.get(name) is not None)
        raise ValueError(f"{said} disagree: keep one of them")
    return {"rope_theta": thetas.pop(), "rope_scaling": scalings.pop()}


def write_rope(config: ModelConfig) -> dict[str, Any]:
    """Theta and scaling in both spellings."""
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": write_scaling(config.rope_scaling),
        "rope_parameters": rope_parameters(config.rope_theta, config.rope_scaling),
    }


def rope_parameters(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Theta and scaling as transformers 5 spells them."""
    return {**(write_scaling(scaling) or {"rope_type": "default"}), "rope_theta": theta}


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Scaling as transformers 4 spells it."""
    if scaling is None:
        return None
    if scaling.linear:
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }


def _group(config: Fields, name: str) -> Fields:
    """A field that holds fields."""
    fields = config.get(name) or {}
    if not isinstance(fields, dict):
        raise ValueError(f"{name}={fields!r} must be an object, or absent")
    return fields


def _read_scaling(fields: Fields, config: Fields) -> RopeScaling | None:
    unknown = sorted(set(fields) - ROPE_FIELDS)
    kind = fields.get("rope_type", fields.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(f"rope_type={kind!r} is not read: default, linear and llama3 are")
    if unknown:
        raise ValueError(f"rope field {', '.join(unknown)} is not read")
    refuse(fields, partial_rotary_factor=1.0)
    if kind == "default":
        return None
    factor = number(fields, "factor", kind=float)
    if kind == "linear":
        return RopeScaling(factor)
    low = number(fields, "low_freq_factor", kind=float)
    high = number(fields, "high_freq_factor", kind=float)
    if high <= low:
        raise ValueError(f"high_freq_factor={high} must be above low_freq_factor={low}")
    context = config.get("max_position_embeddings")
    original = number(fields, "original_max_position_embeddings", context)
    return RopeScaling(factor, low, high, original)
