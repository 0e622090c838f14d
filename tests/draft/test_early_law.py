"""Drafting that stops early under rules that refuse: what would break the distribution.

That it keeps it is in the grid of tests/verify/test_rules.py.
"""

import functools
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from early_drafts import LONG, Coin, early_draft
from laws import (
    PROMPT,
    SMALLEST_P,
    counts_of,
    enumerable,
    enumerable_params,
    joint_law,
    p_value,
    small_model,
    speculative_draws,
    unrelated_params,
)
from texts import compiled_again, disagreements, rows_of, speculative_text

from jspec import SamplingParams, Tree, generate, pad_prompts
from jspec.draft import early_stopping
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.verify import block, coupled, token_level, traversal, without_replacement

HOT = {"temperature": 1.0}


def stopping_at(stop, tree: Tree, kind=small_model) -> EarlyDrafter:
    return EarlyDrafter(kind(tree), stop)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [token_level, block, without_replacement, traversal])
def test_greedy_text_is_plain_decodings_wherever_rejection_stops(
    rule, target, params, drafts, batch, plain
):
    cold = np.flatnonzero(np.asarray(batch.sampling.temperature) == 0)
    batch, plain = rows_of(batch, cold), rows_of(plain, cold)
    decode = functools.partial(generate, rule=rule)
    draft = early_draft(drafts["k-ary"], Coin(), tree=LONG)
    written = speculative_text(target, params, batch, draft, decode=decode)
    ties, parted = disagreements(target, params, batch, plain, written)
    assert not parted and ties <= 1
    assert np.any(written.num_draft_levels < LONG.depth * written.num_rounds)


def test_uniforms_that_reject_a_draft_token_are_not_seen_by_what_decides():
    """A decider that could see them would make of an exact rule another."""
    seen = []

    @dataclass(frozen=True)
    class Watching(Coin):
        def score(self, params, state, path_confidence, inputs):
            seen.append(inputs.noise)
            return super().score(params, state, path_confidence, inputs)

    for rule, shared in ((token_level, False), (coupled, True)):
        jax.eval_shape(
            functools.partial(
                generate, target=enumerable, drafter=stopping_at(Watching(), Tree.chain(3)),
                rule=rule, max_new_tokens=3,
            ),
            enumerable_params(), EarlyParams(unrelated_params()),
            pad_prompts([PROMPT], context_length=64, max_new_tokens=3),
            jax.random.split(jax.random.key(0), 1),
            SamplingParams.create(1, **HOT),
        )  # fmt: skip
        assert seen and all((noise is not None) == shared for noise in seen)
        seen.clear()


@pytest.mark.parametrize("rule", [token_level, coupled], ids=["token_level", "coupled"])
def test_to_drop_what_was_drawn_for_what_it_is_changes_the_law_of_rejection_alone(
    rule, monkeypatch
):
    right = early_stopping.draft_level

    def dropping(*args, **how):
        drafted, carry = right(*args, **how)
        return drafted._replace(valid=drafted.valid & (drafted.tokens % 2 == 0)), carry

    monkeypatch.setattr(early_stopping, "draft_level", dropping)
    decode = compiled_again(generate)
    written = speculative_draws(
        132, decode, rule=rule, tree=Tree.chain(2), kind=functools.partial(stopping_at, Coin()),
        draft=lambda: EarlyParams(unrelated_params()), **HOT,
    )  # fmt: skip
    follows = p_value(counts_of(written), joint_law(**HOT)) > SMALLEST_P
    assert follows == (rule is coupled)
