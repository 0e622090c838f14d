"""LLaMA-65B teaches a wide draft of 796 million parameters, cut out of LLaMA-7B.

The shape is that of arXiv 2402.01528 (Decoding Speculative Decoding): five layers with all of the
7B's heads and feed-forward, over 2560 of its 4096 channels. For 32 devices as fsdp=4,tensor=8: the
teacher in bfloat16 and the draft's weights, gradients and optimizer take 4.4 GB of each.
"""

from jspec.config import ModelConfig
from jspec.distill.recipe import Answers, Distillation, Text


def config() -> Distillation:
    return Distillation(
        name="llama65b_wide796m",
        target="huggyllama/llama-65b",
        model=ModelConfig(
            vocabulary=32000,
            width=2560,
            feedforward=11008,
            layers=5,
            heads=32,
            kv_heads=32,
            channels=128,
            context=2048,
            epsilon=1e-6,
        ),
        parent="huggyllama/llama-7b",
        teacher="bfloat16",
        compute="bfloat16",
        remat=True,
        mesh="fsdp=4,tensor=8",
        text=Text(source="NeelNanda/pile-10k", split="train", weight=0.5),
        answers=Answers(count=50_000, tokens=512, temperature="0..1", batch=64, weight=0.5),
        served="0,0.6,1",
        tree="chain:4",
        length=2048,
        chunk=256,
        batch=32,
        steps=10_000,
        learning_rate=2e-4,
    )
