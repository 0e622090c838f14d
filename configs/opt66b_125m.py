"""OPT-125M as a draft for OPT-66B, the smallest of those that arXiv 2402.01528 compares.

For 16 devices as fsdp=4,tensor=4: the teacher in bfloat16 and the draft's weights, gradients and
optimizer take 8.3 GB of each.
"""

from jspec.training.recipe import Distillation, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="opt66b_125m",
        target="facebook/opt-66b",
        draft="facebook/opt-125m",
        teacher_dtype="bfloat16",
        compute_dtype="bfloat16",
        remat=True,
        mesh="fsdp=4,tensor=4",
        text=Text(source="NeelNanda/pile-10k", split="train", weight=0.5),
        teacher_data=TeacherData(
            count=50_000, max_new_tokens=256, temperature="0..1", batch_size=64, weight=0.5
        ),
        temperatures="0,1",
        tree="chain:5",
        sequence_length=1024,
        chunk_size=256,
        batch_size=32,
        steps=5000,
        learning_rate=2e-4,
    )
