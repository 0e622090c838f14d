"""Training heads on what they will be fed: every pass is a depth of drafting."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import ModelConfig, transformer
from jspec.models.heads import HeadParams, alignment_alone, eagle, fspad
from jspec.training.data import Batch
from jspec.training.losses import forward_kl
from jspec.training.means import read_means
from jspec.training.objectives import head_distillation_loss
from jspec.training.ttt import training_time_test, ttt_weights

CONFIG = ModelConfig(
    vocab_size=50,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=64,
)
TARGET = transformer(dataclasses.replace(CONFIG, num_hidden_layers=2))
HEAD = fspad(CONFIG)
ROWS, LENGTH, PASSES = 3, 24, 4
CAUSAL = np.tril(np.ones((LENGTH, LENGTH), bool))
ENDS = ((9, 20), (1, 2), (24, 25))  # where documents end; what follows is padding


@pytest.fixture(scope="module")
def frozen():
    return jax.jit(TARGET.init)(jax.random.key(1))


@pytest.fixture(scope="module")
def params():
    return moved(jax.jit(HEAD.init)(jax.random.key(2)), 3)


def moved(params, seed):
    keys = iter(jax.random.split(jax.random.key(seed), 64))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)


def blocks(seed: int = 0) -> Batch:
    """Rows of two documents, of which some end at once, and what is left over."""
    rng = np.random.default_rng(seed)
    place = np.arange(LENGTH + 1)
    document = np.stack([np.searchsorted(ends, place, side="right") for ends in ENDS])
    weight = rng.integers(0, 2, (ROWS, LENGTH)) * (document[:, 1:] == document[:, :-1])
    return Batch(
        rng.integers(0, 50, (ROWS, LENGTH + 1)).astype(np.int32),
        document.astype(np.int32),
        (weight * (document[:, 1:] < 2)).astype(np.float32),
        rng.choice([0.0, 0.5, 1.0], (ROWS, LENGTH)).astype(np.float32),
        np.arange(ROWS, dtype=np.int32),
    )


@functools.partial(jax.jit, static_argnames=("passes", "chunk"))
def passes_of(params, embedded, features, batch, *, passes=PASSES, chunk):
    return training_time_test(
        params, embedded, features, batch, head=HEAD, ttt_steps=passes, chunk=chunk
    )


@pytest.fixture(scope="module")
def inputs():
    embedded, features = jax.random.normal(jax.random.key(4), (2, ROWS, LENGTH, CONFIG.hidden_size))
    return embedded, features, blocks()


def close(found, wanted):
    """To float32's rounding of vectors whose numbers were added up from others of their size."""
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("chunk", [24, 8, 2])
def test_a_step_predicts_what_drafting_would_at_its_depth(params, inputs, chunk):
    """Each against a pass over its own text, whose last features the head made one by one."""
    embedded, features, batch = inputs
    found = passes_of(params, embedded, features, batch, chunk=chunk)
    counted = np.asarray(ttt_weights(batch._replace(weight=np.ones((ROWS, LENGTH))), PASSES))

    @jax.jit
    def draft(e, f):
        at = np.arange(LENGTH)
        first = HEAD.forward(params, e[None], f[None], at[None], CAUSAL)
        return first.hidden[0], first.features[0]

    compared = 0
    for row in range(ROWS):
        first = 0
        for end in (*ENDS[row], LENGTH + 1):
            for last in range(first, min(end - 1, LENGTH)):
                for number in range(min(PASSES, last - first + 1)):
                    e, f = np.zeros((2, LENGTH, CONFIG.hidden_size), np.float32)
                    size = last - first + 1
                    here = slice(first, last + 1)
                    e[:size], f[:size] = embedded[row, here], features[row, here]
                    for place in range(size - number, size):
                        f[place] = draft(e, f)[1][place - 1]
                    hidden, following = draft(e, f)
                    close(found[0][number, row, last], hidden[size - 1])
                    close(found[1][number, row, last], following[size - 1])
                    assert counted[row, last, number] == (last < LENGTH - 1)
                    compared += 1
            first = end
    # What else is counted would stand for nothing.
    assert counted.sum() <= compared
    assert compared > 150


