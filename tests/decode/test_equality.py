"""Speculation writes what plain decoding writes, token for token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pairwise import combinations, pairwise
from texts import (
    CUTS,
    TEMPERATURES,
    TOKENS,
    disagreements,
    plain_text,
    rows_of,
    speculative_text,
    stopping,
)

from jspec import GenerationOutput
from jspec.decode import LENGTH, STOP

pytestmark = pytest.mark.law

KINDS = (
    pytest.param("head", marks=pytest.mark.slow),
    pytest.param("grown small", marks=pytest.mark.slow),
    "grown head",
    pytest.param("eagle-3", marks=pytest.mark.slow),
    "chain",
    "k-ary",
    pytest.param("fork", marks=pytest.mark.slow),
    pytest.param("paths", marks=pytest.mark.slow),
    "lookup chain",
    pytest.param("lookup fork", marks=pytest.mark.slow),
)
DRAFTERS = tuple(getattr(kind, "values", (kind,))[0] for kind in KINDS)


def ends_in_a_draft_token(written: GenerationOutput) -> np.ndarray:
    """`[B]`: whether a text was cut inside a kept path, which ends with the target's own token."""
    return np.asarray(written.is_draft_token)[np.arange(len(written.length)), written.length - 1]


def well_drafted_stops(written: GenerationOutput) -> np.ndarray:
    """The two tokens that are first accepted draft tokens in the most rows: stops inside a path."""
    tokens, is_draft_token = np.asarray(written.tokens), np.asarray(written.is_draft_token)
    hits = np.zeros(tokens.max() + 1, int)
    for row, drafted in zip(tokens, is_draft_token, strict=True):
        values, first = np.unique(row, return_index=True)
        hits[values] += drafted[first]
    return np.argsort(-hits, kind="stable")[:2].astype(np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_speculation_equals_plain_decoding(kind, target, params, drafts, batch, plain):
    written = speculative_text(target, params, batch, drafts[kind])
    ties, parted = disagreements(target, params, batch, plain, written)
    cut = ends_in_a_draft_token(written)
    print(
        f"{kind}: {ties} near-ties in {int(written.length.sum())} tokens, "
        f"{written.acceptance_length:.2f} acceptance length, "
        f"{cut.sum()} rows used up their budget inside a kept path"
    )
    assert not parted
    assert ties <= 1
    assert np.all(written.finish_reason == LENGTH)
    assert np.all(written.length == TOKENS)
    # It says something only where draft tokens are accepted, where some are not, and at the end.
    assert written.acceptance_length > 1.05
    assert kind == "chain" or written.acceptance_length < 2
    assert cut.any()


@pytest.mark.parametrize(
    "kind",
    [
        "chain",
        "lookup chain",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("grown small", "k-ary", "fork", "paths", "lookup fork")
        ),
    ],
)
def test_a_text_that_stops_inside_a_kept_path_equals_plain_decoding(
    kind, target, params, drafts, batch
):
    stops = well_drafted_stops(speculative_text(target, params, batch, drafts[kind]))
    batch = stopping(batch, stops)
    plain = plain_text(target, params, batch)
    written = speculative_text(target, params, batch, drafts[kind])
    ties, parted = disagreements(target, params, batch, plain, written)
    cut = ends_in_a_draft_token(written) & (np.asarray(written.finish_reason) == STOP)
    print(f"{kind}: {ties} near-ties, {cut.sum()} rows stopped inside a kept path")
    assert not parted
    assert ties <= 1
    if not ties:
        np.testing.assert_array_equal(written.length, plain.length)
        np.testing.assert_array_equal(written.finish_reason, plain.finish_reason)
    assert cut.any()
    for row, length in enumerate(written.length):
        stopped = written.finish_reason[row] == STOP
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


def rows_alone() -> list:
    """Rows of the batch for each drafter, which together have every temperature and every cut."""
    named = {"kind": DRAFTERS, "temperature": TEMPERATURES, "cut": range(len(CUTS))}
    grid = pairwise(combinations(**named))
    places = {kind: [] for kind in DRAFTERS}
    for row in grid:
        at = TEMPERATURES.index(row["temperature"]) * len(CUTS) + row["cut"]
        places[row["kind"]].append(at)
    return list(places.items())


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "rows"), rows_alone())
def test_a_row_alone_equals_plain_decoding_under_every_drafter(
    kind, rows, target, params, drafts, batch, plain
):
    for row in rows:
        alone = rows_of(batch, slice(row, row + 1))
        written = speculative_text(target, params, alone, drafts[kind])
        ties, parted = disagreements(
            target, params, alone, rows_of(plain, slice(row, row + 1)), written
        )
        assert not parted
        print(f"{kind}, row {row}: {ties} near-ties")


@pytest.mark.slow
def test_agreement_in_bfloat16_is_measured(target, params, drafts, batch):
    """There a block is rounded differently from its rows one by one: a number, and not a law."""
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
