"""One compiled program serves everything that is not a shape."""

from dataclasses import replace

import jax
import jax.monitoring
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

from jspec import (
    GenerationOutput,
    SamplingParams,
    Speculator,
    autoregress,
    decode,
    generate,
    pad_prompts,
    transformer,
)
from jspec.decode import autoregress_program, generate_program

pytestmark = pytest.mark.law

COMPILED = "/jax/core/compile/backend_compile_duration"
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compiled.append(event) if event == COMPILED else None
)

# What is counted depends on no length.
TOKENS = 48


@pytest.fixture(autouse=True)
def usual_bucket(monkeypatch):
    monkeypatch.setattr(decode, "NEW_TOKENS_BUCKET", 64)


def others(batch: Batch) -> list[Batch]:
    """The same shapes with everything else changed."""
    count = len(batch.keys)
    short = pad_prompts(
        [[row % 5 + 1] for row in range(count)], context_length=CONTEXT, max_new_tokens=TOKENS
    )
    return [
        mixed_batch(seed=22),
        batch._replace(prompts=short, keys=jax.random.split(jax.random.key(23), count)),
        batch._replace(
            sampling=settings([{"logit_bias": {1: 0.5, 3: 1.0}}] * count, stop_token_ids=NO_STOPS)
        ),
        batch._replace(
            sampling=settings(
                [{"temperature": 1.5, "top_k": 3, "logit_bias": {2: 1.0, 5: -1.0}}] * count,
                stop_token_ids=NO_STOPS,
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
        written = speculative_text(target, params, batch, draft, tokens=TOKENS, decode=generate)
        return int(written.num_rounds.sum())

    cousin = drafts["k-ary"].params
    needed = {rounds(batch, params)}
    compiled = generate_program._cache_size()
    needed |= {rounds(other, cousin) for other in others(batch)}
    needed |= {rounds(stopping(batch, [7, 33]), params)}
    # They were not the same thing seven times over.
    assert len(needed) > 4
    assert generate_program._cache_size() == compiled


def test_one_compilation_serves_plain_decoding_too(target, params, batch):
    plain_text(target, params, batch, TOKENS, decode=autoregress)
    compiled = autoregress_program._cache_size()
    for other in others(batch):
        plain_text(target, params, other, TOKENS, decode=autoregress)
    plain_text(target, params, stopping(batch, [7, 33]), TOKENS, decode=autoregress)
    plain_text(target, near(params, jax.random.key(24), 0.5), batch, TOKENS, decode=autoregress)
    assert autoregress_program._cache_size() == compiled


@pytest.mark.parametrize("speculative", [True, False])
def test_a_second_call_compiles_nothing(speculative, target, params, drafts):
    """Not even a small program on the way."""

    def call(prompt, most, seed=0, **how) -> GenerationOutput:
        given = (
            pad_prompts([prompt], context_length=CONTEXT, max_new_tokens=most),
            jax.random.split(jax.random.key(seed), 1),
            SamplingParams.create(1, vocab_size=61, **how),
        )
        if not speculative:
            return autoregress(params, *given, target=target, max_new_tokens=most)
        drafter, draft = drafts["lookup chain"]
        return generate(params, draft, *given, target=target, drafter=drafter, max_new_tokens=most)

    call([1, 2, 3], 20)
    call([1, 2, 3], 20, logit_bias={4: 1.0})
    assert compiled
    compiled.clear()
    call([5] * 60, 48, seed=9, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)
    call([6], 64, stop_token_ids=[7, 9], repetition_penalty=1.3, min_new_tokens=4)
    call([6], 1, temperature=1.0, stop_token_ids=[7, 9, 11], presence_penalty=0.5)
    call([2, 3], 7, logit_bias={9: -1.0, 10: 2.0, 11: 0.5}, temperature=2.0)
    assert not compiled
    call([2, 3], 65)
    assert compiled


@pytest.mark.parametrize("options", [{}, {"speculative": False}, {"stop": ["zz"]}], ids=str)
def test_a_second_text_compiles_nothing(options, models):
    engine = Speculator.load(models / "target", models / "wide", tree="2x1")
    engine.generate("def add", max_new_tokens=20, **options)
    engine.generate("def add", max_new_tokens=20, logit_bias={4: 1.0}, **options)
    if "stop" in options:
        options = {"stop": ["yy", "return"]}
    assert compiled
    compiled.clear()
    engine.generate("left", max_new_tokens=31, temperature=0.8, seed=8, top_p=0.9, **options)
    engine.generate("return", max_new_tokens=64, stop_token_ids=[3, 4], **options)
    engine.generate("+", max_new_tokens=5, logit_bias={7: 1.0, 8: -1.0}, min_p=0.1, **options)
    assert not compiled
    engine.generate("left", max_new_tokens=65, **options)
    assert compiled


def test_rotary_angles_are_computed_once_however_many_layers_there_are(target):
    def cosines(layers: int) -> int:
        model = transformer(replace(target.config, num_hidden_layers=layers))
        params = jax.eval_shape(model.init, jax.random.key(0))
        row = jax.ShapeDtypeStruct((1, 8), np.int32)

        def hidden(params, tokens, positions):
            return model.forward(params, tokens, positions, np.tri(8, dtype=bool)).hidden

        return jax.jit(hidden).lower(params, row, row).compile().as_text().count(" cosine(")

    assert cosines(1) == cosines(3) > 0


def test_another_width_of_prompts_is_another_program(target, params, batch):
    """The count counts: without this the law above could hold for a count that never moves."""
    compiled = autoregress_program._cache_size()
    wide = pad_prompts([[1] * 65], context_length=CONTEXT, max_new_tokens=2)
    for _ in range(2):
        plain_text(
            target,
            params,
            rows_of(batch, np.array([0]))._replace(prompts=wide),
            tokens=2,
            decode=autoregress,
        )
    assert autoregress_program._cache_size() == compiled + 1
