"""Trees that grow: whole, of the best nodes, and each sequence's its own."""

import functools
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import rows_of

from jspec import DynamicTree, SamplingParams, Tree, generate
from jspec.core.candidates import CHOSEN
from jspec.core.penalties import init_counts
from jspec.core.sampling import sample_noise
from jspec.decode import speculate, start_decoding
from jspec.draft.dynamic_tree import best, draft_dynamic_tree
from jspec.draft.protocol import DraftContext
from jspec.verify import by_confidence, coupled, one_sample
from jspec.verify.coupling import ERROR, ERROR_PER_TEMPERATURE

pytestmark = pytest.mark.law

B, V, WIDTH, DEPTH = 6, 7, 3, 3
SIZES = (DEPTH + 1, 9, 22)
LENGTH = np.arange(3, 3 + B)
TOKENS = np.random.default_rng(5).integers(0, V, (B, 12))
HOW = SamplingParams.create(
    B, temperature=[0, 1, 1, 0.5, 2, 1], frequency_penalty=[0, 0, 1, 0, 1, 0], vocab_size=V
)
BARE = SamplingParams.create(B, temperature=1.0, vocab_size=V)


class Whole:
    """A rule whose scores are whole numbers, so that sums are exact and many are equal."""

    name = "whole"
    draw = staticmethod(coupled.draw)

    @staticmethod
    def score(noise, logits, tokens, sampling, *, depth):
        best = logits.max(axis=-1, keepdims=True)
        return jnp.take_along_axis(logits - best, tokens, axis=-1)


class Boasting(Whole):
    """One whose scores are no log-probabilities: above 0, and NaN."""

    name = "boasting"

    @staticmethod
    def score(noise, logits, tokens, sampling, *, depth):
        return jnp.where(tokens % 3 == 0, jnp.nan, 0.5 * tokens)


def table(kind: str) -> np.ndarray:
    """`[V, V]` what a token anywhere on a path says about the next."""
    random = np.random.default_rng(6).normal(size=(V, V))
    return {
        "random": 3 * random,
        "whole": np.round(random),
        "equal": np.zeros((V, V)),
        "cut": np.where(random < 0.4, -np.inf, 0.0),
    }[kind].astype(np.float32)


def grown(kind: str, tree: DynamicTree, rule, rows=slice(None), how=HOW):
    """What grows below `TOKENS` from a draft that sums a table over the path to each node."""
    keys = jax.random.split(jax.random.key(7), B)
    given = table(kind), *(jax.tree.map(lambda x: x[rows], (TOKENS, LENGTH, keys, how)))
    return jax.tree.map(np.asarray, growing(tree, rule)(*given))


@functools.cache
def growing(tree: DynamicTree, rule):
    def run(level, tokens, carry):
        says, block = carry
        block = jax.lax.dynamic_update_slice_in_dim(block, tokens, level.start, 1)
        # What the mask shows is the path.
        above = says[block[:, : level.mask.shape[-1]]][:, None]
        logits = jnp.where(level.mask[..., None], above, 0).sum(axis=2)
        return logits, logits, (says, block)

    @jax.jit
    def grow(says, tokens, length, keys, how):
        text = DraftContext(
            tokens, length, init_counts(tokens, length, length, vocab_size=V), length > 0
        )
        noise = coupled.sample_noise(keys, length, how, tree=tree, vocab_size=V)
        noise = noise if rule is coupled else jnp.zeros_like(noise)
        carry = says, jnp.full((len(length), tree.rows), -1)
        found, rows, (_, block) = draft_dynamic_tree(
            carry, text, noise, how, tree=tree, rule=rule, run=run
        )
        return found, rows, block

    return grow


@pytest.mark.parametrize("rule", [coupled, Whole, Boasting], ids=lambda rule: rule.name)
@pytest.mark.parametrize("kind", ["random", "whole", "equal", "cut"])
def test_a_grown_tree_is_whole_and_its_tables_are_those_of_its_parents(kind, rule):
    shapes = set()
    for size in SIZES if rule is Whole else (9,):
        tree = DynamicTree(WIDTH, DEPTH, size)
        found, rows, block = grown(kind, tree, rule)
        for row in range(B):
            shape = Tree(tuple(found.parent[row].tolist()))  # raises for what is no tree
            shapes.add(shape)
            np.testing.assert_array_equal(found.depth[row], shape.depths)
            np.testing.assert_array_equal(found.mask[row], shape.mask)
            assert shape.size == size and shape.depth <= DEPTH
            siblings = list(zip(shape.parents, found.tokens[row], strict=True))
            assert len(set(siblings)) == size
            ran = rows[row] >= 0
            assert np.all(ran[shape.inner]) and ran.sum() <= tree.rows
            assert len(set(rows[row, ran])) == ran.sum()
            np.testing.assert_array_equal(block[row, rows[row, ran]], found.tokens[row, ran])
    assert kind == "equal" or rule is Boasting or len(shapes) > len(SIZES)


