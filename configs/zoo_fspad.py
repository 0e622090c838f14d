"""The zoo's FSPAD head, taught on the corpus and the target's own text, and fed its own guesses."""

from jspec.distill.recipe import Distillation, FeatureHead
from jspec.distill.sources import Answers, Text


def config() -> Distillation:
    return Distillation(
        name="zoo_fspad",
        target="zoo:target",
        head=FeatureHead(
            kind="fspad", feedforward=192, heads=4, kv_heads=4, logits=1.0, noise=0.05, passes=3
        ),
        text=Text(weight=0.4),
        answers=Answers(weight=0.6, count=768, batch=32),
        chunk=128,
        steps=1600,
        learning_rate=2e-3,
        warmup=30,
        cooldown=0.8,
        evaluate_every=100,
        save_every=50,
        tree="chain:4",
    )
