"""The zoo's target: 10.4 million parameters, Llama's shape, trained on the standard library."""

from jspec.config import ModelConfig
from jspec.training.recipe import Pretraining


def config() -> Pretraining:
    model = ModelConfig(
        vocab_size=4096,
        hidden_size=448,
        intermediate_size=1152,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=56,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return Pretraining(
        name="zoo_target", model=model, chunk_size=128, steps=1300, evaluate_every=50
    )
