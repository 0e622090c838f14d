"""A model of ours that was saved, for the tests of reading, writing and refusing."""

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jspec.config import ModelConfig, RopeScaling
from jspec.formats.huggingface import save
from jspec.models.transformer import transformer

CONFIG = ModelConfig(
    vocabulary=17,
    width=8,
    feedforward=12,
    layers=2,
    heads=4,
    kv_heads=2,
    channels=2,
    context=32,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
    attention_bias=True,
    out_bias=True,
)


def write_original(folder):
    """A small model with its parameters, and the folder where it is saved now."""
    model = transformer(CONFIG)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)
    save(folder, model, params, tokenizer=make_tokenizer(), end_of_text=(0, 3))
    return model, params, folder


def make_tokenizer():
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["hello world"] * 3, trainer)
    return tokenizer
