"""The zoo's wide draft, distilled at temperature 1 on the corpus and on teacher-generated text."""

from jspec.training.recipe import Distillation, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="zoo_distilled",
        target="zoo:target",
        draft="zoo:wide",
        text=Text(weight=0.4),
        teacher_data=TeacherData(weight=0.6, count=1280),
        chunk_size=128,
        steps=1400,
        learning_rate=2e-3,
        warmup_steps=30,
        cooldown=0.8,
        evaluate_every=50,
        save_every=50,
    )
