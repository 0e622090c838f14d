"""What the drafters guess."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import next_token_law
from texts import TOKENS, rows_of, speculative_text, teach

from jspec import Growth, LookupDrafter, SmallModelDrafter, Tree, sampling
from jspec.core.penalties import recall
from jspec.core.sampling import noise
from jspec.draft.protocol import Text
from jspec.verify import coupled


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
    """Guesses for `texts`, which are filled up with `garbage`."""
    capacity = max(map(len, texts)) + 6
    tokens = np.full((len(texts), capacity), garbage, np.int32)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = text
    length = np.array([len(text) for text in texts], np.int32)
    text = Text(tokens, length, recall(tokens, length, length, vocabulary=16), length > 0)
    return jax.jit(drafter.propose, static_argnames="rule")((), (), text, None, None, rule=coupled)[
        0
    ]


@pytest.mark.parametrize(
    ("width", "depth", "longest", "shortest"), [(1, 4, 3, 1), (3, 3, 4, 1), (2, 2, 3, 2)]
)
def test_look_up_copies_what_followed_the_longest_latest_match(width, depth, longest, shortest):
    rng = np.random.default_rng(91)
    texts = [rng.integers(0, 4, rng.integers(1, 30)).tolist() for _ in range(100)]
    tree = Tree.fork(width, depth)
    drafter = LookupDrafter(tree, longest, shortest)
    guesses = propose(drafter, texts, garbage=2)
    np.testing.assert_array_equal(guesses.tokens[:, 0], [text[-1] for text in texts])
    paths = [np.flatnonzero(tree.mask[leaf])[1:] for leaf in range(tree.size - width, tree.size)]
    found = 0
    for row, text in enumerate(texts):
        expected = looked_up(text, width=width, depth=depth, longest=longest, shortest=shortest)
        found += len(expected)
        for chain, path in enumerate(paths):
            assert np.all(np.asarray(guesses.valid)[row, path] == (chain < len(expected)))
            if chain < len(expected):
                assert np.asarray(guesses.tokens)[row, path].tolist() == expected[chain]
    assert 0 < found < width * len(texts)


def test_look_up_prefers_a_longer_match_to_a_later_one():
    guesses = propose(LookupDrafter(Tree.chain(2)), [[1, 2, 3, 7, 2, 3, 8, 1, 2, 3]])
    assert guesses.tokens[0].tolist() == [3, 7, 2]


def test_look_up_follows_a_loop_past_the_end():
    guesses = propose(LookupDrafter(Tree.chain(5)), [[9, 4, 5, 4, 5], [6, 6]])
    assert guesses.tokens.tolist() == [[5, 4, 5, 4, 5, 4], [6, 6, 6, 6, 6, 6]]
    assert np.all(guesses.valid)


def test_look_up_guesses_nothing_where_nothing_was_seen_before():
    guesses = propose(LookupDrafter(Tree.fork(2, 2)), [[1, 2, 3], [5]])
    assert not np.any(guesses.valid[:, 1:])
    assert np.all(guesses.valid[:, 0])


def test_chains_of_a_fork_start_with_different_tokens():
    rng = np.random.default_rng(92)
    texts = [rng.integers(0, 3, 40).tolist() for _ in range(50)]
    guesses = propose(LookupDrafter(Tree.fork(3, 2)), texts)
    for row in range(50):
        first = np.asarray(guesses.tokens)[row, 1:4][np.asarray(guesses.valid)[row, 1:4]]
        assert len(set(first)) == len(first) > 1


def test_look_up_refuses_what_it_cannot_fill():
    with pytest.raises(ValueError, match="branches below its root"):
        LookupDrafter(Tree.branching((2, 2)))
    with pytest.raises(ValueError, match="tree of 4 nodes grows by scores"):
        LookupDrafter(Growth(1, 3, 4))
    with pytest.raises(ValueError, match="shortest=0"):
        LookupDrafter(Tree.chain(2), shortest=0)
    with pytest.raises(ValueError, match="longest=1"):
        LookupDrafter(Tree.chain(2), longest=1, shortest=2)


def test_a_draft_equal_to_the_target_is_always_right(target, params, drafts, batch):
    """The same dice and the same logits: every candidate of every chain is kept."""
    tree = drafts["chain"].drafter.tree
    written = speculative_text(target, params, batch, drafts["chain"])
    whole, rest = divmod(TOKENS, tree.path_length)
    np.testing.assert_array_equal(written.rounds, whole + 1)
    expected = [whole + 1] * rest + [whole] * (tree.path_length - rest)
    for row in written.kept_by_depth:
        assert row.tolist() == expected
    np.testing.assert_array_equal(written.drafted, (whole + 1) * tree.depth)


@pytest.mark.slow
def test_a_text_counts_what_it_kept(target, params, drafts, batch):
    written = speculative_text(target, params, batch, drafts["k-ary"], tokens=48)
    np.testing.assert_array_equal(written.kept_by_depth.sum(axis=1), written.length)
    np.testing.assert_array_equal(written.kept_by_depth[:, 0], written.rounds)
    assert np.all(np.diff(written.kept_by_depth, axis=1) <= 0)
    assert np.all(written.drafted <= written.rounds * (drafts["k-ary"].drafter.tree.size - 1))
    # All that was kept below a root was guessed, but for the target's own token each round.
    own = np.asarray(written.length - written.guessed.sum(axis=1))
    assert np.all((own == written.rounds) | (own == written.rounds - 1))


@pytest.mark.parametrize("tree", [Tree.branching((3, 2)), Growth(3, 3, 9)], ids=str)
def test_children_are_the_drafts_best_tokens_under_the_noise_of_their_position(
    tree, target, params, batch
):
    """The first round's tree against scores of whole texts, node by node."""
    drafter = SmallModelDrafter(target, tree)
    few = rows_of(batch, np.array([0, 3, 9, 14]))
    how = sampling(
        4,
        temperature=[0.0, 0.5, 1.0, 1.0],
        top_k=[0, 0, 6, 0],
        top_p=[1, 1, 1, 0.9],
        frequency=[0.0, 2.0, 0.0, 2.0],
    )
    length = few.prompts.length
    dice = noise(few.keys, length[:, None] + np.arange(tree.path_length)[None], 61, how)

    @jax.jit
    def first_round(params, tokens, length, dice, how):
        memory = drafter.start(params, tokens, length, None, capacity=72, chunk=64)
        padded = jnp.pad(tokens, ((0, 0), (0, 8)))
        text = Text(padded, length, recall(padded, length, length, vocabulary=61), length > 0)
        return drafter.propose(params, memory, text, dice, how, rule=coupled)[0]

    guesses = first_round(params, few.prompts.tokens, length, dice, how)
    assert np.all(guesses.valid)
    for row in range(4):
        prompt = few.prompts.tokens[row, : length[row]].tolist()
        grown = Tree(tuple(guesses.parent[row].tolist()))
        for node in np.flatnonzero(grown.inner):
            path = np.asarray(guesses.tokens)[row, np.flatnonzero(grown.mask[node])[1:]]
            text = np.pad([*prompt, *path], (0, 64))[None, :64]
            logits = np.asarray(teach(params, text, model=target))
            last = logits[0, len(prompt) + len(path) - 1].astype(np.float64)
            cut = {name: getattr(how, name)[row].item() for name in ("top_k", "top_p")}
            cut["frequency"] = how.penalties.frequency[row].item()
            temperature = how.temperature[row].item()
            if temperature:
                with np.errstate(divide="ignore"):
                    last = np.log(next_token_law(last, temperature, **cut, written=path.tolist()))
            score = last + np.asarray(dice)[row, len(path)]
            children = np.flatnonzero(np.asarray(grown.parents) == node)
            assert (
                np.asarray(guesses.tokens)[row, children].tolist()
                == np.argsort(-score)[: len(children)].tolist()
            )
