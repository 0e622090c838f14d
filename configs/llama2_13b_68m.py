"""Llama-2-13B-chat teaches a 68M draft: the pair of the temperature paper (arXiv 2410.10141).

For eight devices as data=2,tensor=4 (a TPU v5e-8 does): the teacher in bfloat16 and the draft's
weights, gradients and optimizer take 7.5 GB of each. The paper does not say how much it trains,
by which loss and at which rate: those are ours.
"""

from jspec.distill.recipe import Answers, Distillation, Text


def config() -> Distillation:
    return Distillation(
        name="llama2_13b_68m",
        target="meta-llama/Llama-2-13b-chat-hf",
        draft="JackFram/llama-68m",
        teacher="bfloat16",
        mesh="data=2,tensor=4",
        replicated=True,
        text=Text(source="tatsu-lab/alpaca", weight=0.0),
        answers=Answers(count=50_000, tokens=512, temperature="0.7,0.8,0.9", batch=64),
        served="0,0.7,1",
        tree="4x2x2",
        length=1024,
        chunk=256,
        batch=16,
        steps=3000,
        learning_rate=1e-3,
    )
