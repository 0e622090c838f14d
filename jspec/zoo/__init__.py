"""The trained models and heads that ship with the package, and what they were trained on."""

from pathlib import Path

NAMES = ("target", "wide", "distilled", "eagle", "fspad")
PREFIX = "zoo:"
MODELS = Path(__file__).parent / "models"


def folder(name: str) -> Path:
    """The Hugging Face folder of one of `NAMES`."""
    if name not in NAMES:
        raise ValueError(
            f"zoo:{name} is not in the zoo: {', '.join(PREFIX + n for n in NAMES)} are"
        )
    place = MODELS / name
    if not (place / "config.json").is_file():
        raise FileNotFoundError(
            f"zoo:{name} has no weights in {place}: install the package again, or train them by "
            f"configs/zoo_{name}.py"
        )
    return place


def find(source: str) -> str | Path:
    """The folder that `zoo:NAME` stands for; any other source, a folder or a hub name, as it is."""
    if source.startswith(PREFIX):
        return folder(source.removeprefix(PREFIX))
    return source
