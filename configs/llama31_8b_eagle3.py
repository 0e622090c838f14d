"""An EAGLE-3 head for Llama-3.1-8B-Instruct, with 32,000 of its tokens.

For eight devices as fsdp=2,tensor=4 (a TPU v5e-8 does): the teacher in bfloat16 and the head's
weights, gradients and optimizer take 2.9 GB of each.
"""

from jspec.training.recipe import Distillation, FeatureHead, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="llama31_8b_eagle3",
        target="meta-llama/Llama-3.1-8B-Instruct",
        head=FeatureHead(
            kind="eagle3",
            draft_vocab_size=32_000,
            feature_weight=0.0,
            logits_weight=1.0,
            feature_noise=0.0,
            ttt_steps=7,
            ttt_decay=0.8,
        ),
        teacher_dtype="bfloat16",
        compute_dtype="bfloat16",
        mesh="fsdp=2,tensor=4",
        text=Text(source="HuggingFaceH4/ultrachat_200k", split="train_sft", weight=0.3),
        teacher_data=TeacherData(
            count=50_000, max_new_tokens=512, temperature="0..1", batch_size=64, weight=0.7
        ),
        temperatures="0,1",
        tree="chain:7",
        sequence_length=2048,
        chunk_size=256,
        batch_size=16,
        steps=20_000,
        learning_rate=2e-4,
    )
