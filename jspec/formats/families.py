"""The model families whose folders are read and written, and which of them fits a model."""

import dataclasses

from jspec.config import ModelConfig
from jspec.formats import gemma, llama, opt
from jspec.formats.decoder import Family
from jspec.formats.fields import Fields

# A new family is one line here. A model is saved as the first one that fits it.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        llama.LLAMA,
        llama.MISTRAL,
        llama.QWEN2,
        llama.QWEN3,
        gemma.GEMMA2,
        gemma.GEMMA3,
        opt.OPT,
    )
}
ADVICE = {
    "gemma3": "save its language model alone, whose model_type is gemma3_text",
}


def family_of(config: Fields) -> Family:
    """The family of a `config.json`; raises `ValueError` for a `model_type` that is not known."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        advice = ADVICE.get(str(kind), f"{', '.join(FAMILIES)} are")
        raise ValueError(f"model_type={kind!r} is not known: {advice}")
    return FAMILIES[kind]


def read_config(config: Fields) -> ModelConfig:
    """The model that a `config.json` describes; raises `ValueError` that names the field."""
    if config.get("quantization_config"):
        raise ValueError("quantization_config is set: quantised weights are not read")
    return family_of(config).read_config(config)


def fitting_family(config: ModelConfig, name: str | None = None) -> Family:
    """The family whose `config.json` gives `config` back: `name`, or the first that does.

    Raises `ValueError` with the fields that would be lost where there is none.
    """
    if name is not None and name not in FAMILIES:
        raise ValueError(f"family={name!r} is not known: {', '.join(FAMILIES)} are")
    candidates = list(FAMILIES.values()) if name is None else [FAMILIES[name]]
    lost = {family: _lost_fields(config, family) for family in candidates}
    best = min(lost, key=lambda family: len(lost[family]))
    if lost[best]:
        fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in lost[best])
        raise ValueError(
            f"model has {fields}, which {best.model_type}, the nearest family, does not have: "
            "change it"
        )
    return best


def _lost_fields(config: ModelConfig, family: Family) -> list[str]:
    """The fields of `config` that a family's `config.json` does not hold."""
    names = [field.name for field in dataclasses.fields(config)]
    try:
        again = family.read_config(family.write_config(config))
    except ValueError:
        return names
    return [name for name in names if getattr(config, name) != getattr(again, name)]
