"""Drafting that stops early under rules that refuse: the target's law, and what would break it."""

import functools
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from early_drafts import LONG, Coin, early_draft, network
from laws import (
    PROMPT,
    SMALLEST_P,
    counts_of,
    enumerable,
    enumerable_params,
    head_params,
    head_with_few_tokens,
    joint_law,
    p_value,
    small_model,
    speculative_draws,
    unrelated_params,
)
from texts import compiled_afresh, disagreements, rows_of, speculative_text

from jspec import Tree, decode, generate, prompts, sampling
from jspec.draft import early_stopping
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.stop_networks import HiddenNetwork, hidden_sizes
from jspec.draft.stopping import Confidence, Entropy, Running
from jspec.verify import (
    block,
    coupled,
    one_sample,
    token_level,
    traversal,
    with_replacement,
    without_replacement,
)

HOT = {"temperature": 1.0}


@pytest.mark.parametrize(
    ("rule", "tree", "stop"),
    [
        (token_level, Tree.chain(3), Coin()),
        pytest.param(token_level, Tree.chain(3), Running(0.5), marks=pytest.mark.slow),
        pytest.param(token_level, Tree.chain(3), Confidence(0.4), marks=pytest.mark.slow),
        pytest.param(block, Tree.chain(3), Coin(), marks=pytest.mark.slow),
        pytest.param(block, Tree.chain(3), Entropy(0.2), marks=pytest.mark.slow),
        pytest.param(
            without_replacement, Tree.branching((2, 2, 1)), Coin(), marks=pytest.mark.slow
        ),
        pytest.param(with_replacement, Tree.branching((2, 2, 1)), Coin(), marks=pytest.mark.slow),
        pytest.param(traversal, Tree.branching((2, 2, 1)), Coin(), marks=pytest.mark.slow),
        pytest.param(one_sample, Tree.branching((2, 2, 1)), Entropy(0.2), marks=pytest.mark.slow),
        pytest.param(coupled, Tree.branching((2, 2, 1)), Coin(), marks=pytest.mark.slow),
    ],
    ids=lambda x: getattr(x, "__name__", type(x).__name__).rpartition(".")[2],
)
def test_the_law_of_three_tokens_is_the_targets_wherever_drafting_stops(rule, tree, stop):
    written = speculative_draws(
        131, rule=rule, tree=tree, kind=functools.partial(stopping_at, stop),
        draft=lambda: EarlyParams(unrelated_params()), **HOT,
    )  # fmt: skip
    depth = written.levels.sum() / written.rounds.sum()
    assert 1 < depth < tree.depth
    assert p_value(counts_of(written), joint_law(**HOT)) > SMALLEST_P


def stopping_at(stop, tree: Tree, kind=small_model) -> EarlyDrafter:
    return EarlyDrafter(kind(tree), stop)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["small", "head"])
def test_the_law_stays_where_a_network_stops_a_model_or_a_head(draft):
    stop, weights = network(HiddenNetwork, hidden_sizes(enumerable.config.width), threshold=0.4)
    kind, own = {
        "small": (small_model, unrelated_params),
        "head": (head_with_few_tokens, head_params),
    }[draft]
    written = speculative_draws(
        133, rule=token_level, tree=Tree.chain(3), draft=lambda: EarlyParams(own(), weights),
        kind=functools.partial(stopping_at, stop, kind=kind), **HOT,
    )  # fmt: skip
    depth = written.levels.sum() / written.rounds.sum()
    print(draft, depth)
    assert 1 < depth < 3
    assert p_value(counts_of(written), joint_law(**HOT)) > SMALLEST_P


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
    assert np.any(written.levels < LONG.depth * written.rounds)


def test_dice_that_refuse_a_guess_are_not_seen_by_what_decides():
    """A decider that could see them would make of an exact rule another."""
    seen = []

    @dataclass(frozen=True)
    class Watching(Coin):
        def judge(self, params, memory, worth, given):
            seen.append(given.dice)
            return super().judge(params, memory, worth, given)

    for rule, shared in ((token_level, False), (coupled, True)):
        jax.eval_shape(
            functools.partial(
                generate, target=enumerable, drafter=stopping_at(Watching(), Tree.chain(3)),
                rule=rule, tokens=3,
            ),
            enumerable_params(), EarlyParams(unrelated_params()),
            prompts([PROMPT], context=64, tokens=3), jax.random.split(jax.random.key(0), 1),
            sampling(1, **HOT),
        )  # fmt: skip
        assert seen and all((dice is not None) == shared for dice in seen)
        seen.clear()


@pytest.mark.parametrize("rule", [token_level, coupled], ids=["token_level", "coupled"])
def test_to_drop_what_was_drawn_for_what_it_is_changes_the_law_of_rejection_alone(
    rule, monkeypatch
):
    right = early_stopping.draw_level

    def dropping(*args, **how):
        drawn, carry = right(*args, **how)
        return drawn._replace(there=drawn.there & (drawn.tokens % 2 == 0)), carry

    monkeypatch.setattr(early_stopping, "draw_level", dropping)
    afresh = compiled_afresh(decode.generate.__wrapped__, "target", "drafter", "rule", "tokens")
    written = speculative_draws(
        132, afresh, rule=rule, tree=Tree.chain(2), kind=functools.partial(stopping_at, Coin()),
        draft=lambda: EarlyParams(unrelated_params()), **HOT,
    )  # fmt: skip
    follows = p_value(counts_of(written), joint_law(**HOT)) > SMALLEST_P
    assert follows == (rule is coupled)
