"""Documents in rows, rows in batches: what is learned, once, and what is only read."""

from collections import Counter

import jax
import numpy as np
import pytest

from jspec.parallel.sharding import make_mesh
from jspec.training.data import MIN_PIECE, Document, Mixture, batch_at, pack

pytestmark = pytest.mark.law

RNG = np.random.default_rng(3)
LENGTH = 48


def document(size: int, number: int = 0, temperature: float = 1.0) -> Document:
    """Tokens that say where they stand; of every other one the first third is only read."""
    tokens = 1000 * number + np.arange(1, size + 1)
    read = size // 3 if number % 2 else 0
    return Document(tokens, (np.arange(size) >= read).astype(float), temperature)


SIZES = [5, 60, 12, 200, 49, 2, 30, 1, 48, 17, 96]
DOCUMENTS = [document(size, i, temperature=0.1 * i) for i, size in enumerate(SIZES)]
BLOCKS = pack(DOCUMENTS, LENGTH)


def everything():
    return BLOCKS.rows(np.arange(len(BLOCKS)))


def test_every_token_is_a_target_once_with_its_weight_and_temperature():
    batch = everything()
    targets = Counter(batch.tokens[:, 1:][batch.weight > 0].tolist())
    expected = [
        int(token)
        for text in DOCUMENTS
        for token, weight in zip(text.tokens[1:], text.weight[1:], strict=True)
        if weight
    ]
    assert targets == Counter(expected)
    counted = batch.weight > 0
    numbers = batch.tokens[:, 1:][counted] // 1000
    np.testing.assert_allclose(batch.temperature[counted], 0.1 * numbers, rtol=1e-6)


def test_a_target_follows_the_token_before_it_in_the_same_document():
    batch = everything()
    rows, places = np.nonzero(batch.weight)
    np.testing.assert_array_equal(batch.tokens[rows, places] + 1, batch.tokens[rows, places + 1])
    np.testing.assert_array_equal(batch.document[rows, places], batch.document[rows, places + 1])


def test_a_document_is_cut_only_if_it_is_longer_than_a_row():
    pieces = Counter(BLOCKS.pieces[:, 0].tolist())
    for number, size in enumerate(SIZES):
        assert pieces[number] == (0 if size < 2 else pieces[number] if size > LENGTH + 1 else 1)
    # A long one begins in what is left of a row where that is worth it.
    _, start, stop = BLOCKS.pieces[BLOCKS.pieces[:, 0] == 1][0]
    assert start == 0 and MIN_PIECE <= stop < LENGTH + 1


def test_positions_start_at_zero_in_every_document():
    batch = jax.tree.map(jax.numpy.asarray, everything())
    for tokens, document, positions in zip(
        np.asarray(batch.tokens), np.asarray(batch.document), np.asarray(batch.positions),
        strict=True,
    ):  # fmt: skip
        for number in set(document[:-1].tolist()):
            inside = np.flatnonzero(document[:-1] == number)
            np.testing.assert_array_equal(positions[inside], np.arange(len(inside)))
            assert np.all(np.diff(tokens[inside]) == 1) or not tokens[inside].any()


def test_a_row_carries_its_number_in_its_source():
    numbers = np.arange(2 * len(BLOCKS))
    np.testing.assert_array_equal(BLOCKS.rows(numbers).number, numbers)


def test_texts_without_two_tokens_are_refused():
    with pytest.raises(ValueError, match="no text has two tokens"):
        pack([document(1), document(0)], LENGTH)


def test_a_mixture_has_its_sources_in_proportion_and_each_of_them_in_order():
    sources = [pack([document(LENGTH + 1, 10 * s + i) for i in range(5)], LENGTH) for s in range(3)]
    mixed = Mixture(sources, (0.5, 0.2, 1.3), seed=4)
    rows = mixed.rows(np.arange(2500))
    origin = rows.tokens[:, 0] // 10_000
    np.testing.assert_array_equal(np.bincount(origin[:1000]), [250, 100, 650])
    # No stretch of it is far from the whole.
    assert abs(np.mean(origin[:200] == 2) - 0.65) < 0.15
    for source in range(3):
        mine = rows.tokens[origin == source]
        np.testing.assert_array_equal(mine, sources[source].rows(np.arange(len(mine))).tokens)
    again = Mixture(sources, (0.5, 0.2, 1.3), seed=4).rows(np.arange(990, 1010))
    np.testing.assert_array_equal(again.tokens, rows.tokens[990:1010])


def test_a_process_reads_the_rows_of_its_devices_alone():
    mesh = make_mesh(data=2, tensor=4)
    asked = []

    class Watched:
        def rows(self, numbers):
            asked.append(numbers.tolist())
            return BLOCKS.rows(numbers)

    batch = batch_at(Watched(), 3, 4, mesh)
    assert sorted(asked) == [[12, 13], [14, 15]]
    whole = batch_at(BLOCKS, 3, 4)
    jax.tree.map(np.testing.assert_array_equal, batch, whole)
    assert batch.tokens.sharding.shard_shape(batch.tokens.shape) == (2, LENGTH + 1)
