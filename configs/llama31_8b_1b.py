"""Llama-3.2-1B-Instruct as a draft for Llama-3.1-8B-Instruct.

For eight devices as fsdp=2,tensor=4 (a TPU v5e-8 does): the teacher in bfloat16 and the draft's
weights, gradients and optimizer take 4.0 GB of each.
"""

from jspec.training.recipe import Distillation, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="llama31_8b_1b",
        target="meta-llama/Llama-3.1-8B-Instruct",
        draft="meta-llama/Llama-3.2-1B-Instruct",
        teacher_dtype="bfloat16",
        compute_dtype="bfloat16",
        remat=True,
        mesh="fsdp=2,tensor=4",
        text=Text(source="HuggingFaceH4/ultrachat_200k", split="train_sft", weight=0.3),
        teacher_data=TeacherData(
            count=50_000, max_new_tokens=512, temperature="0..1", batch_size=64, weight=0.7
        ),
        temperatures="0,0.6,1",
        tree="4x2x2",
        sequence_length=2048,
        chunk_size=256,
        batch_size=16,
        steps=3000,
        learning_rate=2e-4,
    )
