"""Our logits against those of transformers, for a model of every family and kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from references import (
    CAPACITY,
    KINDS,
    NEW,
    PREFIX,
    ROWS,
    ancestors,
    assert_close,
    causal,
    draw,
    expected,
    make_reference,
    prefilled,
    run,
)

from jspec.core.cache import empty_block
from jspec.formats.huggingface import load
from jspec.models.prefill import prefill

CHUNK = 8


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """A random model of transformers, and what we read from the folder that it saved."""
    reference = make_reference(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    reference.save_pretrained(folder)
    return reference, load(folder)


def test_a_whole_sequence_has_the_logits_of_transformers(pair):
    reference, checkpoint = pair
    tokens = draw((ROWS, PREFIX + NEW))
    ours, _ = run(checkpoint, tokens, np.arange(PREFIX + NEW), causal(PREFIX + NEW))
    assert_close(ours, expected(reference, tokens))


def test_a_sequence_in_two_pieces_has_the_logits_of_transformers(pair):
    reference, checkpoint = pair
    tokens = draw((ROWS, PREFIX + NEW))
    first, cache = prefilled(checkpoint, tokens[:, :PREFIX])
    second, _ = run(
        checkpoint, tokens[:, PREFIX:], PREFIX + np.arange(NEW), causal(NEW), cache=cache
    )
    assert_close(np.concatenate([first, second], axis=1), expected(reference, tokens))


def test_every_path_of_a_tree_has_the_logits_of_its_tokens_alone(pair):
    reference, checkpoint = pair
    prefix, nodes = draw((ROWS, PREFIX)), draw((ROWS, NEW), seed=1)
    paths = [ancestors(node) for node in range(NEW)]
    mask = np.array([[other in path for other in range(NEW)] for path in paths])
    depths = np.array([len(path) - 1 for path in paths])
    _, cache = prefilled(checkpoint, prefix)
    ours, _ = run(checkpoint, nodes, PREFIX + depths, mask, cache=cache)
    for node, path in enumerate(paths):
        alone = np.concatenate([prefix, nodes[:, path]], axis=1)
        assert_close(ours[:, node], expected(reference, alone)[:, -1])


def test_rows_of_unequal_length_have_the_logits_of_each_row_alone(pair):
    reference, checkpoint = pair
    lengths = np.array([PREFIX, 5, 20])
    tokens, later = draw((ROWS, PREFIX)), draw((ROWS, NEW), seed=1)
    first, cache = prefilled(checkpoint, tokens, lengths)
    positions = lengths[:, None] + np.arange(NEW)
    second, _ = run(checkpoint, later, positions, causal(NEW), cache=cache)
    for row, length in enumerate(lengths):
        alone = np.concatenate([tokens[row, :length], later[row]])[None]
        ours = np.concatenate([first[row, :length], second[row]])[None]
        assert_close(ours, expected(reference, alone))


def test_a_prompt_in_chunks_and_a_block_in_parts_have_the_logits_of_each_row_alone(pair):
    reference, checkpoint = pair
    lengths = np.array([PREFIX, 5, 20])
    padded, later = draw((ROWS, 5 * CHUNK)), draw((ROWS, NEW), seed=1)
    ours = in_parts(checkpoint.params, padded, lengths, later, model=checkpoint.model)
    for row, length in enumerate(lengths):
        alone = np.concatenate([padded[row, :length], later[row]])[None]
        assert_close(ours[row], expected(reference, alone)[0, -NEW:])


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "opt"])
def test_embeddings_are_rounded_as_those_of_transformers(kind, tmp_path):
    torch = pytest.importorskip("torch")
    reference = make_reference(kind).to(torch.bfloat16)
    reference.save_pretrained(tmp_path)
    checkpoint = load(tmp_path, dtype="bfloat16")
    tokens = draw((1, 40))
    with torch.inference_mode():
        theirs = reference(torch.from_numpy(tokens), output_hidden_states=True).hidden_states[0]
    positions = np.arange(40)[None]
    ours = checkpoint.model.module.apply(
        {"params": checkpoint.params}, tokens, positions, method="embed"
    )
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours.astype(jnp.float32), theirs.float().numpy())


@functools.partial(jax.jit, static_argnames="model")
def in_parts(params, padded, lengths, later, *, model):
    """Logits of `later`, run one part after another over a cache that was filled in chunks."""
    cache = prefill(params, padded, lengths, model=model, capacity=CAPACITY, chunk=CHUNK)
    block = empty_block(model.config, ROWS, NEW, jnp.float32)
    positions = lengths[:, None] + np.arange(NEW)[None]
    logits = []
    for first, last in ((0, 1), (1, 5), (5, NEW)):
        part, mask = slice(first, last), causal(NEW)[first:last, :last]
        output = model.forward(
            params, later[:, part], positions[:, part], mask, cache, block, start=first
        )
        block = output.block
        logits.append(model.logits(params, output.hidden))
    return jnp.concatenate(logits, axis=1)
