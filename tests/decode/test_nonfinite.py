"""No token is chosen from logits that are not finite: a text is cut where they begin, says so, and
is otherwise what it is without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import (
    PAIRS,
    SMALLEST_P,
    counts_of,
    enumerable_params,
    joint_law,
    p_value,
    speculative_draws,
    unrelated_params,
)
from texts import (
    Candidate,
    disagreements,
    plain_text,
    rows_of,
    speculative_text,
    stopping,
)

import jspec
from jspec import Tree
from jspec.core.sampling import SamplingParams, are_finite
from jspec.decode import LENGTH, NONFINITE, STOP
from jspec.models.heads import HeadParams
from jspec.verify import (
    block,
    coupled,
    one_sample,
    token_level,
    traversal,
    with_replacement,
    without_replacement,
)

pytestmark = pytest.mark.law

TOKENS = 48
# It is in some prompts, some texts have it early and some late or never.
BAD = 27
QUICK = ("k-ary", "eagle-3", "lookup fork")
KINDS = (
    *QUICK,
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in ("chain", "fork", "paths", "head", "grown small", "grown head", "lookup chain")
    ),
)


def poisoned(params, token=BAD, value=np.nan):
    """Parameters with which nothing is finite once a token is read."""
    return {**params, "embedding": params["embedding"].at[token].set(value)}


def of_target(draft: Candidate, params) -> Candidate:
    """A head reads its target's parameters."""
    if isinstance(draft.params, HeadParams):
        return draft._replace(params=draft.params._replace(target=params))
    return draft


@pytest.fixture(scope="module")
def stopped(batch):
    """With ends of text, which count before what is not finite."""
    return stopping(batch, (33, 40))


@pytest.fixture(scope="module")
def expected(target, params, stopped):
    """What is written with the token that is not finite, from the text without: up to the token
    itself, `[rows]` lengths and reasons."""
    clean = plain_text(target, params, stopped, TOKENS)
    lengths, reasons = [], []
    for row in range(len(clean.length)):
        prompt = stopped.prompts.tokens[row, : stopped.prompts.length[row]]
        text = np.asarray(clean.tokens[row, : clean.length[row]])
        length, reason = len(text), int(clean.finish_reason[row])
        found = np.flatnonzero(text == BAD)
        if np.any(prompt == BAD):
            length, reason = 0, NONFINITE
        elif len(found) and found[0] + 1 < TOKENS:
            length, reason = int(found[0]) + 1, NONFINITE
        lengths.append(length)
        reasons.append(reason)
    assert {STOP, LENGTH, NONFINITE} <= set(reasons)
    cut = np.array(lengths)[np.array(reasons) == NONFINITE]
    assert np.sum(cut == 0) > 3 and np.sum(cut > 0) > 3
    return clean, np.array(lengths), np.array(reasons)


def assert_cut(expected, written) -> None:
    clean, lengths, reasons = expected
    np.testing.assert_array_equal(written.length, lengths)
    np.testing.assert_array_equal(written.finish_reason, reasons)
    for row, length in enumerate(lengths):
        valid = written.tokens[row, :length], clean.tokens[row, :length]
        np.testing.assert_array_equal(*valid, f"row {row}")
    # Each token is the root of a round or a draft token that was accepted.
    assert np.all(np.asarray(written.accepted_by_position).sum(axis=1) == lengths)
    assert np.all(np.asarray(written.num_rounds) >= 1)


