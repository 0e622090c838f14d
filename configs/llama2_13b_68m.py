"""A 68M draft for Llama-2-13B-chat: the pair of the temperature paper (arXiv 2410.10141).

For eight devices as data=2,tensor=4 (a TPU v5e-8 does): the teacher in bfloat16 and the draft's
weights, gradients and optimizer take 7.5 GB of each. The paper does not give the
amount of training, the loss and the learning rate: these are our choices.
"""

from jspec.training.recipe import Distillation, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="llama2_13b_68m",
        target="meta-llama/Llama-2-13b-chat-hf",
        draft="JackFram/llama-68m",
        teacher_dtype="bfloat16",
        mesh="data=2,tensor=4",
        replicated=True,
        text=Text(source="tatsu-lab/alpaca", weight=0.0),
        teacher_data=TeacherData(
            count=50_000, max_new_tokens=512, temperature="0.7,0.8,0.9", batch_size=64
        ),
        temperatures="0,0.7,1",
        tree="4x2x2",
        sequence_length=1024,
        chunk_size=256,
        batch_size=16,
        steps=3000,
        learning_rate=1e-3,
    )
