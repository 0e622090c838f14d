"""What `jspec verify` finds of a head that was made for something else than it is given."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jspec import Checkpoint, HeadCheckpoint, HeadParams
from jspec.bench.health import HeadWithoutNorm, diagnose, swap_halves, with_rope, without_norm
from jspec.draft.draft import HeadDraft
from jspec.models.eagle3 import eagle3
from jspec.models.heads import eagle, fspad
from jspec.models.teacher_forcing import (
    head_logits,
    head_second_logits,
    model_logits,
    target_hidden_states,
)
from jspec.models.transformer import with_hidden_states

STEPS, RATE = 150, 0.01


def taught(head, params, text, features, best, target):
    """Parameters of a head that know a text by heart."""
    optimizer = optax.adam(RATE)
    own = jax.jit(head.init)(jax.random.key(2))

    def loss(own):
        logits = head_logits(HeadParams(own, params), text, features, head=head, target=target)
        return optax.softmax_cross_entropy_with_integer_labels(logits, best)[:, 1:].mean()

    @jax.jit
    def step(own, state):
        change, state = optimizer.update(jax.grad(loss)(own), state)
        return optax.apply_updates(own, change), state

    state = optimizer.init(own)
    for _ in range(STEPS):
        own, state = step(own, state)
    return own


def fed(own):
    return swap_halves(own, ("fuse", "weight"), axis=1)


def doubled(own):
    return swap_halves(own, ("feedforward", "down", "weight"), axis=0)


@pytest.mark.parametrize(
    ("make", "wrong", "said"),
    [
        (eagle, "nothing", None),
        (eagle, "features", "features: "),
        (eagle, "inputs", "fc: "),
        (fspad, "halves", "down_proj: "),
        (eagle, "theta", "rope_theta=10000: it was trained with the target's, 5"),
    ],
)
def test_what_a_head_was_made_for_is_named_first(make, wrong, said, target, params):
    config = replace(target.config, rope_theta=5.0)
    # Norms that were trained weigh channels unevenly, and widths are not of unit size after them.
    uneven = jnp.exp(jax.random.normal(jax.random.key(5), (config.hidden_size,)))
    params = {**params, "norm": {"weight": uneven}}
    teacher = type(target)(target.module.clone(config=config), config)
    text = jnp.asarray(np.random.default_rng(1).integers(0, config.vocab_size, (4, 49)))
    seen = without_norm(config) if wrong == "features" else teacher
    best = jnp.argmax(model_logits(params, text, model=teacher), axis=-1)
    head = make(replace(config, num_hidden_layers=1))
    features = target_hidden_states(params, text, head=head, model=seen)
    own = taught(head, params, text, features, best, teacher)
    own = {"inputs": fed, "halves": doubled}.get(wrong, lambda own: own)(own)
    head = with_rope(head, 10_000.0, None) if wrong == "theta" else head
    draft = HeadDraft(
        Checkpoint(teacher, params, (), Path(), "llama"),
        "",
        HeadCheckpoint(head, own, Path(), "eagle"),
    )
    found = diagnose(draft, np.pad(text, ((0, 0), (0, 1))), 4)
    assert found[0].startswith(said) if said else not found


FEW = 30
OFFSETS = jnp.zeros(FEW, jnp.int32)


@pytest.fixture(scope="module")
def lesson(target, params):
    """A teacher, a text, a head of EAGLE-3, and what teaches one the text by heart, so far as it is
    of the first `FEW` tokens, those of the second level too."""
    config = replace(target.config, rope_theta=5.0)
    teacher = type(target)(target.module.clone(config=config), config)
    text = jnp.asarray(np.random.default_rng(1).integers(0, config.vocab_size, (4, 49)))
    best = jnp.argmax(model_logits(params, text, model=teacher), axis=-1)
    head = eagle3(
        replace(config, num_hidden_layers=1), layers=(1,), draft_vocab_size=FEW, norm_output=True
    )
    seen = target_hidden_states(
        params, text, head=head, model=with_hidden_states(teacher, head.layers)
    )
    known = (best < FEW) & (jnp.arange(text.shape[1]) > 2)[None]

    def teach(head):
        optimizer = optax.adam(RATE)

        def lost(logits):
            log_probs = jax.nn.log_softmax(logits[..., :FEW])
            own = jnp.take_along_axis(log_probs, jnp.minimum(best, FEW - 1)[..., None], axis=-1)[
                ..., 0
            ]
            return -(own * known).sum() / known.sum()

        def loss(own):
            given = HeadParams(own, params, OFFSETS), text, seen
            first, second = (
                logits_of(*given, head=head, target=teacher)
                for logits_of in (head_logits, head_second_logits)
            )
            return lost(first) + lost(second)

        @jax.jit
        def step(own, state):
            change, state = optimizer.update(jax.grad(loss)(own), state)
            return optax.apply_updates(own, change), state

        own = jax.jit(head.init)(jax.random.key(2))
        # Features that are not of unit size, and norms that turn some channels over, tell places.
        uneven = 2 * jax.random.normal(jax.random.key(5), (config.hidden_size,))
        own |= {name: {"weight": uneven} for name in ("feature_norm", "norm")}
        own["fusion"] = {"weight": 4 * own["fusion"]["weight"]}
        state = optimizer.init(own)
        for _ in range(STEPS):
            own, state = step(own, state)
        return own

    return teacher, text, head, teach


@pytest.fixture(scope="module")
def own(lesson):
    """Parameters of the head."""
    *_, head, teach = lesson
    return teach(head)


def found_of(head, own, d2t, lesson, params):
    teacher, text, *_ = lesson
    draft = HeadDraft(
        Checkpoint(teacher, params, (), Path(), "llama"),
        "",
        HeadCheckpoint(head, own, Path(), "eagle3", d2t),
    )
    return diagnose(draft, np.pad(text, ((0, 0), (0, 1))), 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"layers": (0,)}, "ids=[0]: it was trained with those one above, [1]: "),
        ({"layers": (2,)}, "ids=[2]: it was trained with those one below, [1]: "),
        ({"norm_before_residual": True}, "residual=true: it was trained with false: "),
        ({"norm_output": False}, "norm_output=false: it was trained with true: "),
        ({}, None),
    ],
)
def test_what_a_head_of_eagle3_was_made_for_is_named_first(wrong, said, lesson, own, params):
    head = lesson[2]
    declared = replace(head, module=head.module.clone(**wrong))
    found = found_of(declared, own, OFFSETS, lesson, params)
    assert said in found[0] if said else not found


@pytest.mark.slow
def test_a_table_that_holds_tokens_is_named_first(lesson, own, params):
    found = found_of(lesson[2], own, jnp.arange(FEW), lesson, params)
    assert found[0].startswith("d2t: it holds the tokens themselves, ")


@pytest.mark.slow
def test_a_theta_of_eagle3_is_named_first(lesson, own, params):
    found = found_of(with_rope(lesson[2], 1e4, None), own, OFFSETS, lesson, params)
    assert found[0].startswith("rope_theta=10000: it was trained with the target's, 5: ")


@pytest.mark.slow
def test_a_head_that_was_taught_without_its_last_norm_is_named_first(lesson, params):
    *_, head, teach = lesson
    bare = HeadWithoutNorm(head.module.clone(norm_output=False), head.config)
    found = found_of(replace(head, module=bare.module), teach(bare), OFFSETS, lesson, params)
    assert found[0].startswith("norm: it was trained with none before lm_head: ")
