"""Penalties, bias and a least length, against transformers' processors; and over a tree."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from texts import settings
from transformers.generation import logits_process as hf

from jspec import Tree, sampling
from jspec.core.penalties import Ahead, recall, remember
from jspec.core.sampling import warp

VOCABULARY = 61


def texts(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens `[B, M]` with repetitions, how many were prompts, and how many there are."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 12, (rows, 30)) * 5
    return tokens, rng.integers(1, 10, rows), rng.integers(10, 30, rows)


@pytest.mark.parametrize(
    "how",
    [
        {"repetition": 1.4},
        {"repetition": 0.8, "temperature": 0.7},
        {"minimum": 12},
        {"min_p": 0.1, "temperature": 1.3},
        {"bias": {3: 2.0, 10: -1.0, 60: -np.inf}},
        {"repetition": 1.3, "minimum": 9, "bias": {5: 1.0}, "temperature": 0.9, "top_k": 20,
         "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)  # fmt: skip
def test_the_warp_is_that_of_transformers(how):
    stops = (7, 50)
    tokens, prompt, length = texts(20, 131)
    logits = np.random.default_rng(132).normal(size=(20, 1, VOCABULARY)).astype(np.float32) * 3
    history = recall(jnp.asarray(tokens), prompt, length, vocabulary=VOCABULARY)
    one = {"temperature": 1.0, **how}
    warped = warp(jnp.asarray(logits), settings([one] * 20, stops=stops), history)
    for row in range(20):
        ids = torch.tensor(tokens[row : row + 1, : length[row]])
        expected = torch.tensor(logits[row])
        for processor in processors(one, stops, int(prompt[row])):
            expected = processor(ids, expected)
        np.testing.assert_allclose(warped[row], expected.numpy(), rtol=1e-5, atol=1e-5)


def processors(how: dict, stops: tuple[int, ...], prompt: int) -> hf.LogitsProcessorList:
    """Those that `generate` would make of it, in its order."""
    made = hf.LogitsProcessorList()
    if "bias" in how:
        made.append(
            hf.SequenceBiasLogitsProcessor({(t,): float(b) for t, b in how["bias"].items()})
        )
    if "repetition" in how:
        made.append(hf.RepetitionPenaltyLogitsProcessor(how["repetition"]))
    if "minimum" in how:
        made.append(hf.MinNewTokensLengthLogitsProcessor(prompt, how["minimum"], list(stops)))
    made.append(hf.TemperatureLogitsWarper(how["temperature"]))
    if "top_k" in how:
        made.append(hf.TopKLogitsWarper(how["top_k"]))
    if "top_p" in how:
        made.append(hf.TopPLogitsWarper(how["top_p"]))
    if "min_p" in how:
        made.append(hf.MinPLogitsWarper(how["min_p"]))
    return made


def test_presence_is_taken_off_once_and_frequency_each_time_and_neither_for_the_prompt():
    history = recall(jnp.array([[1, 2, 2, 3, 3, 3]]), jnp.array([1]), jnp.array([6]), vocabulary=5)
    how = sampling(1, temperature=1.0, presence=0.5, frequency=0.25)
    warped = warp(jnp.zeros((1, 1, 5)), how, history)
    np.testing.assert_allclose(warped[0, 0], [0, 0, -1.0, -1.25, 0])


def test_a_node_is_warped_as_if_the_nodes_above_it_were_written():
    tree = Tree.branching((2, 2))
    tokens, prompt, length = texts(3, 133)
    history = recall(jnp.asarray(tokens), prompt, length, vocabulary=VOCABULARY)
    guesses = np.random.default_rng(134).integers(0, 4, (3, tree.size)) * 5
    logits = np.random.default_rng(135).normal(size=(3, tree.size, VOCABULARY)).astype(np.float32)
    how = settings(
        [
            {"temperature": 1.0, "repetition": 1.3},
            {"frequency": 0.4, "presence": 0.2},
            {"temperature": 0.5, "minimum": int(length[2] - prompt[2]) + 2},
        ],
        stops=(5, 10),
    )
    ahead = Ahead(jnp.asarray(guesses[:, 1:]), jnp.asarray(tree.mask[:, 1:]))
    together = np.asarray(warp(jnp.asarray(logits), how, history, ahead))
    for node in range(tree.size):
        above = guesses[:, np.flatnonzero(tree.mask[node])[1:]]
        count = jnp.full(3, above.shape[1])
        written = remember(history, jnp.asarray(above), count) if above.size else history
        alone = warp(jnp.asarray(logits[:, node : node + 1]), how, written)
        np.testing.assert_array_equal(together[:, node], alone[:, 0])
    assert np.isinf(together[2, 0, 5]) and np.isinf(together[2, 1, 5])
    assert not np.isinf(together[2, 3:, 5]).any()


def test_what_is_remembered_is_what_is_recalled():
    tokens, prompt, length = texts(8, 136)
    now = recall(jnp.asarray(tokens), prompt, length, vocabulary=VOCABULARY)
    before = recall(jnp.asarray(tokens), prompt, prompt, vocabulary=VOCABULARY)
    rest = np.stack([np.roll(row, -start) for row, start in zip(tokens, prompt, strict=True)])
    after = remember(before, jnp.asarray(rest), jnp.asarray(length - prompt))
    for name in ("prompted", "written", "count"):
        np.testing.assert_array_equal(getattr(now, name), getattr(after, name))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"min_p": 1.5}, "min_p=1.5: must lie in"),
        ({"repetition": 0.0}, "repetition=0.0: must be a positive"),
        ({"repetition": float("nan")}, "repetition=nan: must be a positive"),
        ({"presence": float("inf")}, "presence=inf: must be a number"),
        ({"minimum": -1}, "minimum=-1: must be a whole number of tokens"),
        ({"bias": {61: 1.0}, "vocabulary": 61}, "bias of token 61: tokens lie in 0..60"),
        ({"bias": {-1: 1.0}, "vocabulary": 61}, "bias of token -1: tokens lie in 0..60"),
        ({"minimum": 0.9}, "minimum=0.9: must be a whole number"),
        ({"top_k": 2.5}, r"top_k=2.5: must be 0 \(all\) or a whole number"),
        ({"bias": {1.7: 1.0}, "vocabulary": 61}, "bias of token 1.7: tokens lie in 0..60"),
        ({"bias": {1: float("nan")}, "vocabulary": 61}, "bias of nan for token 1"),
        ({"bias": {1: 1.0}}, "bias is given without vocabulary"),
        ({"bias": [{1: 1.0}] * 3, "vocabulary": 61}, "bias of 3 rows: one for all, or 2"),
    ],
)
def test_what_lies_outside_its_range_is_refused(how, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        sampling(2, **how)
