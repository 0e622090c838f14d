"""The zoo's wide draft: one layer, 1.42 million parameters."""

from jspec.config import ModelConfig
from jspec.training.recipe import Pretraining


def config() -> Pretraining:
    model = ModelConfig(
        vocab_size=4096,
        hidden_size=224,
        intermediate_size=448,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=56,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return Pretraining(name="zoo_wide", model=model, chunk_size=128, steps=1200, evaluate_every=50)
