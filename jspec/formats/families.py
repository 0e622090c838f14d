"""The families of models whose folders we read and write, and which of them fits a model."""

import dataclasses
import re
from types import ModuleType

from jspec.config import ModelConfig
from jspec.formats import gemma2, gemma3, llama, mistral, opt, qwen2, qwen3
from jspec.formats.fields import Fields

# By model_type. Each has KEYS, read_config and write_config.
FAMILIES: dict[str, ModuleType] = {
    "llama": llama,
    "mistral": mistral,
    "qwen2": qwen2,
    "qwen3": qwen3,
    "gemma2": gemma2,
    "gemma3_text": gemma3,
    "opt": opt,
}
ADVICE = {
    "gemma3": "save its language model alone, whose model_type is gemma3_text",
}


def family_of(config: Fields) -> str:
    """The `model_type` of a `config.json`, which is one that we know."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        advice = ADVICE.get(str(kind), f"{', '.join(FAMILIES)} are")
        raise ValueError(f"model_type={kind!r} is not known: {advice}")
    return kind


def read_config(config: Fields) -> ModelConfig:
    """The model that a `config.json` describes."""
    if config.get("quantization_config"):
        raise ValueError("quantization_config is set: quantised weights are not read")
    return FAMILIES[family_of(config)].read_config(config)


def fitting(config: ModelConfig, family: str | None) -> str:
    """The family whose `config.json` gives `config` back: `family`, or the first that does."""
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family={family!r} is not known: {', '.join(FAMILIES)} are")
    lost = {name: _lost(config, name) for name in ([family] if family else FAMILIES)}
    best = min(lost, key=lambda name: len(lost[name]))
    if lost[best]:
        fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost[best])
        raise ValueError(
            f"model has {fields}, which {best}, the nearest family, has not: change it"
        )
    return best


def key(family: str, path: tuple[str, ...]) -> str:
    """A parameter's key in the file, from its path in our tree."""
    keys, name = FAMILIES[family].KEYS, ".".join(path)
    layer = re.match(r"layer_(\d+)\.", name)
    if layer is None:
        return keys[name]
    return keys["layer_{}." + name[layer.end() :]].format(layer[1])


def _lost(config: ModelConfig, family: str) -> list[str]:
    """The fields of `config` that a family's `config.json` does not hold."""
    module = FAMILIES[family]
    names = [field.name for field in dataclasses.fields(config)]
    try:
        again = module.read_config(module.write_config(config))
    except ValueError:
        return names
    return [name for name in names if getattr(config, name) != getattr(again, name)]
