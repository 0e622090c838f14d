"""Penalties, bias and a least length, against transformers' processors; and over a tree."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from texts import settings
from transformers.generation import logits_process as hf

from jspec import SamplingParams, Tree
from jspec.core.penalties import TreeContext, init_counts, update_counts
from jspec.core.sampling import process_logits

VOCABULARY = 61


def texts(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens `[B, M]` with repetitions, how many were prompts, and how many there are."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 12, (rows, 30)) * 5
    return tokens, rng.integers(1, 10, rows), rng.integers(10, 30, rows)


@pytest.mark.parametrize(
    "how",
    [
        {"repetition_penalty": 1.4},
        {"repetition_penalty": 0.8, "temperature": 0.7},
        {"min_new_tokens": 12},
        {"min_p": 0.1, "temperature": 1.3},
        {"logit_bias": {3: 2.0, 10: -1.0, 60: -np.inf}},
        {"repetition_penalty": 1.3, "min_new_tokens": 9, "logit_bias": {5: 1.0},
         "temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
    ],
    ids=str,
)  # fmt: skip
def test_the_processing_is_that_of_transformers(how):
    stops = (7, 50)
    tokens, prompt, length = texts(20, 131)
    logits = np.random.default_rng(132).normal(size=(20, 1, VOCABULARY)).astype(np.float32) * 3
    history = init_counts(jnp.asarray(tokens), prompt, length, vocab_size=VOCABULARY)
    one = {"temperature": 1.0, **how}
    processed = process_logits(
        jnp.asarray(logits), settings([one] * 20, stop_token_ids=stops), history
    )
    for row in range(20):
        ids = torch.tensor(tokens[row : row + 1, : length[row]])
        expected = torch.tensor(logits[row])
        for processor in processors(one, stops, int(prompt[row])):
            expected = processor(ids, expected)
        np.testing.assert_allclose(processed[row], expected.numpy(), rtol=1e-5, atol=1e-5)


def processors(how: dict, stops: tuple[int, ...], prompt: int) -> hf.LogitsProcessorList:
    """Those that `generate` would make of it, in its order."""
    made = hf.LogitsProcessorList()
    if "logit_bias" in how:
        made.append(
            hf.SequenceBiasLogitsProcessor({(t,): float(b) for t, b in how["logit_bias"].items()})
        )
    if "repetition_penalty" in how:
        made.append(hf.RepetitionPenaltyLogitsProcessor(how["repetition_penalty"]))
    if "min_new_tokens" in how:
        made.append(
            hf.MinNewTokensLengthLogitsProcessor(prompt, how["min_new_tokens"], list(stops))
        )
    made.append(hf.TemperatureLogitsWarper(how["temperature"]))
    if "top_k" in how:
        made.append(hf.TopKLogitsWarper(how["top_k"]))
    if "top_p" in how:
        made.append(hf.TopPLogitsWarper(how["top_p"]))
    if "min_p" in how:
        made.append(hf.MinPLogitsWarper(how["min_p"]))
    return made


def test_presence_is_taken_off_once_and_frequency_each_time_and_neither_for_the_prompt():
    history = init_counts(
        jnp.array([[1, 2, 2, 3, 3, 3]]), jnp.array([1]), jnp.array([6]), vocab_size=5
    )
    how = SamplingParams.create(1, temperature=1.0, presence_penalty=0.5, frequency_penalty=0.25)
    processed = process_logits(jnp.zeros((1, 1, 5)), how, history)
    np.testing.assert_allclose(processed[0, 0], [0, 0, -1.0, -1.25, 0])


def test_a_node_is_processed_as_if_the_nodes_above_it_were_written():
    tree = Tree.branching((2, 2))
    tokens, prompt, length = texts(3, 133)
    history = init_counts(jnp.asarray(tokens), prompt, length, vocab_size=VOCABULARY)
    drafted = np.random.default_rng(134).integers(0, 4, (3, tree.size)) * 5
    logits = np.random.default_rng(135).normal(size=(3, tree.size, VOCABULARY)).astype(np.float32)
    how = settings(
        [
            {"temperature": 1.0, "repetition_penalty": 1.3},
            {"frequency_penalty": 0.4, "presence_penalty": 0.2},
            {"temperature": 0.5, "min_new_tokens": int(length[2] - prompt[2]) + 2},
        ],
        stop_token_ids=(5, 10),
    )
    ahead = TreeContext(jnp.asarray(drafted[:, 1:]), jnp.asarray(tree.mask[:, 1:]))
    together = np.asarray(process_logits(jnp.asarray(logits), how, history, ahead))
    for node in range(tree.size):
        above = drafted[:, np.flatnonzero(tree.mask[node])[1:]]
        count = jnp.full(3, above.shape[1])
        written = update_counts(history, jnp.asarray(above), count) if above.size else history
        alone = process_logits(jnp.asarray(logits[:, node : node + 1]), how, written)
        np.testing.assert_array_equal(together[:, node], alone[:, 0])
    assert np.isinf(together[2, 0, 5]) and np.isinf(together[2, 1, 5])
    assert not np.isinf(together[2, 3:, 5]).any()


def test_what_is_remembered_is_what_is_recalled():
    tokens, prompt, length = texts(8, 136)
    now = init_counts(jnp.asarray(tokens), prompt, length, vocab_size=VOCABULARY)
    before = init_counts(jnp.asarray(tokens), prompt, prompt, vocab_size=VOCABULARY)
    rest = np.stack([np.roll(row, -start) for row, start in zip(tokens, prompt, strict=True)])
    after = update_counts(before, jnp.asarray(rest), jnp.asarray(length - prompt))
    for name in ("in_prompt", "generated", "num_generated"):
        np.testing.assert_array_equal(getattr(now, name), getattr(after, name))
