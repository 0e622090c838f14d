"""The improved multi-candidate method as its authors' code has it (arXiv 2409.10644): LOSSY.

The text does not follow the target's distribution. The rule is here to be compared with the exact
ones, is not offered by `jspec.verify`, and works with `TargetStartedDrafter` alone.

The first level of a tree holds W roots, drawn without replacement from the distribution R of the
next token, and below each the draft continues. The longest path on which every draft token passes
its own test is emitted, root included. A tree of W chains is the method's fork, any other its
static tree. What departs from an exact scheme:

1. The root whose path is the longest is emitted, so roots do not follow R; at temperature 0 it need
   not be the target's best token.
2. Where no draft token passes, the first root is emitted, and the next R is the target's
   distribution after it, though it was sampled from already and lost: a residual is due.
3. Where a fork rejects, the residual is of the draft's distribution one level too high.
4. Siblings drawn without replacement are tested each by itself, against distributions that ignore
   the siblings before.
5. The first R after a prompt ignores the temperature.
6. At temperature 0 the next R of a fork is the target's distribution at temperature 1, of which the
   W likeliest tokens are roots.

One detail is ours: a root of probability 0 is not valid. Of a static tree at temperature 0 R has
one token alone, beside which the published code takes any W - 1 others.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Verification
from jspec.core.sampling import SamplingParams
from jspec.core.tree import DynamicTree, Tree
from jspec.verify.recursive import WithoutReplacement
from jspec.verify.registry import register
from jspec.verify.rejection import RejectionNoise, inner_index, residual, to_probs

TARGET_STARTED = (
    "below roots that the target has yet to sample (an exact rule takes the draft's own drafter, "
    "whose one root is sampled already)"
)
"""Where the candidates of `TargetStartedDrafter` come from."""


@dataclass(frozen=True, repr=False)
class Lossy(WithoutReplacement):
    """The published rule, whose text is another than the target's. Candidates are sampled without
    replacement, roots too."""

    name = "lossy"
    exact = False
    sources = (TARGET_STARTED,)
    why_not = (
        "it takes roots that the target samples, and these tokens follow one that is emitted "
        "already; give TargetStartedDrafter, or an exact rule"
    )

    def check_compatible(self, tree: Tree | DynamicTree, source: str) -> None:
        """Raises `ValueError` for another drafter's candidates, or a tree that the method lacks."""
        super().check_compatible(tree, source)
        widths = [tree.children(depth) for depth in range(tree.path_length - 1)]
        if tree != Tree.branching(widths) or len(widths) < 2:
            raise ValueError(
                f"tree of {tree.size} nodes: rule={self.name!r} follows roots below which every "
                "node of a level has as many children: give fork:2x4, 2x4x4x1, or chain:5"
            )

    def verify(
        self,
        noise: RejectionNoise,
        candidates: Candidates,
        logits: Array,
        sampling: SamplingParams,
        *,
        tree: Tree | DynamicTree,
    ) -> Verification:
        """Emits the longest path that passes, its root included; the first of those that are as
        long.

        The last node of the path is the `bonus_token`, so that it is the node at `num_accepted`.
        With no root at all nothing is emitted, and the path is node 0 again.
        """
        assert isinstance(tree, Tree)
        depths, above = jnp.asarray(tree.depths), np.maximum(tree.parents, 0)
        paths = jnp.asarray(_paths(tree))

        def one(
            noise: RejectionNoise, candidates: Candidates, logits: Array, temperature: Array
        ) -> Verification:
            assert candidates.draft_logits is not None
            tokens = candidates.tokens
            p = jax.vmap(to_probs, (0, None))(logits, temperature)[above, tokens]
            q = jax.nn.softmax(candidates.draft_logits)[inner_index(tree, above), tokens]
            passes = (depths < 2) | (noise.uniforms[: tree.size] * q < p)
            passed = candidates.valid & passes
            whole = ~jnp.any(jnp.asarray(tree.mask) & ~passed[None], axis=1)
            last = jnp.argmax(jnp.where(whole, depths, 0))
            return Verification(paths[last], depths[last], tokens[last])

        return jax.vmap(one)(noise, candidates, logits, sampling.temperature)

    def root_logits(
        self,
        logits: Array,
        draft: Array,
        path: Array,
        count: Array,
        valid: Array,
        first: Array,
        sampling: SamplingParams,
        *,
        tree: Tree,
    ) -> Array:
        """Log-probabilities `[B, V]` of R, from which the next round's roots are drawn.

        Args:
          logits: `[B, V]` the target's processed logits after the token that was emitted last.
          draft: `[B, I, V]`, and valid: `[B, N]`, of the last round's candidates.
          path: `[B, A]`, and count: `[B]`, of the verification of these.
          first: `[B]` whether nothing has been emitted yet.
        """
        fork = is_fork(tree)
        parents = jnp.asarray(tree.parents)
        rows = jnp.asarray(inner_index(tree, np.arange(tree.size)))

        def one(
            logits: Array,
            draft: Array,
            path: Array,
            count: Array,
            valid: Array,
            first: Array,
            temperature: Array,
        ) -> Array:
            last, above = path[count], path[jnp.maximum(count - 1, 0)]
            soft = jax.nn.softmax(logits)
            p = soft if fork else jnp.where(first, soft, to_probs(logits, temperature))
            q = jax.nn.softmax(draft[rows[above if fork else last]])
            rejected = (valid & (parents == last)).any() & (count > 1) & (temperature > 0)
            return jnp.log(jnp.where(rejected, residual(p, q), p))

        return jax.vmap(one)(logits, draft, path, count, valid, first, sampling.temperature)


LOSSY = register(Lossy())


def is_fork(tree: Tree) -> bool:
    """Whether it branches nowhere but into its roots."""
    return all(tree.children(depth) == 1 for depth in range(1, tree.depth))


def _paths(tree: Tree) -> np.ndarray:
    """`[N, A]` the nodes from node 0 to each, which is repeated."""
    lines = (np.flatnonzero(row) for row in tree.mask)
    return np.stack([np.pad(x, (0, tree.path_length - len(x)), mode="edge") for x in lines])
