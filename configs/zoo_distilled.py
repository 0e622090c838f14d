"""The zoo's wide draft, taught at temperature 1 on the corpus and on the target's own text."""

from jspec.distill.recipe import Answers, Distillation, Text


def config() -> Distillation:
    return Distillation(
        name="zoo_distilled",
        target="zoo:target",
        draft="zoo:wide",
        text=Text(weight=0.4),
        answers=Answers(weight=0.6, count=1280),
        chunk=128,
        steps=1400,
        learning_rate=2e-3,
        warmup=30,
        cooldown=0.8,
        evaluate_every=50,
        save_every=50,
    )
