"""A stream, in whatever pieces, is what comes out whole."""

import jax
import numpy as np
import pytest
from texts import plain_text, speculative_text, stopping

from jspec import autoregress, generate, stream, stream_plain

pytestmark = pytest.mark.law

# So that rows end at different times: a piece passes those that are done.
STOPS = (7, 33)
TOKENS = 64


def assert_grows_to(pieces, whole) -> None:
    for before, after in zip(pieces, pieces[1:], strict=False):
        assert np.all(before.length <= after.length)
        for row, length in enumerate(before.length):
            np.testing.assert_array_equal(before.tokens[row, :length], after.tokens[row, :length])
    jax.tree.map(np.testing.assert_array_equal, pieces[-1], whole)
    assert len(np.unique(whole.length)) > 5


@pytest.mark.parametrize("rounds", [7, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_stream_writes_what_generate_writes(rounds, target, params, drafts, batch):
    draft, batch = drafts["chain"], stopping(batch, STOPS)
    whole = speculative_text(target, params, batch, draft, TOKENS, generate)
    pieces = list(
        stream(
            params,
            draft.params,
            *batch,
            target=target,
            drafter=draft.drafter,
            max_new_tokens=TOKENS,
            rounds=rounds,
        )
    )
    assert len(pieces) == -(-int(whole.num_rounds.max()) // rounds)
    assert_grows_to(pieces, whole)


def test_a_plain_stream_writes_what_plain_decoding_writes(target, params, batch):
    batch = stopping(batch, STOPS)
    whole = plain_text(target, params, batch, TOKENS, autoregress)
    pieces = list(stream_plain(params, *batch, target=target, max_new_tokens=TOKENS, rounds=20))
    assert len(pieces) == -(-int(whole.num_rounds.max()) // 20)
    assert_grows_to(pieces, whole)


def test_a_stream_of_no_rounds_is_refused(target, params, batch):
    with pytest.raises(ValueError, match="rounds=0"):
        next(stream_plain(params, *batch, target=target, max_new_tokens=TOKENS, rounds=0))
