"""Token-level rejection along a chain (Leviathan et al. 2023, algorithm 1; Chen et al. 2023).

A drafted token is kept with probability `min(1, p / q)`. At the first that is not, the target draws
from what its law has over the draft's.
"""

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


def admit(tree: Tree, draws: Draws) -> None:
    """Raises `ValueError` for a tree that is no chain, or candidates that are not drawn."""
    rejection.admit_chain("token_level", tree)
    rejection.admit("token_level", draws)


def verify(
    dice: Dice, candidates: Candidates, logits: Array, sampling: Sampling, *, tree: Tree
) -> Verdict:
    """Keeps tokens up to the first that is rejected."""
    chain = jnp.arange(tree.size)

    def one(dice: Dice, candidates: Candidates, logits: Array, temperature: Array) -> Verdict:
        laws = jax.vmap(law, (0, None))
        p, q = laws(logits, temperature), jax.nn.softmax(candidates.logits)
        drawn = chain[:-1], candidates.tokens[1:]
        kept = dice.test[1 : tree.size] * q[drawn] < p[drawn]
        count = 1 + jnp.cumprod(kept & candidates.valid[1:]).sum()
        last = count - 1
        rejected = (count < tree.size) & candidates.valid[jnp.minimum(count, tree.depth)]
        left = jnp.where(rejected, residual(p[last], q[jnp.minimum(last, tree.depth - 1)]), p[last])
        return Verdict(jnp.minimum(chain, last), count, pick(left, dice.emit))

    return jax.vmap(one)(dice, candidates, logits, sampling.temperature)
