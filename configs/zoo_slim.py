"""A second target of the zoo's kind: eight layers, 6.9 million parameters; not shipped."""

from jspec.config import ModelConfig
from jspec.training.recipe import Pretraining


def config() -> Pretraining:
    model = ModelConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return Pretraining(name="zoo_slim", model=model, chunk_size=128, steps=500, evaluate_every=100)
