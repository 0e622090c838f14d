"""The zoo's EAGLE head, which learns from the target's features alone and never from its own."""

from jspec.distill.recipe import Distillation, FeatureHead
from jspec.distill.sources import Answers, Text


def config() -> Distillation:
    return Distillation(
        name="zoo_eagle",
        target="zoo:target",
        head=FeatureHead(
            kind="eagle", feedforward=192, heads=4, kv_heads=4, logits=1.0, noise=0.05
        ),
        text=Text(weight=0.4),
        answers=Answers(weight=0.6, count=768, batch=32),
        chunk=128,
        steps=1000,
        learning_rate=2e-3,
        warmup=30,
        cooldown=0.8,
        evaluate_every=100,
        save_every=50,
        tree="chain:4",
    )
