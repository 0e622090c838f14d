"""Shapes of drafts and targets: published models by name, shapes in words, and all shapes within a
budget."""

import bisect
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from jspec.config import ModelConfig, RopeScaling

LLAMA_3_ROPE = RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)


def _llama(
    width: int,
    feedforward: int,
    layers: int,
    heads: int,
    *,
    num_key_value_heads: int = 0,
    channels: int = 128,
    vocabulary: int = 32000,
    context: int = 2048,
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feedforward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=num_key_value_heads or heads,
        head_dim=channels,
        max_position_embeddings=context,
    )


def _llama_3(config: ModelConfig, *, tied: bool = False, factor: float = 8.0) -> ModelConfig:
    return replace(
        config,
        vocab_size=128256,
        max_position_embeddings=131072,
        rope_theta=500000.0,
        rope_scaling=replace(LLAMA_3_ROPE, factor=factor),
        tie_word_embeddings=tied,
    )


def _qwen_3(config: ModelConfig, *, tied: bool = False) -> ModelConfig:
    return replace(
        config,
        vocab_size=151936,
        max_position_embeddings=40960,
        rope_theta=1000000.0,
        norm_eps=1e-6,
        use_qk_norm=True,
        tie_word_embeddings=tied,
    )


def _opt(width: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=50272,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        attention_bias=True,
        out_bias=True,
        mlp_bias=True,
        learned_positions=True,
        norm="layer",
        hidden_act="relu",
        gated=False,
    )


# As their own config.json files have them. The wide drafts are those of arXiv 2402.01528 (Decoding
# Speculative Decoding): heads of 128 channels, of which the width has 20 and attention 32.
SHAPES: dict[str, ModelConfig] = {
    "llama-65b": _llama(8192, 22016, 80, 64),
    "llama2-7b": _llama(4096, 11008, 32, 32, context=4096),
    "llama2-13b": _llama(5120, 13824, 40, 40, context=4096),
    "llama2-70b": _llama(8192, 28672, 80, 64, num_key_value_heads=8, context=4096),
    "llama-68m": _llama(768, 3072, 2, 12, channels=64),
    "sheared-1.3b": _llama(2048, 5504, 24, 16),
    "wide-1.3b": _llama(2560, 9280, 12, 20),
    "wide-796m": _llama(2560, 11008, 5, 32),
    "wide-543m": _llama(2560, 11008, 3, 32),
    "wide-290m": _llama(2560, 11008, 1, 32),
    "llama3.1-8b": _llama_3(_llama(4096, 14336, 32, 32, num_key_value_heads=8)),
    "llama3.1-70b": _llama_3(_llama(8192, 28672, 80, 64, num_key_value_heads=8)),
    "llama3.2-1b": _llama_3(
        _llama(2048, 8192, 16, 32, num_key_value_heads=8, channels=64), tied=True, factor=32.0
    ),
    "llama3.2-3b": _llama_3(
        _llama(3072, 8192, 28, 24, num_key_value_heads=8), tied=True, factor=32.0
    ),
    "qwen3-8b": _qwen_3(_llama(4096, 12288, 36, 32, num_key_value_heads=8)),
    "qwen3-0.6b": _qwen_3(_llama(1024, 3072, 28, 16, num_key_value_heads=8), tied=True),
    "opt-66b": _opt(9216, 64, 72),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-125m": _opt(768, 12, 12),
}

# What words may give, and the fields of `ModelConfig` that they stand for. The size of a head stays
# the same where only heads are given, so that attention may be narrower or wider than the model.
FIELDS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "channels": "head_dim",
    "feedforward": "intermediate_size",
}
# As large as anybody would make one; a model is traced layer by layer.
MOST = dict.fromkeys(FIELDS, 10**7) | {"layers": 1000}
SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}
# Of shapes that are searched: layers, and how many times as wide as a head's channels.
LAYERS = 1, 2, 3, 4, 6, 8, 12, 16
WIDEST = 64
# The feed-forward's width, in widths, and how many times as wide as attention the model is.
FEEDFORWARD = 2, 3, 4
ATTENTION = 1, 2


def read_shape(text: str, target: ModelConfig) -> ModelConfig:
    """`layers=2,width=256,heads=4,feedforward=512` as a draft for a target: what is not given is as
    in the target, heads and their keys follow the width, and the feed-forward is 3 widths."""
    given: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in FIELDS or not re.fullmatch("[0-9]{1,9}", number) or name in given:
            raise ValueError(
                f"draft={text!r}: {part!r} is not understood: give each of {', '.join(FIELDS)} at "
                "most once, as layers=2,width=256"
            )
        given[name] = int(number)
        if not 1 <= given[name] <= MOST[name]:
            raise ValueError(f"draft={text!r}: {name} must lie in 1..{MOST[name]:,}")
    if "layers" not in given:
        raise ValueError(f"draft={text!r}: say how many layers it has")
    width = given.get("width", target.hidden_size)
    channels = given.get("channels", min(target.head_dim, width))
    heads = given.get("heads", max(width // channels, 1))
    return draft_of(
        target,
        num_hidden_layers=given["layers"],
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=given.get("num_key_value_heads", heads),
        head_dim=channels,
        intermediate_size=given.get("feedforward", 3 * width),
    )


def draft_of(target: ModelConfig, **sizes: int) -> ModelConfig:
    """A model of those sizes with the target's tokens and kind of layer; its embedding makes its
    logits too, and all layers see everything."""
    return replace(
        target,
        **sizes,
        tie_word_embeddings=True,
        sliding_window=None,
        sliding_layers=(),
        sliding_rope_theta=None,
    )


def shapes(
    target: ModelConfig,
    fits: Callable[[ModelConfig], bool],
    divides: Callable[[ModelConfig], bool] = lambda _: True,
) -> Iterator[ModelConfig]:
    """Draft shapes: for each number of layers, proportion of the feed-forward and share of the
    width that attention has, the widest that `fits`, no wider than the target, of those that a
    mesh `divides`, or of all where it divides none."""
    most = min(WIDEST, target.hidden_size // target.head_dim)
    for layers, times, share in itertools.product(LAYERS, FEEDFORWARD, ATTENTION):
        if layers > target.num_hidden_layers:
            continue
        widths = [
            draft_of(
                target,
                num_hidden_layers=layers,
                hidden_size=heads * target.head_dim,
                num_attention_heads=heads // share,
                num_key_value_heads=heads // share,
                head_dim=target.head_dim,
                intermediate_size=times * heads * target.head_dim,
            )
            for heads in range(share, most + 1)
        ]
        widths = [one for one in widths if divides(one)] or widths
        # A wider one is larger and slower, so that one that fits is the last of those that do.
        count = bisect.bisect_left(widths, True, key=lambda one: not fits(one))
        if count:
            yield widths[count - 1]


def write_shape(config: ModelConfig) -> str:
    """A shape in the words that `read_shape` reads."""
    return ",".join(f"{word}={getattr(config, name)}" for word, name in FIELDS.items())


def read_count(text: str) -> int:
    """`1500000`, `1.5M` or `0.8B` as a number of parameters."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB]?)", text.strip().upper())
    if not found or not float(found[1]):
        raise ValueError(f"parameters={text!r}: give a number such as 800M or 1.5B")
    return round(float(found[1]) * SCALES[found[2]])
