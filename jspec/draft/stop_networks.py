"""A small network that foretells whether a guess is kept (arXiv 2409.10644, its decision model).

After each level it looks at the nodes whose children were drawn, and another level is drafted if it
gives any of them more than the threshold, whatever it gave to those above. Soft: from the draft's
hidden state, taught how likely the drawn token is kept. Hard: from the entropy and the ten highest
probabilities of the draft's law, taught whether the target picks the token: here with the dice that
it will have when it decodes, where the published label is whether it is the target's likeliest.
"""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array

from jspec.core.candidates import Rule
from jspec.draft.stopping import Seen, check_threshold, entropy
from jspec.models.protocol import Params

PUBLISHED_THRESHOLD = 0.4
TOP = 10
LAW_SIZES = 1 + TOP, 4 * (1 + TOP), 1


def hidden_sizes(width: int) -> tuple[int, ...]:
    """Of a network for hidden states of D = `width`: the published ones of 768 and 2048, and for
    others two thirds and one third of it, as those of 768 are."""
    if width == 2048:
        return width, 1024, 512, 1
    return width, max(width * 2 // 3, 1), max(width // 3, 1), 1


@dataclass(frozen=True)
class Network:
    """A multilayer perceptron with `sizes` from its input to the one logit it gives."""

    sizes: tuple[int, ...]
    threshold: float = PUBLISHED_THRESHOLD

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if len(self.sizes) < 2 or min(self.sizes) < 1 or self.sizes[-1] != 1:
            raise ValueError(f"sizes={self.sizes}: give them from the input to one logit")

    def admit(self, rule: Rule) -> None:
        """Under every rule."""

    def init(self, key: Array) -> Params:
        """Fresh parameters: of each layer `weight` `[out, in]` and `bias` `[out]`."""
        draw = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)
        keys = jax.random.split(key, len(self.sizes) - 1)
        layers = zip(keys, pairwise(self.sizes), strict=True)
        return tuple(
            {"weight": draw(key, (out, into)), "bias": jnp.zeros(out)}
            for key, (into, out) in layers
        )

    def check(self, params: Params) -> None:
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

    def start(self, batch: int) -> tuple[()]:
        return ()

    def learn(self, memory: tuple[()], kept: Array, levels: Array) -> tuple[()]:
        return memory

    def judge(self, params: Params, memory: tuple[()], worth: Array, seen: Seen) -> Array:
        found = jax.nn.sigmoid(self.chance(params, self.look(seen.hidden, seen.logits)))
        return found.max(axis=-1)

    def chance(self, params: Params, inputs: Array) -> Array:
        """`[..., in]` -> `[...]` logits that a guess is kept."""
        x = inputs.astype(jnp.float32)
        for number, layer in enumerate(params):
            x = jax.nn.relu(x) if number else x
            x = x @ layer["weight"].T
            x += jnp.broadcast_to(layer["bias"], x.shape)
        return x[..., 0]

    def look(self, hidden: Array, logits: Array) -> Array:
        """What it reads of nodes with hidden states `[..., D]` and warped logits `[..., V]`."""
        raise NotImplementedError


@dataclass(frozen=True)
class HiddenNetwork(Network):
    """The published soft one, of the draft's last hidden state."""

    def look(self, hidden: Array, logits: Array) -> Array:
        if hidden.shape[-1] != self.sizes[0]:
            raise ValueError(
                f"stop: the decision network was taught for a draft of width {self.sizes[0]}, and "
                f"this one has {hidden.shape[-1]}: teach one for it by jspec decide"
            )
        return hidden


@dataclass(frozen=True)
class LawNetwork(Network):
    """The published hard one, of the draft's law."""

    sizes: tuple[int, ...] = LAW_SIZES

    def look(self, hidden: Array, logits: Array) -> Array:
        law = jax.nn.softmax(logits)
        missing = max(TOP - law.shape[-1], 0)
        best = jax.lax.top_k(law, min(TOP, law.shape[-1]))[0]
        best = jnp.pad(best, [(0, 0)] * (best.ndim - 1) + [(0, missing)])
        return jnp.concatenate([entropy(logits)[..., None], best], axis=-1)
