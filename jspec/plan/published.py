"""Shapes of models that people ask about, by name, as their own config.json files have them."""

from dataclasses import replace

from jspec.config import ModelConfig, RopeScaling

LLAMA_3_ROPE = RopeScaling(factor=8.0, low_frequency=1.0, high_frequency=4.0, original_context=8192)


def _llama(
    width: int,
    feedforward: int,
    layers: int,
    heads: int,
    *,
    kv_heads: int = 0,
    channels: int = 128,
    vocabulary: int = 32000,
    context: int = 2048,
) -> ModelConfig:
    return ModelConfig(
        vocabulary=vocabulary,
        width=width,
        feedforward=feedforward,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads or heads,
        channels=channels,
        context=context,
    )


def _llama_3(config: ModelConfig, *, tied: bool = False, factor: float = 8.0) -> ModelConfig:
    return replace(
        config,
        vocabulary=128256,
        context=131072,
        rope_theta=500000.0,
        rope_scaling=replace(LLAMA_3_ROPE, factor=factor),
        tied=tied,
    )


def _qwen_3(config: ModelConfig, *, tied: bool = False) -> ModelConfig:
    return replace(
        config,
        vocabulary=151936,
        context=40960,
        rope_theta=1000000.0,
        epsilon=1e-6,
        query_key_norm=True,
        tied=tied,
    )


def _opt(width: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        vocabulary=50272,
        width=width,
        feedforward=4 * width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        channels=width // heads,
        context=2048,
        tied=True,
        attention_bias=True,
        out_bias=True,
        feedforward_bias=True,
        learned_positions=True,
        norm="layer",
        activation="relu",
        gated=False,
    )


# The wide drafts are those of arXiv 2402.01528 (Decoding Speculative Decoding): heads of 128
# channels, of which the width has 20 and attention 32.
SHAPES: dict[str, ModelConfig] = {
    "llama-65b": _llama(8192, 22016, 80, 64),
    "llama2-7b": _llama(4096, 11008, 32, 32, context=4096),
    "llama2-13b": _llama(5120, 13824, 40, 40, context=4096),
    "llama2-70b": _llama(8192, 28672, 80, 64, kv_heads=8, context=4096),
    "llama-68m": _llama(768, 3072, 2, 12, channels=64),
    "sheared-1.3b": _llama(2048, 5504, 24, 16),
    "wide-1.3b": _llama(2560, 9280, 12, 20),
    "wide-796m": _llama(2560, 11008, 5, 32),
    "wide-543m": _llama(2560, 11008, 3, 32),
    "wide-290m": _llama(2560, 11008, 1, 32),
    "llama3.1-8b": _llama_3(_llama(4096, 14336, 32, 32, kv_heads=8)),
    "llama3.1-70b": _llama_3(_llama(8192, 28672, 80, 64, kv_heads=8)),
    "llama3.2-1b": _llama_3(
        _llama(2048, 8192, 16, 32, kv_heads=8, channels=64), tied=True, factor=32.0
    ),
    "llama3.2-3b": _llama_3(_llama(3072, 8192, 28, 24, kv_heads=8), tied=True, factor=32.0),
    "qwen3-8b": _qwen_3(_llama(4096, 12288, 36, 32, kv_heads=8)),
    "qwen3-0.6b": _qwen_3(_llama(1024, 3072, 28, 16, kv_heads=8), tied=True),
    "opt-66b": _opt(9216, 64, 72),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-125m": _opt(768, 12, 12),
}