@functools.partial(jax.jit, static_argnames=("head", "settings"))
def objective(params, frozen, batch, *, head=HEAD, settings=()):
    named = {"feature_weight": 1.0, "logits_weight": 0.1, **dict(settings)}
    return head_distillation_loss(
        params, HeadParams((), frozen), batch, head=head, teacher=TARGET, loss=forward_kl, **named
    )


def laws(hidden, frozen, t):
    logits = np.asarray(TARGET.logits(frozen, hidden), np.float64)
    greedy = (t == 0)[..., None]
    scaled = logits / np.where(greedy, 1, t[..., None])
    law = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return law / law.sum(axis=-1, keepdims=True), logits


@pytest.mark.slow
@pytest.mark.parametrize("head", [eagle(CONFIG), HEAD], ids=["eagle", "fspad"])
def test_the_loss_is_what_the_papers_write(frozen, head):
    """Smooth L1 on the features and cross entropy on the law, each token of the text for itself."""
    batch = blocks(5)
    own = moved(jax.jit(head.init)(jax.random.key(2)), 3)
    settings = (
        ("feature_weight", 0.7), ("logits_weight", 0.2), ("ttt_steps", 2), ("ttt_decay", 0.5),
        ("chunk_size", 8),
    )  # fmt: skip
    value, measures = objective(own, frozen, batch, head=head, settings=settings)
    wholes = np.zeros((2, 3))
    for row in range(ROWS):
        document = batch.document[row]
        for name in set(document.tolist()):
            here = np.flatnonzero(document == name)
            tokens = batch.tokens[row, here][None]
            size = len(here)
            if size < 3:
                continue
            at, causal = np.arange(size - 1), np.tril(np.ones((size - 1, size - 1), bool))
            read = TARGET.forward(frozen, tokens[:, :-1], at[None], causal).hidden
            embedded, alone = frozen["embedding"][tokens[:, 1:]], blocks(0)
            alone = Batch(
                tokens, np.zeros((1, size), np.int32), np.ones((1, size - 1)), None, np.zeros(1)
            )
            predicted = training_time_test(
                own, embedded, read, alone, head=head, ttt_steps=2, chunk=size - 1
            )
            for number, (hidden, following) in enumerate(zip(*predicted, strict=True)):
                for place in range(number, size - 2):
                    counts = batch.weight[row, here[place] + 1]
                    t = batch.temperature[row, here[place] + 1]
                    apart = np.abs(np.asarray(following - jnp.roll(read, -1, axis=1))[0, place])
                    smooth = np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
                    (p, logits), (q, _) = (
                        laws(x[0, place], frozen, t) for x in (read[:, 1:], hidden)
                    )
                    p = np.eye(50)[logits.argmax()] if t == 0 else p
                    divergence = (p * np.log(np.where(p > 0, p / q, 1))).sum()
                    wholes[number] += counts * np.array([smooth, divergence, 1])
    smooth, divergence, count = wholes.T
    share = np.array([2, 1]) / 3
    expected = share @ (0.7 * smooth / count + 0.2 * divergence / count)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    found = read_means(measures)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-4)
    both = [found["feature_loss"], found["feature_loss_2"]]
    np.testing.assert_allclose(both, smooth / count, rtol=1e-4)
    assert 0 < found["acceptance_rate_2"] < 1


