"""What sets each family of models apart, on a tiny scale."""

from jspec import RopeScaling

# Shorter than a path of the tree with its root, so that rows of the block leave it too.
WINDOW = 3
GEMMA = {
    "norm": "rms_plus_one",
    "norm_place": "around",
    "hidden_act": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 10,
    "scale_embedding": True,
    "sliding_window": WINDOW,
    "sliding_layers": (0,),
}
FAMILIES = {
    "mistral": {"sliding_window": WINDOW, "sliding_layers": (0, 1)},
    "qwen2": {"attention_bias": True, "sliding_window": 8, "sliding_layers": (1,)},
    "qwen3": {"use_qk_norm": True},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 9.0},
    "gemma3": {
        **GEMMA,
        "use_qk_norm": True,
        "rope_theta": 1e6,
        "rope_scaling": RopeScaling(8.0),
        "sliding_rope_theta": 1e4,
    },
    "opt": {
        "num_key_value_heads": 4,
        "learned_positions": True,
        "norm": "layer",
        "hidden_act": "relu",
        "gated": False,
        "attention_bias": True,
        "out_bias": True,
        "mlp_bias": True,
    },
}
