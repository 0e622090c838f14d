"""What `jspec verify` finds of a head that was made for something else than it is given."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jspec import Checkpoint, HeadCheckpoint, HeadParams
from jspec.bench.diagnosis import _bare, _swapped, _turning, diagnose
from jspec.bench.drafts import HeadDraft, head_logits, model_logits, seen_by
from jspec.models.heads import eagle, fspad

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
    return _swapped(own, ("fuse", "weight"), axis=1)


def doubled(own):
    return _swapped(own, ("feedforward", "down", "weight"), axis=0)


@pytest.mark.parametrize(
    ("make", "wrong", "said"),
    [
        (eagle, "nothing", None),
        (eagle, "features", "features: "),
        (eagle, "inputs", "fc: "),
        (fspad, "halves", "down_proj: "),
        (eagle, "theta", "rope_theta=10000: it was taught with the target's, 5"),
    ],
)
def test_what_a_head_was_made_for_is_named_first(make, wrong, said, target, params):
    config = replace(target.config, rope_theta=5.0)
    # Norms that were trained weigh channels unevenly, and widths are not of unit size after them.
    uneven = jnp.exp(jax.random.normal(jax.random.key(5), (config.width,)))
    params = {**params, "norm": {"weight": uneven}}
    teacher = type(target)(target.module.clone(config=config), config)
    text = jnp.asarray(np.random.default_rng(1).integers(0, config.vocabulary, (4, 49)))
    seen = _bare(config) if wrong == "features" else teacher
    best = jnp.argmax(model_logits(params, text, model=teacher), axis=-1)
    head = make(replace(config, layers=1))
    features = seen_by(params, text, head=head, model=seen)
    own = taught(head, params, text, features, best, teacher)
    own = {"inputs": fed, "halves": doubled}.get(wrong, lambda own: own)(own)
    head = _turning(head, 10_000.0, None) if wrong == "theta" else head
    draft = HeadDraft(
        HeadCheckpoint(head, own, Path(), "eagle"), Checkpoint(teacher, params, (), Path(), "llama")
    )
    found = diagnose(draft, np.pad(text, ((0, 0), (0, 1))), 4)
    assert found[0].startswith(said) if said else not found
