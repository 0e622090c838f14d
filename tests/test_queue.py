"""A prompt's text does not hang on the queue that it waits in."""

import numpy as np
import pytest
from texts import rows_of, speculative_text

from jspec import generate_many

TOKENS = 48


def many(target, params, draft, batch, size):
    return dict(
        generate_many(
            params,
            draft.params,
            *batch,
            target=target,
            drafter=draft.drafter,
            tokens=TOKENS,
            batch=size,
        )
    )


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("k-ary", 4),
        ("look-up chain", 64),
        pytest.param("k-ary", 64, marks=pytest.mark.slow),
        pytest.param("look-up chain", 4, marks=pytest.mark.slow),
    ],
)
def test_every_prompt_gets_the_text_that_it_gets_without_a_queue(
    kind, size, target, params, drafts, batch
):
    together = speculative_text(target, params, batch, drafts[kind], tokens=TOKENS)
    texts = many(target, params, drafts[kind], batch, size)
    assert sorted(texts) == list(range(len(batch.keys)))
    for index, text in texts.items():
        expected = rows_of(together, slice(index, index + 1))
        for name in ("tokens", "length", "guessed", "reason", "rounds", "kept", "drafted"):
            np.testing.assert_array_equal(
                getattr(text, name), getattr(expected, name), f"{name} of prompt {index}"
            )


def test_a_batch_of_none_is_refused(target, params, drafts, batch):
    with pytest.raises(ValueError, match="^batch=0: at least one"):
        many(target, params, drafts["chain"], batch, 0)