@pytest.mark.parametrize("kind", ["whole", "equal", "cut"])
def test_a_grown_tree_is_what_a_slow_search_finds(kind):
    for size in SIZES:
        found, _, _ = grown(kind, DynamicTree(WIDTH, DEPTH, size), Whole, how=BARE)
        for row in range(B):
            tokens, parents = searched(table(kind), TOKENS[row, LENGTH[row] - 1], size)
            assert found.tokens[row].tolist() == tokens
            assert found.parent[row].tolist() == parents


def searched(says: np.ndarray, root: int, size: int) -> tuple[list[int], list[int]]:
    """Tokens and parents of the nodes that are kept; of equals the first that was made."""
    made = [SimpleNamespace(path=[root], score=0.0, parent=None)]

    def better(nodes, count):
        ranked = sorted(range(len(nodes)), key=lambda node: (-nodes[node].score, node))
        return [nodes[node] for node in sorted(ranked[:count])]

    front = made[:]
    for _ in range(DEPTH):
        level = []
        for node in front:
            logits = says[node.path].sum(axis=0)
            for token in sorted(range(V), key=lambda token: (-logits[token], token))[:WIDTH]:
                with np.errstate(invalid="ignore"):
                    step = logits[token] - logits.max()
                step = -np.inf if np.isnan(step) else step
                level.append(SimpleNamespace(
                    path=[*node.path, token], score=node.score + step, parent=node
                ))  # fmt: skip
        made += level
        front = better(level, WIDTH)
    kept = [made[0], *better(made[1:], size - 1)]
    places = {id(node): place for place, node in enumerate(kept)}
    return [node.path[-1] for node in kept], [places.get(id(node.parent), -1) for node in kept]


def test_no_node_is_chosen_without_its_ancestors_at_any_count():
    rng = np.random.default_rng(8)
    nodes = 25
    for steps in (-rng.integers(0, 2, nodes), -0.0 * rng.choice([-1, 1], nodes), np.zeros(nodes)):
        parents = np.array([rng.integers(-1, node) if node else -1 for node in range(nodes)])
        scores = np.zeros(nodes, np.float32)
        for node in range(nodes):
            scores[node] = steps[node] + (scores[parents[node]] if parents[node] >= 0 else -0.0)
        for count in (1, 2, 6, 12, 24, 25):
            chosen = np.asarray(best(jnp.asarray(scores)[None], count))[0]
            assert len(set(chosen)) == count and np.all(np.diff(chosen) > 0)
            assert set(parents[chosen]) <= {-1, *chosen}
            left = np.setdiff1d(np.arange(nodes), chosen)
            assert not len(left) or scores[chosen].min() >= scores[left].max()


def test_a_row_grows_alone_as_it_grows_among_others():
    tree = DynamicTree(WIDTH, DEPTH, 9)
    together = grown("random", tree, coupled)
    for row in range(B):
        alone = grown("random", tree, coupled, slice(row, row + 1))
        jax.tree.map(lambda x, y, row=row: np.testing.assert_array_equal(x[row], y[0]), together,
                     alone)  # fmt: skip


def test_every_node_and_only_those_of_a_chain_grow_where_the_width_is_one():
    found, rows, _ = grown("random", DynamicTree(1, 4, 5), coupled)
    assert np.all(found.parent == np.arange(-1, 4)) and np.all(rows == [0, 1, 2, 3, -1])


@pytest.mark.parametrize("rule", [coupled, by_confidence, one_sample], ids=lambda rule: rule.name)
def test_scores_are_the_logarithms_of_a_law(rule):
    logits, hot = np.random.default_rng(9).normal(size=(2, B, 1, V)).astype(np.float32)
    every = jnp.broadcast_to(jnp.arange(V), (B, 1, V))
    scores = rule.score(jnp.asarray(hot), jnp.asarray(logits), every, HOW, depth=0)
    np.testing.assert_allclose(np.exp(scores).sum(axis=-1), 1, rtol=1e-5)


