"""Under each of jax's stricter flags everything traces, and computes what it computes without."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from laws import (
    PAIRS,
    PROMPT,
    enumerable,
    enumerable_params,
    head_params,
    head_with_few_tokens,
    small_model,
    unrelated_params,
)

import jspec
from jspec import DynamicTree, LookupDrafter, SamplingParams, Tree
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.stopping import Entropy, Margin, RunningAcceptance
from jspec.models.heads import HeadParams
from jspec.models.transformer import with_hidden_states
from jspec.training.data import Batch
from jspec.training.losses import mixture
from jspec.training.objectives import (
    distillation_loss,
    head_distillation_loss,
    language_model_loss,
)
from jspec.training.recipe import Recipe
from jspec.training.step import init_state, make_optimizer, train_step

pytestmark = pytest.mark.law

ROWS, TOKENS, CONTEXT = 3, 8, 64
CHAIN, DYNAMIC = Tree.chain(3), DynamicTree(2, 2, 5)
HEAD = head_with_few_tokens(PAIRS).head
PENALISED = {
    "temperature": [0.0, 1.0, 1.5],
    "top_k": [0, 5, 0],
    "top_p": 0.95,
    "min_p": 0.01,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
    "min_new_tokens": 2,
    "logit_bias": {1: 0.5, 2: -1.0},
    "stop_token_ids": [4],
    "vocab_size": 6,
}
HOT = {"temperature": [0.0, 1.0, 1.5]}


@contextlib.contextmanager
def flag(name: str) -> Iterator[None]:
    """One of jax's flags."""
    contexts = {
        "x64": jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64,
        "strict promotion": lambda _: jax.numpy_dtype_promotion("strict"),
        "no NaN": jax.debug_nans,
    }
    with contexts[name](True):
        yield


def given(how: dict[str, Any]) -> tuple[Any, ...]:
    """Prompts of several lengths with their keys and ways to sample."""
    rows = [PROMPT, [3, 1, 3], [5] * 9]
    prompts = jspec.pad_prompts(rows, context_length=CONTEXT, max_new_tokens=TOKENS)
    keys = jax.random.split(jax.random.key(5), ROWS)
    return prompts, keys, SamplingParams.create(ROWS, **how)


def speculative(decode, rule, drafter, params, how=HOT, **options) -> Any:
    inner = getattr(drafter, "drafter", drafter)
    return decode(
        enumerable_params(),
        params(),
        *given(how),
        target=getattr(inner, "target", enumerable),
        drafter=drafter,
        rule=rule,
        max_new_tokens=TOKENS,
        **options,
    )


def early(stop, rule, tree=CHAIN) -> Any:
    drafter = EarlyDrafter(small_model(tree), stop)
    return speculative(jspec.generate, rule, drafter, lambda: EarlyParams(unrelated_params()))


def streamed(**options) -> Any:
    *_, last = speculative(jspec.stream, "coupled", small_model(PAIRS), unrelated_params, **options)
    return last


def queued() -> Any:
    texts = dict(
        speculative(
            jspec.generate_many, "coupled", small_model(PAIRS), unrelated_params, batch_size=2
        )
    )
    return jax.tree.map(lambda *x: np.concatenate(x), *(texts[row] for row in range(ROWS)))


def text(rule, drafter, params=unrelated_params, how=HOT):
    return functools.partial(speculative, jspec.generate, rule, drafter, params, how)


def plain() -> Any:
    how = {"target": enumerable, "max_new_tokens": TOKENS}
    return jspec.autoregress(enumerable_params(), *given(PENALISED), **how)


