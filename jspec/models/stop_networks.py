"""Small networks that predict whether a draft token is accepted (arXiv 2409.10644).

Soft: from the draft's hidden state, trained on the probability that the draft token is accepted.
Hard: from the entropy and the ten highest probabilities of the draft's distribution, trained on
whether the target picks the token: here with the noise of decoding, in the paper without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from jspec.core.products import project
from jspec.models.protocol import Params

PUBLISHED_THRESHOLD = 0.4
TOP = 10
DISTRIBUTION_SIZES = 1 + TOP, 4 * (1 + TOP), 1


def hidden_sizes(width: int) -> tuple[int, ...]:
    """Layer sizes for hidden states of D = `width`: the published ones for 768 and 2048.

    For other widths they are two thirds and one third of it, as for 768.

    >>> hidden_sizes(768)
    (768, 512, 256, 1)
    """
    if width == 2048:
        return width, 1024, 512, 1
    return width, max(width * 2 // 3, 1), max(width // 3, 1), 1


@dataclass(frozen=True)
class StopNetwork:
    """A multilayer perceptron with `sizes` from its input to the one logit that it returns.

    >>> network = HiddenStateNetwork(hidden_sizes(768))
    >>> params = network.init(jax.random.key(0))
    >>> network.logits(params, jnp.zeros((2, 768))).shape
    (2,)
    """

    sizes: tuple[int, ...]
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1 or self.sizes[-1] != 1:
            raise ValueError(f"sizes={self.sizes}: give them from the input to one logit")

    def init(self, key: Array) -> Params:
        """Fresh parameters: of each layer `weight` `[out, in]` and `bias` `[out]`."""
        draw = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)
        keys = jax.random.split(key, len(self.sizes) - 1)
        layers = zip(keys, pairwise(self.sizes), strict=True)
        return tuple(
            {"weight": draw(key, (out, into), jnp.float32), "bias": jnp.zeros(out, jnp.float32)}
            for key, (into, out) in layers
        )

    def check_params(self, params: Params) -> None:
        """Raises `ValueError` if these are not its parameters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        same = jax.tree.structure(params) == jax.tree.structure(shapes) and all(
            jax.tree.leaves(jax.tree.map(lambda x, y: x.shape == y.shape, params, shapes))
        )
        if not same:
            raise ValueError(
                f"stop: these are not parameters of a network of sizes {list(self.sizes)}: give "
                "those that were read beside it"
            )

    def logits(self, params: Params, inputs: Array) -> Array:
        """`[..., in]` -> `[...]` logits that a draft token is accepted."""
        x = inputs.astype(jnp.float32)
        for number, layer in enumerate(params):
            x = jax.nn.relu(x) if number else x
            x = project(x, layer["weight"])
            x += jnp.broadcast_to(layer["bias"], x.shape)
        return x[..., 0]

    def inputs(self, hidden: Array, logits: Array) -> Array:
        """`[..., in]`: its inputs from hidden states `[..., D]` and processed logits `[..., V]`."""
        raise NotImplementedError


@dataclass(frozen=True)
class HiddenStateNetwork(StopNetwork):
    """The published soft one, which reads the draft's last hidden state."""

    kind = "hidden"

    def inputs(self, hidden: Array, logits: Array) -> Array:  # noqa: ARG002
        """The hidden states; raises `ValueError` for those of a draft of another width."""
        if hidden.shape[-1] != self.sizes[0]:
            raise ValueError(
                f"stop: the network was trained for a draft of width {self.sizes[0]}, and this one "
                f"has {hidden.shape[-1]}: train one for it by jspec decide"
            )
        return hidden


@dataclass(frozen=True)
class DistributionNetwork(StopNetwork):
    """The published hard one, which reads the draft's distribution."""

    sizes: tuple[int, ...] = DISTRIBUTION_SIZES
    kind = "distribution"

    def inputs(self, hidden: Array, logits: Array) -> Array:  # noqa: ARG002
        """Entropy and highest probabilities, `[..., 11]`."""
        probs = jax.nn.softmax(logits)
        missing = max(TOP - probs.shape[-1], 0)
        top = jax.lax.top_k(probs, min(TOP, probs.shape[-1]))[0]
        top = jnp.pad(top, [(0, 0)] * (top.ndim - 1) + [(0, missing)])
        return jnp.concatenate([entropy(logits)[..., None], top], axis=-1)


NETWORKS: Mapping[str, type[StopNetwork]] = {
    network.kind: network for network in (HiddenStateNetwork, DistributionNetwork)
}


def entropy(logits: Array) -> Array:
    """`[..., V]` logits -> `[...]` nats."""
    log = jax.nn.log_softmax(logits)
    # A token that is filtered out has probability 0 and adds nothing.
    return -jnp.where(log > -jnp.inf, jnp.exp(log) * log, 0.0).sum(axis=-1)
