"""A second target of the zoo's kind: eight layers, 6.9 million parameters; not shipped."""

from jspec.config import ModelConfig
from jspec.distill.recipe import Pretraining


def config() -> Pretraining:
    model = ModelConfig(
        vocabulary=4096,
        width=256,
        feedforward=704,
        layers=8,
        heads=8,
        kv_heads=4,
        channels=32,
        context=512,
        tied=True,
    )
    return Pretraining(name="zoo_slim", model=model, chunk=128, steps=500, evaluate_every=100)
