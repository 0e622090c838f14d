"""A zoo of tiny random models, for tests of what surrounds them."""

import json
from pathlib import Path

import jax
import numpy as np

from jspec import zoo
from jspec.config import ModelConfig
from jspec.formats.huggingface import save
from jspec.models.transformer import transformer
from jspec.zoo.tokenizer import train_tokenizer

VOCABULARY, CONTEXT = 320, 320
WORDS = ("def", "add", "left", "right", "return", "+", "\\n", ":", "(", ")")
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


def write_texts(file: Path) -> None:
    """Twenty texts of such words, as JSON lines."""
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, 30))}) for _ in range(20)]
    file.write_text("\n".join(lines))
