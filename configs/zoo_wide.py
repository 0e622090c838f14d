"""The zoo's wide draft: one layer, 1.42 million parameters."""

from jspec.config import ModelConfig
from jspec.distill.recipe import Pretraining


def config() -> Pretraining:
    model = ModelConfig(
        vocabulary=4096,
        width=224,
        feedforward=448,
        layers=1,
        heads=4,
        kv_heads=4,
        channels=56,
        context=512,
        tied=True,
    )
    return Pretraining(name="zoo_wide", model=model, chunk=128, steps=1200, evaluate_every=50)
