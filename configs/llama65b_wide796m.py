"""A wide draft of 796 million parameters for LLaMA-65B, pruned from LLaMA-7B.

The shape is that of arXiv 2402.01528 (Decoding Speculative Decoding): five layers with all of the
7B's heads and feed-forward, over 2560 of its 4096 channels. For 32 devices as fsdp=4,tensor=8: the
teacher in bfloat16 and the draft's weights, gradients and optimizer take 4.4 GB of each.
"""

from jspec.config import ModelConfig
from jspec.training.recipe import Distillation, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="llama65b_wide796m",
        target="huggyllama/llama-65b",
        model=ModelConfig(
            vocab_size=32000,
            hidden_size=2560,
            intermediate_size=11008,
            num_hidden_layers=5,
            num_attention_heads=32,
            num_key_value_heads=32,
            head_dim=128,
            max_position_embeddings=2048,
            norm_eps=1e-6,
        ),
        parent="huggyllama/llama-7b",
        teacher_dtype="bfloat16",
        compute_dtype="bfloat16",
        remat=True,
        mesh="fsdp=4,tensor=8",
        text=Text(source="NeelNanda/pile-10k", split="train", weight=0.5),
        teacher_data=TeacherData(
            count=50_000, max_new_tokens=512, temperature="0..1", batch_size=64, weight=0.5
        ),
        temperatures="0,0.6,1",
        tree="chain:4",
        sequence_length=2048,
        chunk_size=256,
        batch_size=32,
        steps=10_000,
        learning_rate=2e-4,
    )
