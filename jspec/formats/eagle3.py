"""EAGLE-3's heads in two layouts: the authors', and that of the speculators library.

SafeAILab, SpecForge and SGLang have the first: the configuration of a Llama of one layer, with
EAGLE-3's fields beside it. vLLM serves the second as it is: the layer's configuration is in
`transformer_layer_config`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jspec.config import ModelConfig
from jspec.formats import families
from jspec.formats.fields import Fields, flag, number, refuse
from jspec.formats.head_layout import (
    EMBEDDING,
    HeadLayout,
    Serving,
    check_d2t_tensor,
    check_written,
    embedding_difference,
)
from jspec.formats.llama import LLAMA
from jspec.formats.weights import Stored
from jspec.models.eagle3 import Eagle3, Eagle3Layer, eagle3, usual_layers
from jspec.models.heads import Head
from jspec.models.protocol import EmbeddingModel, Params

AUXILIARY, NESTED = "eagle_aux_hidden_state_layer_ids", "eagle_config"
# What ModelOpt writes about its heads, with the values that are EAGLE-3's.
MODELOPT = {
    "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "parallel_draft_step": 1,
}
# From our parameters to theirs.
OUTER = {
    "embedding": EMBEDDING,
    "fusion.weight": "fc.weight",
    "input_norm.weight": "input_norm.weight",
    "norm.weight": "norm.weight",
    "head.weight": "lm_head.weight",
}
INNER = {
    "embedding_norm.weight": "input_layernorm.weight",
    "feature_norm.weight": "hidden_norm.weight",
    **{
        ours.removeprefix("layer_{}."): theirs.removeprefix("model.layers.{}.")
        for ours, theirs in LLAMA.keys.items()
        if ours.startswith("layer_{}.") and "attention_norm" not in ours
    },
}
MIDLAYER, LAYERS = "midlayer.", "layers.0."


def _keys(head: Head, names: Iterable[str]) -> dict[str, str]:
    # ModelOpt writes the layer's names as speculators does.
    names = tuple(names)
    midlayer = any(name.startswith(MIDLAYER) for name in names)
    modelopt = any(name.startswith(LAYERS) for name in names) and not midlayer
    return _keys_below(LAYERS if modelopt else MIDLAYER, head)


def _keys_below(layer: str, head: Head) -> dict[str, str]:
    """The keys of a file in which those of the layer begin with `layer`."""
    norms = {f"layer_norm_{i}.weight": f"fc_norm.{i}.weight" for i in range(len(head.layers))}
    return {**OUTER, **norms, **{ours: layer + theirs for ours, theirs in INNER.items()}}


def _check_extra(
    head: Head, _target: EmbeddingModel, _params: Params, name: str, tensor: Stored
) -> str | None:
    # An embedding that is not the target's is the head's own, and so a parameter.
    return "" if name == EMBEDDING else check_d2t_tensor(head, name, tensor)


def _read_head(
    config: Fields, stored: Mapping[str, Stored], target: EmbeddingModel, params: Params
) -> Eagle3:
    layer = _read_layer(config)
    return _read_traits(
        config,
        layer,
        layers=_read_layer_numbers(config, target.config.num_hidden_layers),
        own_embedding=_has_own_embedding(stored, target, params),
        draft_vocab_size=number(config, "draft_vocab_size", layer.vocab_size),
        # The authors' code takes false where the field is absent.
        norm_before_residual=flag(config, "norm_before_residual"),
    )


def _has_own_embedding(
    stored: Mapping[str, Stored], target: EmbeddingModel, params: Params
) -> bool:
    tensor = stored.get(EMBEDDING)
    return tensor is not None and bool(embedding_difference(EMBEDDING, tensor, target, params))


def _read_traits(config: Fields, layer: ModelConfig, **known: Any) -> Eagle3:
    """`eagle3` of `layer`, what is `known`, and the fields that mean the same in both layouts."""
    refuse(config, num_aux_hidden_states=len(known["layers"]))
    if known["draft_vocab_size"] > layer.vocab_size:
        raise ValueError(
            f"draft_vocab_size={known['draft_vocab_size']} and vocab_size={layer.vocab_size}: a "
            "head has at most the target's tokens, which vocab_size counts"
        )
    width = number(config, "target_hidden_size", layer.hidden_size)
    if width != layer.hidden_size and not known["own_embedding"]:
        raise ValueError(
            f"target_hidden_size={width} and hidden_size={layer.hidden_size}, and {EMBEDDING} is "
            "missing or the target's: where the two differ a head has an embedding of its own"
        )
    return eagle3(
        layer,
        target_hidden_size=width,
        norm_output=flag(config, "norm_output"),
        fc_norm=flag(config, "fc_norm"),
        norm_before_fc=flag(config, "norm_before_fc"),
        **known,
    )


def _read_layer(config: Fields) -> ModelConfig:
    kind = config.get("model_type")
    if kind != "llama":
        raise ValueError(f"model_type={kind!r} is not read where an EAGLE-3 head is: llama is")
    refuse(config, tie_word_embeddings=False)
    found = families.read_config(config)
    if found.num_hidden_layers != 1:
        raise ValueError(
            f"num_hidden_layers={found.num_hidden_layers}: a head of this layout has 1, so take "
            "another head"
        )
    return found


def _read_layer_numbers(config: Fields, count: int) -> tuple[int, ...]:
    """The layers, of a target of `count`, whose inputs the head reads.

    At the top level, where vLLM looks, a number means the layer whose input is read, as ours do. In
    `eagle_config`, where SpecForge and ModelOpt write and SGLang adds 1, it means the layer whose
    output is read.
    """
    nested = config.get(NESTED) or {}
    if not isinstance(nested, dict):
        raise ValueError(f"{NESTED}={nested!r} must be an object, or absent")
    refuse(nested, **MODELOPT)
    places = {AUXILIARY: (config, 0), f"{NESTED}.{AUXILIARY}": (nested, 1)}
    found = {
        name: _layer_list(name, fields[AUXILIARY], offset, count)
        for name, (fields, offset) in places.items()
        if fields.get(AUXILIARY)
    }
    if len(set(found.values())) > 1:
        raise ValueError(
            f"{AUXILIARY}={config[AUXILIARY]} counts layers by their inputs and "
            f"{NESTED}.{AUXILIARY}={nested[AUXILIARY]} by their outputs, and they disagree: the "
            "second is to be 1 less, so keep the one that the head was trained with"
        )
    if found:
        return next(iter(found.values()))
    try:
        return usual_layers(count)
    except ValueError as error:
        raise ValueError(f"{AUXILIARY} is missing, and {error}") from None


def _layer_list(name: str, layers: Any, offset: int, count: int) -> tuple[int, ...]:
    """The layers of a field, as the numbers of those whose inputs are read."""
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise ValueError(f"{name}={layers!r} must be a list of layers")
    found = tuple(layer + offset for layer in layers)
    if not all(0 <= layer <= count for layer in found):
        raise ValueError(
            f"{name}={layers}: the target has {count} layers, so these are from {-offset} to "
            f"{count - offset}: take the target that the head was made for, or a head that was "
            "made for this one"
        )
    return found


def _write_head(head: Eagle3, rest: Mapping[str, Any], _serving: Serving | None) -> dict[str, Any]:
    return {
        **_write_layer(head),
        "architectures": ["LlamaForCausalLMEagle3"],
        **_write_traits(head),
        # vLLM multiplies it wherever it is present, so null would not do.
        "target_hidden_size": head.target_hidden_size,
        # One less, as `_read_layer_numbers` explains.
        NESTED: {"use_aux_hidden_state": True, AUXILIARY: [i - 1 for i in head.layers]},
        **rest,
    }


def _write_layer(head: Eagle3) -> dict[str, Any]:
    written = LLAMA.write_config(head.config)
    check_written(head.config, "EAGLE-3", _read_layer, written)
    return written


def _write_traits(head: Eagle3) -> dict[str, Any]:
    """EAGLE-3's fields; none is left to a reader's default."""
    module = head.module
    return {
        "draft_vocab_size": head.draft_vocab_size,
        "norm_before_residual": module.norm_before_residual,
        "norm_before_fc": module.norm_before_fc,
        "fc_norm": module.fc_norm,
        "norm_output": module.norm_output,
        AUXILIARY: list(head.layers),
    }


EAGLE3 = HeadLayout(
    "eagle3",
    "EAGLE-3",
    Eagle3Layer,
    _keys,
    _check_extra,
    _read_head,
    _write_head,
    always_d2t=True,
)

# The layout of speculators. The release whose fields these are:
VERSION = "0.3.0"
SPECULATORS_TYPE, LAYER_CONFIG = "speculators_model_type", "transformer_layer_config"
RESIDUAL = "norm_before_residual"


def _speculators_keys(head: Head, _names: Iterable[str]) -> dict[str, str]:
    return _keys_below(LAYERS, head)


def _read_speculators(
    config: Fields, stored: Mapping[str, Stored], target: EmbeddingModel, params: Params
) -> Eagle3:
    kind = config.get(SPECULATORS_TYPE)
    if kind != "eagle3":
        raise ValueError(f"{SPECULATORS_TYPE}={kind!r} is not read: 'eagle3' is")
    refuse(config, tie_word_embeddings=False, quantization_config=None)
    fields = config.get(LAYER_CONFIG)
    if not isinstance(fields, dict):
        raise ValueError(
            f"{LAYER_CONFIG}={fields!r} must be an object: the configuration of a Llama"
        )
    if config.get(RESIDUAL) is None:
        raise ValueError(
            f"{RESIDUAL} is missing: vLLM would take true, and speculators false, so write the one "
            "that the head was trained with"
        )
    return _read_traits(
        config,
        _read_layer(fields),
        layers=_read_layer_numbers(config, target.config.num_hidden_layers),
        own_embedding=_has_own_embedding(stored, target, params),
        draft_vocab_size=number(config, "draft_vocab_size"),
        norm_before_residual=flag(config, RESIDUAL),
    )


def _write_speculators(
    head: Eagle3, rest: Mapping[str, Any], serving: Serving | None
) -> dict[str, Any]:
    if serving is None:
        raise ValueError(
            "serving=None: the layout of speculators names the head's target, so give Serving"
        )
    if serving.speculative_tokens < 1:
        raise ValueError(f"speculative_tokens={serving.speculative_tokens}: must be at least 1")
    same_width = head.target_hidden_size == head.config.hidden_size
    return {
        "architectures": ["Eagle3Speculator"],
        "auto_map": {"": "eagle3.Eagle3SpeculatorConfig"},
        SPECULATORS_TYPE: "eagle3",
        "speculators_version": VERSION,
        **_write_traits(head),
        "target_hidden_size": None if same_width else head.target_hidden_size,
        "embed_requires_grad": head.module.own_embedding,
        "tie_word_embeddings": False,
        LAYER_CONFIG: {**_write_layer(head), **rest},
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": serving.speculative_tokens,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "default_proposal_method": "greedy",
            "verifier": {
                "name_or_path": serving.verifier,
                "architectures": list(serving.architectures),
            },
        },
    }


SPECULATORS = HeadLayout(
    "speculators",
    "EAGLE-3",
    Eagle3Layer,
    _speculators_keys,
    _check_extra,
    _read_speculators,
    _write_speculators,
    needs_embedding=True,
)
