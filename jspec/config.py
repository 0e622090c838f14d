"""What a model is made of: sizes and constants, frozen and hashable, so that jit can take them.

Fields have Hugging Face's names wherever it has one.
"""

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True)
class RopeScaling:
    """How rotary wavelengths are stretched: by `factor` alone (linear), or as Llama 3.1 does.

    >>> RopeScaling(2.0).linear
    True
    >>> RopeScaling(8.0, 1.0, 4.0, original_max_position_embeddings=8192).linear
    False
    """

    factor: float
    low_freq_factor: float = 0.0
    high_freq_factor: float = 0.0
    original_max_position_embeddings: int = 0

    @property
    def linear(self) -> bool:
        """Whether `factor` divides every frequency."""
        return self.original_max_position_embeddings == 0


@dataclass(frozen=True)
class Shape:
    """What decoding has to know of any model: V, L, K, C, and the number of positions.

    >>> Shape(61, 1, num_key_value_heads=4, head_dim=8, max_position_embeddings=512).vocab_size
    61
    """

    vocab_size: int
    num_hidden_layers: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int

    def __post_init__(self) -> None:
        _check_positive(self)


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer. Axis letters: V, D, F, L, H, K, C.

    The defaults are Llama's. Each thing in which other families differ has a field.

    Attributes:
      attention_bias: of queries, keys and values; `out_bias` is that of attention's output.
      mlp_bias: of all matrices of the feed-forward network.
      sliding_window: how many positions a layer of `sliding_layers` sees, its own included; the
        other layers see all.
      sliding_rope_theta: of the sliding layers, which are then not scaled; None if `rope_theta` and
        `rope_scaling` hold for all layers.
      learned_positions: a table that is added to the embedding, in place of rotary angles.
      norm: `rms`, `rms_plus_one` (Gemma: multiplies by 1 + weight) or `layer` (OPT).
      norm_place: `before` a sublayer, `around` it (Gemma), or `after` its residual.
      use_qk_norm: whether each query and key has a norm over its channels.
      query_pre_attn_scalar: scores are divided by its square root; None for that of C.
      attn_logit_softcapping, final_logit_softcapping: soft caps of attention scores and of logits.
      hidden_act: `silu`, `gelu_pytorch_tanh` or `relu`.
      gated: whether a second matrix multiplies the activation.
      scale_embedding: whether embeddings are multiplied by the square root of D.

    >>> config = ModelConfig(
    ...     vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    ...     num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=256,
    ... )
    >>> config.rope_theta
    10000.0
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    out_bias: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    sliding_rope_theta: float | None = None
    learned_positions: bool = False
    norm: str = "rms"
    norm_place: str = "before"
    final_norm: bool = True
    use_qk_norm: bool = False
    query_pre_attn_scalar: int | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    hidden_act: str = "silu"
    gated: bool = True
    scale_embedding: bool = False

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}: every key-value head serves the "
                "same number of query heads"
            )
        if self.head_dim % 2 and not self.learned_positions:
            raise ValueError(f"head_dim={self.head_dim} is odd: rotary positions rotate pairs")
        layers = range(self.num_hidden_layers)
        if list(self.sliding_layers) != sorted(set(self.sliding_layers) & set(layers)):
            raise ValueError(
                f"sliding_layers={self.sliding_layers}: give layers from 0 to {len(layers) - 1}, "
                "in order"
            )
        if (self.sliding_window is None) != (not self.sliding_layers):
            raise ValueError(
                f"sliding_window={self.sliding_window} with sliding_layers={self.sliding_layers}: "
                "give both, or neither"
            )
        for name, known in CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"{name}={value!r} is not known: {', '.join(known)} are")


CHOICES = {
    "norm": ("rms", "rms_plus_one", "layer"),
    "norm_place": ("before", "around", "after"),
    "hidden_act": ("silu", "gelu_pytorch_tanh", "relu"),
}


def _check_positive(config: Shape | ModelConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type in (int, int | None) and value is not None and value < 1:
            raise ValueError(f"{field.name}={value}: a model needs at least 1")
