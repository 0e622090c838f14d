"""A zoo of tiny random models, for tests of what surrounds them."""

from pathlib import Path

import jax

from jspec import zoo
from jspec.config import ModelConfig
from jspec.formats.huggingface import save
from jspec.models.transformer import transformer
from jspec.zoo.tokenizer import train_tokenizer

VOCABULARY, CONTEXT = 320, 320
TEXT = "def add(left, right):\n    return left + right\n"


def config(**changes: int) -> ModelConfig:
    sizes = {"vocabulary": VOCABULARY, "width": 16, "feedforward": 16, "layers": 1, "heads": 2}
    return ModelConfig(**{**sizes, "kv_heads": 1, "channels": 8, "context": CONTEXT, **changes})


def write(folder: Path, **changes: int) -> Path:
    """A folder of all that the zoo has, which share a tokenizer and these changes."""
    tokenizer = train_tokenizer([TEXT * 40], VOCABULARY)
    for seed, name in enumerate(zoo.NAMES):
        model = transformer(config(layers=1 + (name in ("target", "deep")), **changes))
        params = model.init(jax.random.key(seed))
        save(folder / name, model, params, tokenizer=tokenizer, end_of_text=(0,), dtype="bfloat16")
    return folder
