"""The zoo's EAGLE head, trained on the target's features alone."""

from jspec.training.recipe import Distillation, FeatureHead, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="zoo_eagle",
        target="zoo:target",
        head=FeatureHead(
            kind="eagle",
            intermediate_size=192,
            num_attention_heads=4,
            num_key_value_heads=4,
            logits_weight=1.0,
            feature_noise=0.05,
        ),
        text=Text(weight=0.4),
        teacher_data=TeacherData(weight=0.6, count=768, batch_size=32),
        chunk_size=128,
        steps=1000,
        learning_rate=2e-3,
        warmup_steps=30,
        cooldown=0.8,
        evaluate_every=100,
        save_every=50,
        tree="chain:4",
    )
