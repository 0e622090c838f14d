"""Block verification along a chain (arXiv 2403.10444): its tokens are weighed together.

What the target gives to one token beyond the draft makes up for what the next ones lack, so that
no fewer are kept on average than token by token. Along a chain of one the two rules are the same.
"""

from itertools import accumulate

import jax
import jax.numpy as jnp
from jax import Array

from jspec.core.candidates import Candidates, Draws, Verdict
from jspec.core.sampling import Sampling
from jspec.core.tree import Tree
from jspec.verify import rejection, without_replacement
from jspec.verify.rejection import Dice, law, pick, residual

WEIGHS = True
roll, draw = without_replacement.roll, without_replacement.draw
LEAST = jnp.finfo(jnp.float32).tiny


def admit(tree: Tree, draws: Draws) -> None:
    """Raises `ValueError` for a tree that is no chain, or candidates that are not drawn."""
    rejection.admit_chain("block", tree)
    rejection.admit("block", draws)


def verify(
    dice: Dice, candidates: Candidates, logits: Array, sampling: Sampling, *, tree: Tree
) -> Verdict:
    """Keeps the longest of the paths that pass their tests; each is tested, whatever the others."""
    chain = jnp.arange(tree.size)

    def one(dice: Dice, candidates: Candidates, logits: Array, temperature: Array) -> Verdict:
        laws = jax.vmap(law, (0, None))
        p, q = laws(logits, temperature), jax.nn.softmax(candidates.logits)
        drawn = chain[:-1], candidates.tokens[1:]
        ratios = zip(p[drawn], q[drawn], strict=True)
        weights = jnp.stack(list(accumulate(ratios, lambda w, pq: carried(w, *pq), initial=1.0)))
        chances, left = jax.vmap(rejected)(weights[:-1], p[:-1], q)
        end = jnp.cumprod(candidates.valid[1:]).sum()
        chances = jnp.where(chain < end, jnp.append(chances, 0.0), weights)
        last = jnp.where((dice.test[: tree.size] < chances) & (chain <= end), chain, 0).max()
        rest = jnp.where(last < end, left[jnp.minimum(last, tree.depth - 1)], p[last])
        return Verdict(jnp.minimum(chain, last), 1 + last, pick(rest, dice.emit))

    return jax.vmap(one)(dice, candidates, logits, sampling.temperature)


def carried(weight: Array, p: Array, q: Array) -> Array:
    """The weight of a path with one more token, from that without it and the token's
    probabilities: how likely it would be kept if it ended there."""
    return jnp.minimum(1.0, weight * p / jnp.maximum(q, LEAST))


def rejected(weight: Array | float, p: Array, q: Array) -> tuple[Array, Array]:
    """The weight and the law `[V]` that remain to a path when what goes on by a draw of `q` is
    rejected."""
    left = jnp.maximum(weight * p - q, 0.0).sum()
    # At weight 1 nothing was lost: what ends here is kept, even where nothing is left.
    chance = jnp.where(weight < 1, left / jnp.maximum(left + (1.0 - weight), LEAST), 1.0)
    return chance, residual(weight * p, q)
