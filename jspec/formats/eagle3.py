"""EAGLE-3's heads as SafeAILab, SpecForge and SGLang have them: `config.json` and keys, both ways.

The configuration is a Llama's of one layer, with what is EAGLE-3's beside it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from jspec.config import ModelConfig
from jspec.formats import families, llama
from jspec.formats.embedding import unlike
from jspec.formats.fields import Fields, flag, number, refuse
from jspec.formats.tensors import Stored
from jspec.formats.vocabulary import misplaced
from jspec.models.eagle3 import Eagle3, Eagle3Layer, eagle3, usual_layers
from jspec.models.heads import Head
from jspec.models.protocol import EmbeddingModel, Params

MODULE, OF = Eagle3Layer, "EAGLE-3"
EMBEDDING = "embed_tokens.weight"
AUXILIARY, NESTED = "eagle_aux_hidden_state_layer_ids", "eagle_config"
# What ModelOpt says of its heads, with the values that are EAGLE-3's.
MODELOPT = {
    "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "parallel_draft_step": 1,
}
# Ours and theirs.
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
        for ours, theirs in llama.KEYS.items()
        if ours.startswith("layer_{}.") and "attention_norm" not in ours
    },
}
LAYER, LAYERS = "midlayer.", "layers.0."


def keys(head: Head, names: Iterable[str] = ()) -> dict[str, str]:
    """Keys in the file by paths in our tree, as a folder that has `names` spells them."""
    names = tuple(names)
    # ModelOpt's spelling.
    other = any(x.startswith(LAYERS) for x in names) and not any(x.startswith(LAYER) for x in names)
    return keys_below(LAYERS if other else LAYER, head)


def keys_below(layer: str, head: Head) -> dict[str, str]:
    """The same where those of the layer begin with `layer`."""
    norms = {f"layer_norm_{i}.weight": f"fc_norm.{i}.weight" for i in range(len(head.layers))}
    return {**OUTER, **norms, **{ours: layer + theirs for ours, theirs in INNER.items()}}


def spare(
    head: Head, target: EmbeddingModel, params: Params, name: str, tensor: Stored
) -> str | None:
    """What is wrong with a tensor that is no parameter; None if it does not belong there."""
    # An embedding that is not the target's is the head's own, and so a parameter.
    return "" if name == EMBEDDING else misplaced(head, name, tensor)


def read_head(
    config: Fields, stored: Mapping[str, Stored], target: EmbeddingModel, params: Params
) -> Eagle3:
    """The head that a folder holds; raises `ValueError` that names the field or the key.

    Args:
      target: which it was made for; params: the target's.
    """
    layer = read_layer(config)
    own = EMBEDDING in stored and bool(unlike(EMBEDDING, stored[EMBEDDING], target, params))
    return read_traits(
        config,
        layer,
        layers=read_layers(config, target.config.layers),
        own_embedding=own,
        draft_vocabulary=number(config, "draft_vocab_size", layer.vocabulary),
        # As the authors' code has it, where nothing is said.
        norm_before_residual=flag(config, "norm_before_residual"),
    )


def read_traits(config: Fields, layer: ModelConfig, **known: Any) -> Eagle3:
    """`eagle3` of `layer`, of what is `known`, and of the fields that mean the same everywhere."""
    refuse(config, num_aux_hidden_states=len(known["layers"]))
    if known["draft_vocabulary"] > layer.vocabulary:
        raise ValueError(
            f"draft_vocab_size={known['draft_vocabulary']} and vocab_size={layer.vocabulary}: a "
            "head has at most the target's tokens, which vocab_size counts"
        )
    width = number(config, "target_hidden_size", layer.width)
    if width != layer.width and not known["own_embedding"]:
        raise ValueError(
            f"target_hidden_size={width} and hidden_size={layer.width}, and {EMBEDDING} is "
            "missing or the target's: where the two differ a head has an embedding of its own"
        )
    norms = {name: flag(config, name) for name in ("norm_output", "fc_norm", "norm_before_fc")}
    return eagle3(layer, target_width=width, **known, **norms)


def read_layer(config: Fields) -> ModelConfig:
    """The layer that a configuration describes."""
    kind = config.get("model_type")
    if kind != "llama":
        raise ValueError(f"model_type={kind!r} is not read where an EAGLE-3 head is: llama is")
    refuse(config, tie_word_embeddings=False)
    found = families.read_config(config)
    if found.layers != 1:
        raise ValueError(
            f"num_hidden_layers={found.layers}: a head of this layout has 1, so take another head"
        )
    return found


def read_layers(config: Fields, count: int) -> tuple[int, ...]:
    """The layers, of a target of `count`, whose inputs the head reads.

    Beside the other fields, where vLLM looks, they are what we mean: a number is the layer whose
    input is read. In `eagle_config`, where SpecForge and ModelOpt write them and SGLang adds 1, it
    is the layer whose output is.
    """
    nested = config.get(NESTED) or {}
    if not isinstance(nested, dict):
        raise ValueError(f"{NESTED}={nested!r} must be an object, or absent")
    refuse(nested, **MODELOPT)
    said = {AUXILIARY: (config, 0), f"{NESTED}.{AUXILIARY}": (nested, 1)}
    found = {
        name: _listed(name, fields[AUXILIARY], offset, count)
        for name, (fields, offset) in said.items()
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


def write_head(head: Eagle3, rest: Mapping[str, Any], served: Any = None) -> dict[str, Any]:
    """The `config.json` of a head; raises `ValueError` for one that this layout does not hold.

    Args:
      rest: fields that every configuration has.
    """
    return {
        **write_layer(head),
        "architectures": ["LlamaForCausalLMEagle3"],
        **write_traits(head),
        # vLLM multiplies it wherever it is there, so null would not do.
        "target_hidden_size": head.target_width,
        # One less, as `read_layers` says.
        NESTED: {"use_aux_hidden_state": True, AUXILIARY: [i - 1 for i in head.layers]},
        **rest,
    }


def write_layer(head: Eagle3) -> dict[str, Any]:
    """The layer as a Llama."""
    written = llama.write_config(head.config)
    try:
        again = read_layer(written)
    except ValueError as error:
        raise ValueError(f"head: {error}") from None
    lost = [name for name, value in vars(head.config).items() if getattr(again, name) != value]
    if lost:
        fields = ", ".join(f"{name}={getattr(head.config, name)!r}" for name in lost)
        raise ValueError(f"head has {fields}, which the layout of EAGLE-3 has not: change it")
    return written


def write_traits(head: Eagle3) -> dict[str, Any]:
    """What is EAGLE-3's, nothing left to a reader's default."""
    module = head.module
    return {
        "draft_vocab_size": head.draft_vocabulary,
        "norm_before_residual": module.norm_before_residual,
        "norm_before_fc": module.norm_before_fc,
        "fc_norm": module.fc_norm,
        "norm_output": module.norm_output,
        AUXILIARY: list(head.layers),
    }


def _listed(name: str, layers: Any, offset: int, count: int) -> tuple[int, ...]:
    """Layers that a field lists, as the numbers of those whose inputs are read."""
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
