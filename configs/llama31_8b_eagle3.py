"""Llama-3.1-8B-Instruct teaches a head of EAGLE-3 for 32,000 of its tokens.

For eight devices as fsdp=2,tensor=4 (a TPU v5e-8 does): the teacher in bfloat16 and the head's
weights, gradients and optimizer take 2.9 GB of each.
"""

from jspec.distill.recipe import Distillation, FeatureHead
from jspec.distill.sources import Answers, Text


def config() -> Distillation:
    return Distillation(
        name="llama31_8b_eagle3",
        target="meta-llama/Llama-3.1-8B-Instruct",
        head=FeatureHead(
            kind="eagle3",
            tokens=32_000,
            features=0.0,
            logits=1.0,
            noise=0.0,
            passes=7,
            decay=0.8,
        ),
        teacher="bfloat16",
        compute="bfloat16",
        mesh="fsdp=2,tensor=4",
        text=Text(source="HuggingFaceH4/ultrachat_200k", split="train_sft", weight=0.3),
        answers=Answers(count=50_000, tokens=512, temperature="0..1", batch=64, weight=0.7),
        served="0,1",
        tree="chain:7",
        length=2048,
        chunk=256,
        batch=16,
        steps=20_000,
        learning_rate=2e-4,
    )
