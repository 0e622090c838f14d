"""A zoo of tiny random models, for tests of what surrounds them."""

import json
from pathlib import Path

import jax
import numpy as np

from jspec import zoo
from jspec.config import ModelConfig
from jspec.formats.heads import save_head
from jspec.formats.huggingface import save
from jspec.models.transformer import transformer
from jspec.training.recipe import FeatureHead
from jspec.training.student import FEATURE_HEADS, make_head
from jspec.zoo.tokenizer import train_tokenizer

VOCABULARY, CONTEXT = 320, 320
WORDS = ("def", "add", "left", "right", "return", "+", "\\n", ":", "(", ")")
TEXT = "def add(left, right):\n    return left + right\n"


def config(**changes: int) -> ModelConfig:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
    }
    return ModelConfig(**{**sizes, **changes})


def write(folder: Path, **changes: int) -> Path:
    """A folder of all that the zoo has, which share a tokenizer and these changes."""
    tokenizer = train_tokenizer([TEXT * 40], VOCABULARY)
    of_target = config(num_hidden_layers=2, **changes)
    for seed, name in enumerate(zoo.NAMES):
        key = jax.random.key(seed)
        if name in FEATURE_HEADS:
            head = make_head(FeatureHead(kind=name), of_target)
            save_head(folder / name, head, head.init(key), dtype="bfloat16")
        else:
            model = transformer(of_target if name == "target" else config(**changes))
            told = {"tokenizer": tokenizer, "stop_token_ids": (0,), "dtype": "bfloat16"}
            save(folder / name, model, model.init(key), **told)
    return folder


def write_texts(file: Path) -> None:
    """Twenty texts of such words, as JSON lines."""
    rng = np.random.default_rng(0)
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, 30))}) for _ in range(20)]
    file.write_text("\n".join(lines))
