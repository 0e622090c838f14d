"""A model of ours that was saved, for the tests of reading, writing and refusing."""

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jspec.config import ModelConfig, RopeScaling
from jspec.formats.huggingface import save
from jspec.models.transformer import transformer

CONFIG = ModelConfig(
    vocab_size=17,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=2,
    max_position_embeddings=32,
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
    save(folder, model, params, tokenizer=make_tokenizer(), stop_token_ids=(0, 3))
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
