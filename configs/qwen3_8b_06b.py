"""Qwen3-8B teaches Qwen3-0.6B.

For eight devices as fsdp=2,tensor=4 (a TPU v5e-8 does): the teacher in bfloat16 and the draft's
weights, gradients and optimizer take 3.0 GB of each.
"""

from jspec.distill.recipe import Answers, Distillation, Text


def config() -> Distillation:
    return Distillation(
        name="qwen3_8b_06b",
        target="Qwen/Qwen3-8B",
        draft="Qwen/Qwen3-0.6B",
        teacher="bfloat16",
        compute="bfloat16",
        remat=True,
        mesh="fsdp=2,tensor=4",
        text=Text(source="HuggingFaceH4/ultrachat_200k", split="train_sft", weight=0.3),
        answers=Answers(count=50_000, tokens=512, temperature="0..1", batch=64, weight=0.7),
        served="0,0.6,1",
        tree="4x2x2",
        length=2048,
        chunk=256,
        batch=16,
        steps=3000,
        learning_rate=2e-4,
    )
