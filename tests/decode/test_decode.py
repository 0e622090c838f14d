"""What decoding refuses, in one line."""

import jax
import numpy as np
import pytest

from jspec import LookupDrafter, SmallModelDrafter, Tree, pad_prompts, verify
from jspec.decode import start_decoding


def test_prompts_are_filled_up_to_a_bucket():
    batch = pad_prompts([[5, 6, 7], [8]], context_length=100, max_new_tokens=10, bucket=4)
    np.testing.assert_array_equal(batch.tokens, [[5, 6, 7, 0], [8, 0, 0, 0]])
    np.testing.assert_array_equal(batch.length, [3, 1])


def test_a_prompt_may_fill_the_context_to_the_last_token():
    assert pad_prompts([[1] * 90], context_length=100, max_new_tokens=10).length[0] == 90


@pytest.mark.parametrize(
    ("rows", "tokens", "says"),
    [
        ([], 10, r"^prompts=\[\]"),
        ([[1, 2], []], 10, r"^prompt 1 is empty"),
        ([[1], [2] * 91], 10, r"^prompt 1 has 91 tokens.* 10 new .* 1 more than .* of 100"),
        ([[1] * 150], 10, r"^prompt 0 has 150 tokens.* 60 more than"),
        ([[1]], 0, r"^max_new_tokens=0"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_in_one_line(rows, tokens, says):
    with pytest.raises(ValueError, match=says) as refused:
        pad_prompts(rows, context_length=100, max_new_tokens=tokens)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("tree", [Tree(), Tree.fork(300, 2)], ids=["no candidate", "too large"])
def test_a_tree_with_no_candidate_or_larger_than_the_context_is_refused(tree, target, params):
    batch = pad_prompts(
        [[1, 2]], context_length=target.config.max_position_embeddings, max_new_tokens=4
    )
    for drafter in (SmallModelDrafter(target, tree), LookupDrafter(tree)):
        with pytest.raises(ValueError, match=f"tree of {tree.size} nodes.*512") as refused:
            jax.eval_shape(
                lambda drafter=drafter: start_decoding(
                    params,
                    params,
                    batch,
                    np.full(1, 4),
                    target=target,
                    drafter=drafter,
                    rule=verify.coupled,
                    room=64,
                )
            )
        assert "\n" not in str(refused.value)
