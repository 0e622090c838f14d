"""Speculation writes what plain decoding writes, token for token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from texts import TOKENS, disagreements, plain_text, rows_of, speculative_text, stopping

from jspec import Generation
from jspec.decode import EXHAUSTED, STOPPED

KINDS = (
    pytest.param("head", marks=pytest.mark.slow),
    pytest.param("grown small", marks=pytest.mark.slow),
    "grown head",
    pytest.param("eagle-3", marks=pytest.mark.slow),
    "chain",
    "k-ary",
    pytest.param("fork", marks=pytest.mark.slow),
    pytest.param("paths", marks=pytest.mark.slow),
    "look-up chain",
    pytest.param("look-up fork", marks=pytest.mark.slow),
)


def ends_in_a_guess(written: Generation) -> np.ndarray:
    """`[B]`: whether a text was cut inside a kept path, which ends with the target's own token."""
    return np.asarray(written.guessed)[np.arange(len(written.length)), written.length - 1]


def well_guessed_stops(written: Generation) -> np.ndarray:
    """The two tokens that first occur as a kept guess in the most rows: stops inside a path."""
    tokens, guessed = np.asarray(written.tokens), np.asarray(written.guessed)
    hits = np.zeros(tokens.max() + 1, int)
    for row, guesses in zip(tokens, guessed, strict=True):
        values, first = np.unique(row, return_index=True)
        hits[values] += guesses[first]
    return np.argsort(-hits, kind="stable")[:2].astype(np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_speculation_equals_plain_decoding(kind, target, params, drafts, batch, plain):
    written = speculative_text(target, params, batch, drafts[kind])
    ties, parted = disagreements(target, params, batch, plain, written)
    cut = ends_in_a_guess(written)
    print(
        f"{kind}: {ties} near-ties in {int(written.length.sum())} tokens, "
        f"{written.tokens_per_round:.2f} tokens per round, "
        f"{cut.sum()} rows used up their budget inside a kept path"
    )
    assert not parted
    assert ties <= 1
    assert np.all(written.reason == EXHAUSTED)
    assert np.all(written.length == TOKENS)
    # The law says something only where guesses are kept, where some are not, and at the end.
    assert written.tokens_per_round > 1.05
    assert kind == "chain" or written.tokens_per_round < 2
    assert cut.any()


@pytest.mark.parametrize(
    "kind",
    [
        "chain",
        "look-up chain",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("grown small", "k-ary", "fork", "paths", "look-up fork")
        ),
    ],
)
def test_a_text_that_stops_inside_a_kept_path_equals_plain_decoding(
    kind, target, params, drafts, batch
):
    stops = well_guessed_stops(speculative_text(target, params, batch, drafts[kind]))
    batch = stopping(batch, stops)
    plain = plain_text(target, params, batch)
    written = speculative_text(target, params, batch, drafts[kind])
    ties, parted = disagreements(target, params, batch, plain, written)
    cut = ends_in_a_guess(written) & (np.asarray(written.reason) == STOPPED)
    print(f"{kind}: {ties} near-ties, {cut.sum()} rows stopped inside a kept path")
    assert not parted
    assert ties <= 1
    if not ties:
        np.testing.assert_array_equal(written.length, plain.length)
        np.testing.assert_array_equal(written.reason, plain.reason)
    assert cut.any()
    for row, length in enumerate(written.length):
        stopped = written.reason[row] == STOPPED
        ends = np.isin(written.tokens[row, :length], stops)
        assert not ends[:-1].any()
        assert ends[-1] == stopped
        assert stopped or length == TOKENS


def test_a_row_alone_writes_what_it_writes_in_any_batch(target, params, drafts, batch, plain):
    among_others = speculative_text(target, params, batch, drafts["k-ary"])
    ties = 0
    for row in (4, 11):
        alone = rows_of(batch, slice(row, row + 1))
        for written in (
            plain_text(target, params, alone),
            speculative_text(target, params, alone, drafts["k-ary"]),
        ):
            for other in (plain, among_others):
                tied, parted = disagreements(
                    target, params, alone, rows_of(other, slice(row, row + 1)), written
                )
                assert not parted
                ties += tied
    print(f"{ties} near-ties in 8 comparisons of {TOKENS} tokens")
    assert ties <= 1


def test_a_row_writes_the_same_whoever_its_neighbours_are(target, params, drafts, batch):
    """Neighbours with other prompts, keys and ways to sample, and another place in the batch."""
    among_all = speculative_text(target, params, batch, drafts["chain"])
    order = np.random.default_rng(31).permutation(len(batch.keys))
    # The first five rows stay in the batch, at other places; the rest become copies of two rows.
    order = np.where((order < 5) | (order > 15), order, 9 + order % 2)
    moved = speculative_text(target, params, rows_of(batch, order), drafts["chain"])
    ties, parted = disagreements(
        target, params, rows_of(batch, order), rows_of(among_all, order), moved
    )
    assert not parted
    assert ties <= 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_alone_equals_plain_decoding_under_every_drafter(
    kind, target, params, drafts, batch, plain
):
    for row in range(len(batch.keys)):
        alone = rows_of(batch, slice(row, row + 1))
        written = speculative_text(target, params, alone, drafts[kind])
        ties, parted = disagreements(
            target, params, alone, rows_of(plain, slice(row, row + 1)), written
        )
        assert not parted
        print(f"{kind}, row {row}: {ties} near-ties")


@pytest.mark.slow
def test_agreement_in_bfloat16_is_measured(target, params, drafts, batch):
    """There a block is rounded otherwise than its rows one by one: a number, and not a law."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    draft = drafts["k-ary"]._replace(
        params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), drafts["k-ary"].params)
    )
    plain = np.asarray(plain_text(target, half, batch).tokens)
    written = np.asarray(speculative_text(target, half, batch, draft).tokens)
    parted = [np.flatnonzero(row) for row in plain != written]
    together = sum(int(row[0]) if len(row) else TOKENS for row in parted)
    whole = sum(not len(row) for row in parted)
    print(f"bfloat16: {whole} of {len(parted)} texts agree to the end, {together} tokens together")
    assert together > 0
