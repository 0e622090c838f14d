"""What a model is made of: shapes and constants, frozen and hashable, so that jit can take them."""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 stretches its rotary wavelengths; `factor` alone is linear scaling."""

    factor: float
    low_frequency: float = 0.0
    high_frequency: float = 0.0
    original_context: int = 0

    @property
    def linear(self) -> bool:
        return self.original_context == 0


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer. Letters as everywhere: V, D, F, L, H, K, C."""

    vocabulary: int
    width: int
    feedforward: int
    layers: int
    heads: int
    kv_heads: int
    channels: int
    context: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    epsilon: float = 1e-5
    tied: bool = False
    attention_bias: bool = False
    feedforward_bias: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" or field.type is int:
                if value < 1:
                    raise ValueError(f"{field.name}={value}: a model needs at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: "
                "every key-value head serves the same number of query heads"
            )
        if self.channels % 2:
            raise ValueError(f"channels={self.channels} is odd: rotary positions turn pairs")
