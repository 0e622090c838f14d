"""One compiled program serves everything that is not a shape."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from texts import (
    CONTEXT,
    NO_STOPS,
    Batch,
    mixed_batch,
    near,
    plain_text,
    rows_of,
    settings,
    speculative_text,
    stopping,
)

from jspec import autoregress, generate, prompts, transformer

# What is counted hangs on no length.
TOKENS = 48


def others(batch: Batch) -> list[Batch]:
    """The same shapes with everything else changed."""
    count = len(batch.keys)
    short = prompts([[row % 5 + 1] for row in range(count)], context=CONTEXT, tokens=TOKENS)
    return [
        mixed_batch(seed=22),
        batch._replace(prompts=short, keys=jax.random.split(jax.random.key(23), count)),
        batch._replace(sampling=settings([{"bias": {1: 0.5, 3: 1.0}}] * count, stops=NO_STOPS)),
        batch._replace(
            sampling=settings(
                [{"temperature": 1.5, "top_k": 3, "bias": {2: 1.0, 5: -1.0}}] * count,
                stops=NO_STOPS,
            )
        ),
        rows_of(batch, np.arange(count)[::-1]),
    ]


@pytest.mark.parametrize("kind", ["chain", pytest.param("grown small", marks=pytest.mark.slow)])
def test_one_compilation_serves_prompts_temperatures_seeds_and_acceptances(
    kind, target, params, drafts, batch
):
    def rounds(batch, draft_params) -> int:
        draft = drafts[kind]._replace(params=draft_params)
        written = speculative_text(target, params, batch, draft, tokens=TOKENS)
        return int(written.rounds.sum())

    cousin = drafts["k-ary"].params
    needed = {rounds(batch, params)}
    compiled = generate._cache_size()
    needed |= {rounds(other, cousin) for other in others(batch)}
    needed |= {rounds(stopping(batch, [7, 33]), params)}
    # They were not the same thing seven times over.
    assert len(needed) > 4
    assert generate._cache_size() == compiled


def test_one_compilation_serves_plain_decoding_too(target, params, batch):
    plain_text(target, params, batch, TOKENS)
    compiled = autoregress._cache_size()
    for other in others(batch):
        plain_text(target, params, other, TOKENS)
    plain_text(target, params, stopping(batch, [7, 33]), TOKENS)
    plain_text(target, near(params, jax.random.key(24), 0.5), batch, TOKENS)
    assert autoregress._cache_size() == compiled


def test_rotary_angles_are_computed_once_however_many_layers_there_are(target):
    def cosines(layers: int) -> int:
        model = transformer(replace(target.config, layers=layers))
        params = jax.eval_shape(model.init, jax.random.key(0))
        row = jax.ShapeDtypeStruct((1, 8), np.int32)

        def hidden(params, tokens, positions):
            return model.forward(params, tokens, positions, np.tri(8, dtype=bool)).hidden

        return jax.jit(hidden).lower(params, row, row).compile().as_text().count(" cosine(")

    assert cosines(1) == cosines(3) > 0


def test_another_width_of_prompts_is_another_program(target, params, batch):
    """The count counts: without this the law above could hold for a count that never moves."""
    compiled = autoregress._cache_size()
    wide = prompts([[1] * 65], context=CONTEXT, tokens=2)
    for _ in range(2):
        plain_text(target, params, rows_of(batch, np.array([0]))._replace(prompts=wide), tokens=2)
    assert autoregress._cache_size() == compiled + 1
