"""The zoo's narrow draft: four layers, 1.44 million parameters, as many as the wide one's."""

from jspec.config import ModelConfig
from jspec.distill.recipe import Pretraining


def config() -> Pretraining:
    model = ModelConfig(
        vocabulary=4096,
        width=160,
        feedforward=192,
        layers=4,
        heads=4,
        kv_heads=4,
        channels=40,
        context=512,
        tied=True,
    )
    return Pretraining(name="zoo_deep", model=model, chunk=128, steps=1200, evaluate_every=50)
