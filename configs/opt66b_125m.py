"""OPT-66B teaches OPT-125M, the smallest of the drafts that arXiv 2402.01528 compares for it.

For 16 devices as fsdp=4,tensor=4: the teacher in bfloat16 and the draft's weights, gradients and
optimizer take 8.3 GB of each.
"""

from jspec.distill.recipe import Answers, Distillation, Text


def config() -> Distillation:
    return Distillation(
        name="opt66b_125m",
        target="facebook/opt-66b",
        draft="facebook/opt-125m",
        teacher="bfloat16",
        compute="bfloat16",
        remat=True,
        mesh="fsdp=4,tensor=4",
        text=Text(source="NeelNanda/pile-10k", split="train", weight=0.5),
        answers=Answers(count=50_000, tokens=256, temperature="0..1", batch=64, weight=0.5),
        served="0,1",
        tree="chain:5",
        length=1024,
        chunk=256,
        batch=32,
        steps=5000,
        learning_rate=2e-4,
    )