def step_of(objective, params, frozen=()) -> Any:
    """Two steps of training: the parameters and what was measured."""
    length = 16
    tokens = np.random.default_rng(1).integers(0, 6, (2, length + 1)).astype(np.int32)
    shape = (2, length)
    batch = Batch(
        tokens,
        (np.arange(length + 1) > 9).astype(np.int32)[None].repeat(2, 0),
        np.ones(shape, np.float32),
        np.array([[0.0], [0.7]], np.float32).repeat(length, 1),
        np.arange(2, dtype=np.int32),
    )
    recipe = Recipe(name="flags", steps=4, warmup_steps=1, sequence_length=length)
    optimizer = make_optimizer(recipe)
    state = init_state(params, optimizer=optimizer)
    step = jax.jit(functools.partial(train_step, objective=objective, optimizer=optimizer))
    for _ in range(2):
        state, found = step(state, frozen, batch)
    return state.params, found


def language_model() -> Any:
    objective = functools.partial(language_model_loss, model=enumerable, chunk_size=8)
    return step_of(objective, unrelated_params())


LOSS = mixture({"forward_kl": 0.5, "total_variation": 0.25, "coupled_rejection": 0.25})


def distilled() -> Any:
    how = {"model": enumerable, "teacher": enumerable, "loss": LOSS, "chunk_size": 8}
    objective = functools.partial(distillation_loss, **how)
    return step_of(objective, unrelated_params(), enumerable_params())


def head_distilled() -> Any:
    objective = functools.partial(
        head_distillation_loss,
        head=HEAD,
        teacher=with_hidden_states(enumerable, HEAD.layers),
        loss=LOSS,
        feature_weight=0.5,
        logits_weight=0.5,
        ttt_steps=3,
        ttt_decay=0.8,
        feature_noise=0.1,
        chunk_size=8,
    )
    whole = head_params()
    return step_of(objective, whole.head, HeadParams((), whole.target, whole.d2t))


def fresh() -> Any:
    """Parameters of a model and of a head."""
    return enumerable.init(jax.random.key(1)), HEAD.init(jax.random.key(2))


WHAT = {
    "plain decoding": plain,
    "coupled": text("coupled", small_model(PAIRS), how=PENALISED),
    "coupled, dynamic, head": text("coupled", head_with_few_tokens(DYNAMIC), head_params),
    "by_confidence, dynamic": text("by_confidence", small_model(DYNAMIC)),
    "one_sample, lookup": text("one_sample", LookupDrafter(Tree.fork(2, 2)), tuple),
    "token_level": text("token_level", small_model(CHAIN)),
    "block, head": text("block", head_with_few_tokens(CHAIN), head_params),
    "with_replacement": text("with_replacement", small_model(PAIRS), how=PENALISED),
    "without_replacement": text("without_replacement", small_model(PAIRS)),
    "traversal": text("traversal", small_model(PAIRS), how=PENALISED),
    "stops by entropy": functools.partial(early, Entropy(0.2), "block"),
    "stops by margin": functools.partial(early, Margin(0.3), "coupled", PAIRS),
    "stops by what was accepted": functools.partial(early, RunningAcceptance(0.5), "token_level"),
    "stream": functools.partial(streamed, rounds=2),
    "queue": queued,
    "a step of a language model": language_model,
    "a step of distillation": distilled,
    "a step of EAGLE-3": head_distilled,
    "fresh parameters": fresh,
}


# Between them they have every kind of rule, tree, drafter and step.
QUICK = (
    "plain decoding",
    "coupled",
    "coupled, dynamic, head",
    "one_sample, lookup",
    "token_level",
    "traversal",
    "stops by what was accepted",
    "queue",
    "a step of EAGLE-3",
)


@functools.cache
def without(what: str) -> Any:
    return jax.tree.map(np.asarray, WHAT[what]())


@pytest.mark.parametrize("name", ["x64", "strict promotion", "no NaN"])
@pytest.mark.parametrize(
    "what", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in WHAT]
)
def test_a_flag_changes_nothing(what, name):
    expected = without(what)
    with flag(name):
        found = jax.tree.map(np.asarray, WHAT[what]())

    def same(one: np.ndarray, other: np.ndarray) -> None:
        assert one.dtype == other.dtype
        if np.issubdtype(one.dtype, np.floating):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(one, other)

    jax.tree.map(same, expected, found)
