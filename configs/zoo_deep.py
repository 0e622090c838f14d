"""The zoo's narrow draft: four layers, 1.44 million parameters, as many as the wide one's."""

from jspec.config import ModelConfig
from jspec.training.recipe import Pretraining


def config() -> Pretraining:
    model = ModelConfig(
        vocab_size=4096,
        hidden_size=160,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=40,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    return Pretraining(name="zoo_deep", model=model, chunk_size=128, steps=1200, evaluate_every=50)