def test_confidence_is_the_law_at_temperature_one_whatever_is_served():
    logits = np.random.default_rng(9).normal(size=(B, 1, V)).astype(np.float32)
    every = jnp.broadcast_to(jnp.arange(V), (B, 1, V))
    hot = np.where(HOW.temperature > 0, HOW.temperature, 1)[:, None, None]
    scores = by_confidence.score(None, jnp.asarray(logits / hot), every, HOW, depth=0)
    np.testing.assert_allclose(scores, jax.nn.log_softmax(logits), rtol=1e-5)


@pytest.mark.slow
def test_how_a_tree_grows_does_not_change_the_text_and_does_change_the_draft(
    target, params, drafts, batch
):
    drafter, weights = drafts["grown small"]
    few = rows_of(batch, np.array([0, 3, 9, 14]))
    how = SamplingParams.create(4, temperature=[0.0, 0.5, 1.0, 2.0])
    found = [
        generate(
            params, weights, few.prompts, few.keys, how,
            target=target, drafter=drafter, rule=rule, max_new_tokens=24,
        )
        for rule in (coupled, by_confidence)
    ]  # fmt: skip
    np.testing.assert_array_equal(found[0].tokens, found[1].tokens)
    assert not np.array_equal(found[0].accepted_by_rank, found[1].accepted_by_rank)


def test_a_rule_of_how_trees_grow_refuses_one_that_does_not():
    with pytest.raises(
        ValueError, match="^rule='by_confidence' .* this tree is static: give tree=dynamic"
    ):
        by_confidence.check_compatible(Tree.chain(2), CHOSEN)
    by_confidence.check_compatible(DynamicTree(2, 2, 3), CHOSEN)


def test_a_draft_that_is_wrong_by_gumbel_noise_is_scored_by_how_often_it_is_right():
    temperature, draws = 1.5, 40_000
    how = SamplingParams.create(1, temperature=temperature)
    logits = jnp.asarray(np.random.default_rng(10).normal(size=(1, 1, V)), jnp.float32)
    noise = jax.random.gumbel(jax.random.key(11), (1, 1, V))
    scale = ERROR + ERROR_PER_TEMPERATURE * temperature
    wrong = scale * jax.random.gumbel(jax.random.key(12), (draws, V)) / temperature
    picks = np.bincount(jnp.argmax((logits + noise)[0] + wrong, axis=-1), minlength=V) / draws
    every = jnp.arange(V)[None, None]
    law = np.exp(coupled.score(noise, logits, every, how, depth=0))[0, 0]
    # Five standard deviations of a frequency near one half.
    np.testing.assert_allclose(picks, law, atol=5 * 0.5 / draws**0.5)


@pytest.mark.slow
def test_after_rounds_a_small_model_drafts_as_if_it_began_with_the_whole_text(
    target, params, drafts, batch
):
    """Rows of nodes that were run and not kept, and of leaves that were run, are told apart."""
    drafter, weights = drafts["grown small"]
    few = rows_of(batch, np.array([0, 3, 9, 14]))
    how = SamplingParams.create(4, temperature=[0.0, 0.5, 1.0, 2.0])
    names = {"target": target, "drafter": drafter, "rule": coupled}
    most = np.full(4, 24, np.int32)
    state = start_decoding(params, weights, few.prompts, most, **names, room=24)
    advance = jax.jit(lambda state: speculate(params, weights, state, few.keys, how, **names))

    def propose(memory, tokens, length, noise):
        text = DraftContext(
            tokens, length, init_counts(tokens, length, length, vocab_size=61), length > 0
        )
        return drafter.propose(weights, memory, text, noise, how, rule=coupled)[0]

    propose = jax.jit(propose)
    for _ in range(5):
        state = advance(state)
        places = state.length[:, None] + np.arange(drafter.tree.path_length)[None]
        noise = sample_noise(few.keys, places, 61, how)
        whole = jnp.pad(state.tokens, ((0, 0), (0, 128 - state.tokens.shape[1])))
        text = replace(few.prompts, tokens=whole, length=state.length)
        fresh = start_decoding(params, weights, text, most, **names, room=24)
        arguments = state.tokens, state.length, noise
        found, expected = (propose(s.drafter, *arguments) for s in (state, fresh))
        np.testing.assert_array_equal(found.tokens, expected.tokens)
        np.testing.assert_array_equal(found.parent, expected.parent)