def test_plain_decoding_ends_where_logits_are_not_finite(target, params, stopped, expected):
    assert_cut(expected, plain_text(target, poisoned(params), stopped, TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_speculation_ends_there_too_whatever_drafts(
    kind, target, params, drafts, stopped, expected
):
    """Draft tokens that the target cannot read spoil no other node of their tree."""
    bad = poisoned(params)
    draft = of_target(drafts[kind], bad)
    assert_cut(expected, speculative_text(target, bad, stopped, draft, TOKENS))


def test_a_stream_and_a_queue_end_there_too(target, params, drafts, stopped, expected):
    bad, draft = poisoned(params), drafts["lookup chain"]
    how = {"target": target, "max_new_tokens": TOKENS}
    given = bad, draft.params, *stopped
    *_, streamed = jspec.stream(*given, **how, drafter=draft.drafter, rounds=7)
    assert_cut(expected, streamed)
    *_, streamed = jspec.stream_plain(bad, *stopped, **how, rounds=20)
    assert_cut(expected, streamed)
    texts = dict(jspec.generate_many(*given, **how, drafter=draft.drafter, batch_size=4))
    rows = [texts[row] for row in range(len(stopped.keys))]
    assert_cut(expected, jax.tree.map(lambda *parts: np.concatenate(parts), *rows))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_draft_that_is_not_finite_costs_tokens_and_changes_none(
    value, target, params, drafts, batch, plain
):
    draft = drafts["k-ary"]
    broken = draft._replace(params=poisoned(draft.params, value=value))
    written = speculative_text(target, params, batch, broken, TOKENS)
    ties, parted = disagreements(target, params, batch, cut_to(plain, TOKENS), written)
    assert not parted and ties <= 1
    whole = speculative_text(target, params, batch, draft, TOKENS)
    assert 1 < written.acceptance_length < whole.acceptance_length
    dead = draft._replace(params=jax.tree.map(lambda x: x * np.nan, draft.params))
    written = speculative_text(target, params, batch, dead, TOKENS)
    ties, parted = disagreements(target, params, batch, cut_to(plain, TOKENS), written)
    assert not parted and ties <= 1


def cut_to(written, tokens):
    length = jnp.minimum(written.length, tokens)
    return written.replace(tokens=written.tokens[:, :tokens], length=length)


HOT = {"temperature": 1.0}
RULES = {
    coupled: PAIRS,
    one_sample: PAIRS,
    token_level: Tree.chain(3),
    block: Tree.chain(3),
    with_replacement: PAIRS,
    without_replacement: PAIRS,
    traversal: PAIRS,
}
LATE = (one_sample, with_replacement)
EACH_RULE = [
    pytest.param(rule, tree, marks=pytest.mark.slow if rule in LATE else (), id=rule.name)
    for rule, tree in RULES.items()
]


@pytest.mark.parametrize(("rule", "tree"), EACH_RULE)
def test_the_distribution_is_the_targets_whatever_draft_logits_are_not_finite(rule, tree):
    """Below a token that the draft cannot read, and where one of its logits is NaN everywhere."""
    whole = unrelated_params()
    head = whole["head"]["weight"].at[4].set(np.nan)
    for params in (poisoned(whole, 1), {**whole, "head": {"weight": head}}):
        written = speculative_draws(141, rule=rule, tree=tree, draft=lambda p=params: p, **HOT)
        assert p_value(counts_of(written), joint_law(**HOT)) > SMALLEST_P
        # It says something where there are draft tokens.
        several = written.acceptance_length > 1.1
        assert several or params["head"] is not whole["head"]


@pytest.mark.parametrize(("rule", "tree"), EACH_RULE)
def test_the_distribution_up_to_what_is_not_finite_is_the_targets(rule, tree):
    written = draws_of_a_broken_target(rule, tree)
    assert p_value(counts_of(written), cut_law()) > SMALLEST_P
    ended = np.asarray(written.finish_reason) == NONFINITE
    np.testing.assert_array_equal(ended, np.asarray(written.length) < 3)
    assert 0.1 < ended.mean() < 0.9 and written.acceptance_length > 1.1


def draws_of_a_broken_target(rule, tree, decode=jspec.generate):
    """Three tokens of a target that cannot read token 2."""
    broken = poisoned(enumerable_params(), 2)

    def generate(params, *rest, **how):
        return decode(broken, *rest, **how)

    return speculative_draws(142, generate, rule=rule, tree=tree, **HOT)


def cut_law() -> np.ndarray:
    """The law of three tokens, of which those after a 2 are left out, and 0 in its place."""
    law, found = joint_law(**HOT), np.zeros((6, 6, 6))
    for text in np.ndindex(law.shape):
        cut = text.index(2) + 1 if 2 in text else 3
        found[(*text[:cut], *[0] * (3 - cut))] += law[text]
    return found


@pytest.mark.parametrize("shape", [(3, 1, 5), (512, 1, 6), (2, 3, 4096)], ids=str)
def test_one_logit_that_is_not_finite_is_seen_wherever_it_stands(shape):
    """Where XLA vectorises a maximum it passes over NaN, of either sign."""
    seen = jax.jit(are_finite)
    logits = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    logits[..., 1] = -np.inf
    assert np.all(seen(logits))
    for bad in (np.nan, -np.float32(np.nan), np.inf):
        for place in (0, shape[-1] // 2, shape[-1] - 1):
            broken = logits.copy()
            broken[1, ..., place] = bad
            np.testing.assert_array_equal(
                np.asarray(seen(broken)).all(axis=1), np.arange(len(logits)) != 1
            )
    assert not np.any(seen(np.full(shape, -np.inf, np.float32)))


def test_a_text_for_which_every_token_is_forbidden_ends(target, params, batch):
    """All that the bias leaves are stop tokens, which may not come yet."""
    alone = rows_of(batch, slice(4, 5))
    sampling = SamplingParams.create(
        1,
        temperature=0.7,
        logit_bias={token: -np.inf for token in range(58)},
        min_new_tokens=3,
        stop_token_ids=(58, 59, 60),
        vocab_size=61,
    )
    written = plain_text(target, params, alone._replace(sampling=sampling), TOKENS)
    assert (int(written.length[0]), int(written.finish_reason[0])) == (0, NONFINITE)