@pytest.mark.parametrize("head", [alignment_alone(CONFIG), HEAD], ids=["alignment", "fspad"])
@pytest.mark.parametrize("counts", ["feature_weight", "logits_weight"])
def test_each_loss_moves_its_own_half_of_the_output(frozen, head, counts):
    """Of one pass: what is fed back to a second comes of the half of the features."""
    own = jax.jit(head.init)(jax.random.key(6))
    settings = (("feature_weight", 0.0), ("logits_weight", 0.0), (counts, 1.0))
    gradient = jax.jit(
        jax.grad(functools.partial(objective, head=head, settings=settings), has_aux=True)
    )
    down = np.asarray(gradient(own, frozen, blocks())[0]["feedforward"]["down"]["weight"])
    hidden, following = np.split(down, 2)
    moves, rests = (following, hidden) if counts == "feature_weight" else (hidden, following)
    assert np.abs(moves).min() > 0
    np.testing.assert_array_equal(rests, 0)


def test_what_is_fed_back_is_taught_by_the_passes_after_it(params, frozen):
    """With the law's loss alone, one pass leaves the features' half alone and two do not."""

    def moved_half(passes):
        settings = (("feature_weight", 0.0), ("ttt_steps", passes))
        pull = jax.jit(jax.grad(functools.partial(objective, settings=settings), has_aux=True))
        down = np.asarray(pull(params, frozen, blocks())[0]["feedforward"]["down"]["weight"])
        return np.abs(down[CONFIG.hidden_size :]).min()

    assert moved_half(1) == 0
    assert moved_half(2) > 0


@pytest.mark.slow
def test_noise_is_a_rows_own_and_of_the_width_that_is_asked_for(params, frozen):
    batch = blocks()
    one = jax.tree.map(lambda x: x[:1], batch)

    def lost(batch, **settings):
        return float(objective(params, frozen, batch, settings=tuple(settings.items()))[0])

    again = jax.tree.map(lambda x: np.concatenate([x, x]), one)
    assert lost(one, feature_noise=0.2) != lost(one)
    noisy = lost(one, feature_noise=0.2)
    np.testing.assert_allclose(lost(again, feature_noise=0.2), noisy, rtol=1e-6)
    other = one._replace(number=np.array([7], np.int32))
    assert lost(other, feature_noise=0.2) != noisy
    assert lost(one, feature_noise=0.2, seed=1) != noisy
    # A loss that is smooth moves with the width, and as its square where it is small.
    apart = [abs(lost(one, feature_noise=width) - lost(one)) for width in (1e-4, 2e-4)]
    assert apart[1] < 2.2 * apart[0]


@pytest.mark.slow
def test_memory_grows_with_the_passes_and_not_with_the_square_of_the_length():
    """Both at most in proportion, and no tensor as large as all scores of one pass."""
    config = dataclasses.replace(
        CONFIG, num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=4096
    )
    head, target = eagle(config), transformer(dataclasses.replace(config, num_hidden_layers=1))
    frozen, own = (jax.eval_shape(model.init, jax.random.key(0)) for model in (target, head))

    def memory(length: int, passes: int) -> int:
        whole, targets = (2, length + 1), (2, length)
        batch = Batch(
            *(jax.ShapeDtypeStruct(whole, jnp.int32) for _ in range(2)),
            *(jax.ShapeDtypeStruct(targets, jnp.float32) for _ in range(2)),
            jax.ShapeDtypeStruct(whole[:1], jnp.int32),
        )
        lower = functools.partial(
            head_distillation_loss, head=head, teacher=target, loss=forward_kl,
            feature_weight=1.0, logits_weight=0.1, ttt_steps=passes, chunk_size=32,
        )  # fmt: skip
        program = jax.jit(jax.grad(lower, has_aux=True)).lower(own, HeadParams((), frozen), batch)
        return program.compile().memory_analysis().temp_size_in_bytes

    scores = 2 * 8 * 512 * 512 * 4  # of all rows against all, in all heads
    some, longer, deeper = memory(256, 3), memory(512, 3), memory(256, 7)
    assert longer < scores
    assert longer < 2.1 * some
    assert deeper < 7 / 3 * some
