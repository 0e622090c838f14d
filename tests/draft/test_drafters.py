"""What the drafters propose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import next_token_law
from texts import TOKENS, rows_of, speculative_text, teach

from jspec import DynamicTree, LookupDrafter, SamplingParams, SmallModelDrafter, Tree
from jspec.core.penalties import init_counts
from jspec.core.sampling import sample_noise
from jspec.draft.protocol import DraftContext
from jspec.verify import coupled

pytestmark = pytest.mark.law


def looked_up(text: list[int], *, width: int, depth: int, longest: int, shortest: int):
    """Chains by search: the longest match first, then the latest, each with another first token."""
    matches = []
    for place in range(len(text) - 1):
        length = 0
        while length < min(longest, place + 1) and text[place - length] == text[-1 - length]:
            length += 1
        if length >= shortest:
            matches.append((length, place))
    chains = []
    for _, place in sorted(matches, reverse=True):
        followed = list(text)
        for step in range(depth):
            # A copy past the end of the text copies what it has itself just written.
            followed.append(followed[place + 1 + step])
        chain = followed[len(text) :]
        if chain[0] not in [other[0] for other in chains] and len(chains) < width:
            chains.append(chain)
    return chains


def propose(drafter: LookupDrafter, texts: list[list[int]], garbage: int = 0):
    """Candidates for `texts`, which are filled up with `garbage`."""
    capacity = max(map(len, texts)) + 6
    tokens = np.full((len(texts), capacity), garbage, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    length = np.array([len(text) for text in texts], np.int32)
    context = DraftContext(
        tokens, length, init_counts(tokens, length, length, vocab_size=16), length > 0
    )
    return jax.jit(drafter.propose, static_argnames="rule")(
        (), (), context, None, None, rule=coupled
    )[0]


@pytest.mark.parametrize(
    ("width", "depth", "longest", "shortest"), [(1, 4, 3, 1), (3, 3, 4, 1), (2, 2, 3, 2)]
)
def test_prompt_lookup_copies_what_followed_the_longest_latest_match(
    width, depth, longest, shortest
):
    rng = np.random.default_rng(91)
    texts = [rng.integers(0, 4, rng.integers(1, 30)).tolist() for _ in range(100)]
    tree = Tree.fork(width, depth)
    drafter = LookupDrafter(tree, longest, shortest)
    candidates = propose(drafter, texts, garbage=2)
    np.testing.assert_array_equal(candidates.tokens[:, 0], [text[-1] for text in texts])
    paths = [np.flatnonzero(tree.mask[leaf])[1:] for leaf in range(tree.size - width, tree.size)]
    found = 0
    for row, text in enumerate(texts):
        expected = looked_up(text, width=width, depth=depth, longest=longest, shortest=shortest)
        found += len(expected)
        for chain, path in enumerate(paths):
            assert np.all(np.asarray(candidates.valid)[row, path] == (chain < len(expected)))
            if chain < len(expected):
                assert np.asarray(candidates.tokens)[row, path].tolist() == expected[chain]
    assert 0 < found < width * len(texts)


def test_prompt_lookup_prefers_a_longer_match_to_a_later_one():
    candidates = propose(LookupDrafter(Tree.chain(2)), [[1, 2, 3, 7, 2, 3, 8, 1, 2, 3]])
    assert candidates.tokens[0].tolist() == [3, 7, 2]


def test_prompt_lookup_follows_a_loop_past_the_end():
    candidates = propose(LookupDrafter(Tree.chain(5)), [[9, 4, 5, 4, 5], [6, 6]])
    assert candidates.tokens.tolist() == [[5, 4, 5, 4, 5, 4], [6, 6, 6, 6, 6, 6]]
    assert np.all(candidates.valid)


def test_prompt_lookup_drafts_nothing_where_nothing_was_seen_before():
    candidates = propose(LookupDrafter(Tree.fork(2, 2)), [[1, 2, 3], [5]])
    assert not np.any(candidates.valid[:, 1:])
    assert np.all(candidates.valid[:, 0])


def test_chains_of_a_fork_start_with_different_tokens():
    rng = np.random.default_rng(92)
    texts = [rng.integers(0, 3, 40).tolist() for _ in range(50)]
    candidates = propose(LookupDrafter(Tree.fork(3, 2)), texts)
    for row in range(50):
        first = np.asarray(candidates.tokens)[row, 1:4][np.asarray(candidates.valid)[row, 1:4]]
        assert len(set(first)) == len(first) > 1


def test_prompt_lookup_refuses_what_it_cannot_fill():
    with pytest.raises(ValueError, match="branches below its root"):
        LookupDrafter(Tree.branching((2, 2)))
    with pytest.raises(ValueError, match="tree of 4 nodes is dynamic and needs scores"):
        LookupDrafter(DynamicTree(1, 3, 4))
    with pytest.raises(ValueError, match="shortest=0"):
        LookupDrafter(Tree.chain(2), shortest=0)
    with pytest.raises(ValueError, match="longest=1"):
        LookupDrafter(Tree.chain(2), longest=1, shortest=2)


def test_a_draft_equal_to_the_target_is_always_right(target, params, drafts, batch):
    """The same noise and the same logits: every candidate of every chain is accepted."""
    tree = drafts["chain"].drafter.tree
    written = speculative_text(target, params, batch, drafts["chain"])
    whole, rest = divmod(TOKENS, tree.path_length)
    np.testing.assert_array_equal(written.num_rounds, whole + 1)
    expected = [whole + 1] * rest + [whole] * (tree.path_length - rest)
    for row in written.accepted_by_position:
        assert row.tolist() == expected
    np.testing.assert_array_equal(written.num_draft_tokens, (whole + 1) * tree.depth)


@pytest.mark.slow
def test_a_text_counts_what_it_kept(target, params, drafts, batch):
    written = speculative_text(target, params, batch, drafts["k-ary"], tokens=48)
    np.testing.assert_array_equal(written.accepted_by_position.sum(axis=1), written.length)
    np.testing.assert_array_equal(written.accepted_by_position[:, 0], written.num_rounds)
    assert np.all(np.diff(written.accepted_by_position, axis=1) <= 0)
    assert np.all(
        written.num_draft_tokens <= written.num_rounds * (drafts["k-ary"].drafter.tree.size - 1)
    )
    # All that is accepted below a root is a draft token, but for the target's own token each round.
    own = np.asarray(written.length - written.is_draft_token.sum(axis=1))
    assert np.all((own == written.num_rounds) | (own == written.num_rounds - 1))


@pytest.mark.parametrize("tree", [Tree.branching((3, 2)), DynamicTree(3, 3, 9)], ids=str)
def test_children_are_the_drafts_best_tokens_under_the_noise_of_their_position(
    tree, target, params, batch
):
    """The first round's tree against scores of whole texts, node by node."""
    drafter = SmallModelDrafter(target, tree)
    few = rows_of(batch, np.array([0, 3, 9, 14]))
    how = SamplingParams.create(
        4,
        temperature=[0.0, 0.5, 1.0, 1.0],
        top_k=[0, 0, 6, 0],
        top_p=[1, 1, 1, 0.9],
        frequency_penalty=[0.0, 2.0, 0.0, 2.0],
    )
    length = few.prompts.length
    noise = sample_noise(few.keys, length[:, None] + np.arange(tree.path_length)[None], 61, how)

    @jax.jit
    def first_round(params, tokens, length, noise, how):
        state = drafter.start(params, tokens, length, None, capacity=72, chunk=64)
        padded = jnp.pad(tokens, ((0, 0), (0, 8)))
        context = DraftContext(
            padded, length, init_counts(padded, length, length, vocab_size=61), length > 0
        )
        return drafter.propose(params, state, context, noise, how, rule=coupled)[0]

    candidates = first_round(params, few.prompts.tokens, length, noise, how)
    assert np.all(candidates.valid)
    for row in range(4):
        prompt = few.prompts.tokens[row, : length[row]].tolist()
        grown = Tree(tuple(candidates.parent[row].tolist()))
        for node in np.flatnonzero(grown.inner):
            path = np.asarray(candidates.tokens)[row, np.flatnonzero(grown.mask[node])[1:]]
            text = np.pad([*prompt, *path], (0, 64))[None, :64]
            logits = np.asarray(teach(params, text, model=target))
            last = logits[0, len(prompt) + len(path) - 1].astype(np.float64)
            cut = {name: getattr(how, name)[row].item() for name in ("top_k", "top_p")}
            cut["frequency_penalty"] = how.frequency_penalty[row].item()
            temperature = how.temperature[row].item()
            if temperature:
                with np.errstate(divide="ignore"):
                    last = np.log(next_token_law(last, temperature, **cut, written=path.tolist()))
            score = last + np.asarray(noise)[row, len(path)]
            children = np.flatnonzero(np.asarray(grown.parents) == node)
            assert (
                np.asarray(candidates.tokens)[row, children].tolist()
                == np.argsort(-score)[: len(children)].tolist()
            )
