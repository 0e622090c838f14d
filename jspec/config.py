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
class Shape:
    """What decoding asks of any model: V, L, K, C, and how many positions there are."""

    vocabulary: int
    layers: int
    kv_heads: int
    channels: int
    context: int

    def __post_init__(self) -> None:
        _refuse_less_than_one(self)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer. Letters as everywhere: V, D, F, L, H, K, C.

    The defaults are Llama's; what other families change has a field each.

    Attributes:
      attention_bias: of queries, keys and values; `out_bias` of what leaves attention.
      window: positions that a layer of `local_layers` sees, its own included; the rest see all.
      local_rope_theta: of the local layers, which are then not scaled; None for one of all layers.
      learned_positions: a table added to the embedding in place of rotary angles.
      norm: `rms`, `rms_plus_one` (Gemma: weights stand for 1 + w) or `layer` (OPT).
      norm_place: `before` a sublayer, `around` it (Gemma), or `after` its residual.
      query_key_norm: of the channels of every query and key.
      query_scalar: scores are divided by its root; None for that of the channels.
      score_cap, logit_cap: bounds that attention scores and logits bend towards.
      activation: `silu`, `gelu_tanh` or `relu`; `gated` when a second matrix multiplies it.
      scale_embedding: whether embeddings are multiplied by the root of D.
    """

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
    out_bias: bool = False
    window: int | None = None
    local_layers: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    learned_positions: bool = False
    norm: str = "rms"
    norm_place: str = "before"
    final_norm: bool = True
    query_key_norm: bool = False
    query_scalar: int | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    activation: str = "silu"
    gated: bool = True
    scale_embedding: bool = False

    def __post_init__(self) -> None:
        _refuse_less_than_one(self)
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: "
                "every key-value head serves the same number of query heads"
            )
        if self.channels % 2 and not self.learned_positions:
            raise ValueError(f"channels={self.channels} is odd: rotary positions turn pairs")
        if list(self.local_layers) != sorted(set(self.local_layers) & set(range(self.layers))):
            raise ValueError(
                f"local_layers={self.local_layers}: layers from 0 to {self.layers - 1}, in order"
            )
        if (self.window is None) != (not self.local_layers):
            raise ValueError(
                f"window={self.window} with local_layers={self.local_layers}: give both, or neither"
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is none of: {', '.join(known)}")


CHOICES = {
    "norm": ("rms", "rms_plus_one", "layer"),
    "norm_place": ("before", "around", "after"),
    "activation": ("silu", "gelu_tanh", "relu"),
}


def _refuse_less_than_one(config: Shape | ModelConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        counted = field.type is int or (field.type == int | None and value is not None)
        if counted and value < 1:
            raise ValueError(f"{field.name}={value}: a model needs at least 1")
