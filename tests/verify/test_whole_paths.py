"""Why paths are weighed whole: more is kept than token by token; and what the two rules share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from laws import PROMPT, SMALLEST_P, enumerable, enumerable_params, p_value, unrelated_params
from texts import NO_STOPS

from jspec import (
    Candidates,
    Rule,
    SamplingParams,
    SmallModelDrafter,
    Tree,
    Verification,
    autoregress,
    generate,
    pad_prompts,
)
from jspec.core.tree import NO_NODE
from jspec.verify import block, token_level, traversal, without_replacement
from jspec.verify.paths import rejection_residual

ROUNDS, VOCABULARY = 20_000, 4
# Laws that lie near each other, far apart, and that have zeros.
SHARPNESS = (0.5, 1.5, 4.0)
RAGGED = Tree.from_paths([(0, 0), (0, 1, 0), (1, 0)])


@pytest.mark.parametrize("tree", [Tree.chain(1), Tree.chain(4)], ids=lambda tree: tree.depth)
def test_along_a_chain_block_and_traversal_keep_the_same(tree):
    for sharpness in SHARPNESS:
        _, one = rounds(block, tree, sharpness)
        _, other = rounds(traversal, tree, sharpness)
        jax.tree.map(np.testing.assert_array_equal, one, other)
        assert len(np.unique(one.num_accepted)) == tree.size


def test_of_equal_laws_a_sure_path_is_sure_still_and_another_has_nothing_left():
    p = jnp.array([0.5, 0.3, 0.2])
    chance, left = rejection_residual(1.0, p, p)
    assert chance == 1
    np.testing.assert_array_equal(left, p)
    assert rejection_residual(0.5, p, p)[0] == 0


def test_along_a_chain_of_one_block_verification_is_token_level_rejection():
    for sharpness in SHARPNESS:
        _, one = rounds(block, Tree.chain(1), sharpness)
        _, other = rounds(token_level, Tree.chain(1), sharpness)
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    ("whole", "piecemeal", "tree"),
    [
        (block, token_level, Tree.chain(3)),
        (traversal, without_replacement, Tree.branching((2, 2))),
        (traversal, without_replacement, RAGGED),
    ],
    ids=["chain", "pairs", "ragged"],
)
def test_whole_paths_are_kept_further_than_token_by_token(whole, piecemeal, tree):
    gains = []
    for sharpness in SHARPNESS:
        (_, more), (_, less) = (rounds(rule, tree, sharpness) for rule in (whole, piecemeal))
        gain = np.asarray(more.num_accepted) - np.asarray(less.num_accepted)
        # In standard errors. The candidates are the same, so little but the gain is left.
        gains.append(gain.mean() / (gain.std() / ROUNDS**0.5))
    print(gains)
    assert min(gains) > -4 and max(gains) > 5


@pytest.mark.parametrize("rule", [block, traversal], ids=["block", "traversal"])
def test_a_path_that_ends_for_what_it_is_keeps_the_law(rule):
    """What stands below a node may depend on the node: a drafter that stops early is no cheat."""
    tree = Tree.chain(3)
    for sharpness in SHARPNESS:
        candidates, verification = rounds(rule, tree, sharpness, last=1)
        assert np.isin(np.asarray(verification.num_accepted), (2, 3)).any()
        p, _ = laws(sharpness)
        first, second = np.asarray(two_tokens(candidates, verification, p))
        counts = np.zeros((VOCABULARY,) * 2)
        np.add.at(counts, (first, second), 1)
        assert p_value(counts, p[0][:, None] * p) > SMALLEST_P


@pytest.mark.parametrize(
    ("rule", "tree"), [(block, Tree.chain(3)), (traversal, RAGGED)], ids=["block", "traversal"]
)
def test_greedy_rows_write_what_plain_decoding_writes_beside_others_that_sample(rule, tree):
    rows = [PROMPT, [1, 2], [5, 0, 4], PROMPT]
    batch = pad_prompts(
        rows, context_length=enumerable.config.max_position_embeddings, max_new_tokens=12
    )
    keys = jax.random.split(jax.random.key(7), len(rows))
    how = SamplingParams.create(
        len(rows),
        temperature=[0, 1, 0, 1],
        repetition_penalty=[1, 1, 1.3, 1],
        top_k=[0, 2, 0, 2],
        stop_token_ids=NO_STOPS,
    )
    plain = autoregress(enumerable_params(), batch, keys, how, target=enumerable, max_new_tokens=12)
    for draft in (enumerable_params(), unrelated_params()):
        written = generate(
            enumerable_params(), draft, batch, keys, how, target=enumerable,
            drafter=SmallModelDrafter(enumerable, tree), rule=rule, max_new_tokens=12,
        )  # fmt: skip
        np.testing.assert_array_equal(written.tokens[::2], plain.tokens[::2])


def laws(sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """`[V, V]` of the target and of the draft: the law of the token after each."""
    noise = np.random.default_rng(5).normal(size=(2, VOCABULARY, VOCABULARY))
    law = np.exp(sharpness * noise)
    if sharpness == SHARPNESS[-1]:
        law = np.where(law == law.min(axis=-1, keepdims=True), 0, law)
    p, q = law / law.sum(axis=-1, keepdims=True)
    return p, q


def rounds(
    rule: Rule, tree: Tree, sharpness: float, last: int | None = None
) -> tuple[Candidates, Verification]:
    """Many rounds after token 0, with the same laws.

    Args:
      last: a token after which none is drafted.
    """
    with np.errstate(divide="ignore"):
        p, q = (jnp.asarray(np.log(law), jnp.float32) for law in laws(sharpness))
    return _rounds(p, q, rule=rule, tree=tree, last=last)


@functools.partial(jax.jit, static_argnames=("rule", "tree", "last"))
def _rounds(
    p: Array, q: Array, *, rule: Rule, tree: Tree, last: int | None
) -> tuple[Candidates, Verification]:
    keys, how = (
        jax.random.split(jax.random.key(6), ROUNDS),
        SamplingParams.create(ROUNDS, temperature=1.0),
    )
    noise = rule.sample_noise(keys, jnp.full(ROUNDS, 5), how, tree=tree, vocab_size=VOCABULARY)
    tokens = jnp.zeros((ROUNDS, tree.size), jnp.int32)
    valid = jnp.ones((ROUNDS, tree.size), bool)
    for depth in range(tree.depth):
        nodes = np.flatnonzero(tree.inner & (tree.depths == depth))
        children = tree.offspring[nodes, : tree.children(depth)]
        real = children != NO_NODE
        drawn, there = rule.draw(noise, q[tokens[:, nodes]], tree=tree, depth=depth, nodes=nodes)
        there &= (tokens[:, nodes] != last)[..., None] if last is not None else True
        tokens = tokens.at[:, children[real]].set(drawn[:, real])
        valid = valid.at[:, children[real]].set(there[:, real])
    parent = jnp.broadcast_to(jnp.asarray(tree.parents), tokens.shape)
    candidates = Candidates(tokens, parent, valid, q[tokens[:, np.flatnonzero(tree.inner)]])
    return candidates, rule.verify(noise, candidates, p[tokens], how, tree=tree)


def two_tokens(
    candidates: Candidates, verification: Verification, p: np.ndarray
) -> tuple[Array, Array]:
    """`[ROUNDS]` each: the first two tokens after the root, the second drawn by the target where a
    round wrote but one."""
    drafted = jnp.take_along_axis(candidates.tokens, verification.accepted_path, axis=1)
    first = jnp.where(verification.num_accepted > 1, drafted[:, 1], verification.bonus_token)
    with np.errstate(divide="ignore"):
        drawn = jax.random.categorical(jax.random.key(8), jnp.asarray(np.log(p))[first])
    second = jnp.where(verification.num_accepted > 2, drafted[:, 2], verification.bonus_token)
    return first, jnp.where(verification.num_accepted > 1, second, drawn)
