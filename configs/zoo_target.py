"""The zoo's target: 10.4 million parameters, Llama's shape, trained on the standard library."""

from jspec.config import ModelConfig
from jspec.distill.recipe import Pretraining


def config() -> Pretraining:
    model = ModelConfig(
        vocabulary=4096,
        width=448,
        feedforward=1152,
        layers=4,
        heads=8,
        kv_heads=4,
        channels=56,
        context=512,
        tied=True,
    )
    return Pretraining(name="zoo_target", model=model, chunk=128, steps=1300, evaluate_every=50)
