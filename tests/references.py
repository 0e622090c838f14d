"""Models of transformers, tiny and random, and what is held against them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jspec.core.cache import commit, empty_cache

TOLERANCE = 1e-4
ORIGINAL = 16  # tokens that the stretched models were trained on, were they trained
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL,
}
VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
SHAPE = {**SIZES, "intermediate_size": 48, "rms_norm_eps": 1e-5}
OPT = {**SIZES, "ffn_dim": 48}
LATE_WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
GEMMA = {
    **SHAPE,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "query_pre_attn_scalar": 10,
}
MIXED = ["full_attention", "sliding_attention", "full_attention"]
GLOBAL_STRETCHED = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}
# Every window is far shorter than the sequences, and some are shorter than a path of the tree.
KINDS = {
    "llama1": ("Llama", SHAPE),
    "llama2_grouped": ("Llama", {**SHAPE, "num_key_value_heads": 2, "rope_theta": 1e6}),
    "llama31_stretched": (
        "Llama",
        {**SHAPE, "num_key_value_heads": 1, "rope_scaling": LLAMA3, "rope_theta": 5e5},
    ),
    "linear_stretched": (
        "Llama",
        {**SHAPE, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "tied": ("Llama", {**SHAPE, "tie_word_embeddings": True}),
    "biased": (
        "Llama",
        {**SHAPE, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    ),
    "wide_heads": ("Llama", {**SHAPE, "head_dim": 12}),
    "mistral": ("Mistral", {**SHAPE, "num_key_value_heads": 2, "sliding_window": 3}),
    "qwen2": ("Qwen2", {**SHAPE, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2_windows": ("Qwen2", {**SHAPE, "num_key_value_heads": 2, **LATE_WINDOW}),
    "qwen3": ("Qwen3", {**SHAPE, "num_key_value_heads": 2, "head_dim": 12}),
    "qwen3_windows": (
        "Qwen3",
        {
            **SHAPE,
            **LATE_WINDOW,
            "num_hidden_layers": 3,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "attention_bias": True,
            "layer_types": MIXED,
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            **GEMMA,
            "sliding_window": 3,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": ("Gemma3", {**GEMMA, "sliding_window": 8, "layer_types": MIXED}),
    "gemma3_stretched": (
        "Gemma3",
        {
            **GEMMA,
            "sliding_window": 3,
            "layer_types": MIXED,
            "final_logit_softcapping": 6.0,
            "rope_parameters": GLOBAL_STRETCHED,
        },
    ),
    "opt": ("OPT", OPT),
    "opt_norms_after": ("OPT", {**OPT, "do_layer_norm_before": False}),
    "opt_bare": (
        "OPT",
        {
            **OPT,
            "enable_bias": False,
            "tie_word_embeddings": False,
            "activation_function": "gelu_pytorch_tanh",
            "_remove_final_layer_norm": True,
        },
    ),
}
PARENTS = (-1, 0, 0, 1, 1, 2, 5)
ROWS, PREFIX, NEW, CAPACITY = 3, 33, len(PARENTS), 48


def make_reference(kind):
    """A random model of transformers, with scores far enough apart that a wrong angle shows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)  # on models this small threads only wait for each other
    torch.manual_seed(0)
    family, fields = KINDS[kind]
    text = "Text" if family == "Gemma3" else ""
    config = getattr(transformers, f"{family}{text}Config")(**fields)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.3 * torch.randn_like(parameter)
            parameter.copy_(noise if parameter.ndim == 2 else parameter + noise)
    return model


def expected(reference, tokens):
    """Logits `[B, T, V]` by transformers."""
    import torch

    with torch.inference_mode():
        return reference(torch.from_numpy(tokens)).logits.numpy()


def prefilled(checkpoint, tokens, lengths=None):
    """Logits of prompts padded on the right, and a cache of the first `lengths` of each row."""
    rows, new = tokens.shape
    kept = np.full(rows, new) if lengths is None else lengths
    cache = empty_cache(checkpoint.model.config, rows, CAPACITY, jnp.float32)
    return run(checkpoint, tokens, np.arange(new), causal(new), cache=cache, count=kept)


def run(checkpoint, tokens, positions, mask, cache=None, count=0):
    """Logits of new tokens, and the cache with the first `count` of each row in it."""
    positions = np.broadcast_to(positions, tokens.shape)
    count = np.broadcast_to(np.int32(count), tokens.shape[:1])
    return forward(checkpoint.model, checkpoint.params, tokens, positions, mask, cache, count)


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens, positions, mask, cache, count):
    output = model.forward(params, tokens, positions, mask, cache)
    if cache is not None:
        path = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        cache = commit(cache, output.block, path, count)
    return model.logits(params, output.hidden), cache


def draw(shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


def causal(length):
    return np.tri(length, dtype=bool)


def ancestors(node):
    """The nodes from the root to `node`."""
    return [*(ancestors(PARENTS[node]) if node else []), node]


def refused(act, *words):
    """`act` raises what the command line turns into one line, and the line, which is returned, has
    these words."""
    with pytest.raises((ValueError, OSError)) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def rewrite(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def edit(folder, change):
    """Applies `change` to the dict of a folder's tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def assert_close(ours, theirs):
    """Relative to the largest logit."""
    assert np.abs(ours - theirs).max() < TOLERANCE * np.abs(theirs).max()


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
