"""A prompt's text does not depend on the queue that it waits in."""

import functools

import numpy as np
import pytest
from references import refused
from texts import rows_of, speculative_text, stopping

import jspec

TOKENS = 48


def many(target, params, draft, batch, size):
    return dict(
        jspec.generate_many(
            params,
            draft.params,
            *batch,
            target=target,
            drafter=draft.drafter,
            max_new_tokens=TOKENS,
            batch_size=size,
        )
    )


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("lookup chain", 64),
        *(pytest.param("k-ary", size, marks=pytest.mark.slow) for size in (4, 64)),
        pytest.param("lookup chain", 4, marks=pytest.mark.slow),
    ],
)
def test_every_prompt_gets_the_text_that_it_gets_without_a_queue(
    kind, size, target, params, drafts, batch
):
    together = speculative_text(target, params, batch, drafts[kind], TOKENS, jspec.generate)
    texts = many(target, params, drafts[kind], batch, size)
    assert sorted(texts) == list(range(len(batch.keys)))
    for index, text in texts.items():
        expected = rows_of(together, slice(index, index + 1))
        for name in (
            *("tokens", "length", "is_draft_token", "finish_reason"),
            *("num_rounds", "accepted_by_rank", "num_draft_tokens"),
        ):
            np.testing.assert_array_equal(
                getattr(text, name), getattr(expected, name), f"{name} of prompt {index}"
            )


@pytest.fixture(params=["generate", "generate_many", "stream", "autoregress", "stream_plain"])
def write(request, target, params, drafts):
    """A way to write, of which nothing but prompts, keys, sampling and options are open."""
    how = {"target": target, "max_new_tokens": TOKENS}
    if request.param in ("autoregress", "stream_plain"):
        return functools.partial(getattr(jspec, request.param), params, **how)
    draft = drafts["chain"]
    return functools.partial(
        getattr(jspec, request.param), params, draft.params, drafter=draft.drafter, **how
    )


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["one_sample", "token_level", "without_replacement"])
def test_a_queue_and_a_stream_write_what_generate_writes_under_every_rule(
    rule, target, params, drafts, batch
):
    """With ends of text, on which rows leave their slots."""
    batch = stopping(batch, (7, 23, 40))
    tree = jspec.Tree.chain(3) if rule == "token_level" else jspec.Tree.branching((2, 2))
    how = {
        "target": target,
        "drafter": jspec.SmallModelDrafter(target, tree),
        "rule": rule,
        "max_new_tokens": TOKENS,
    }
    draft = drafts["k-ary"].params
    whole = jspec.generate(params, draft, *batch, **how)
    assert len(np.unique(whole.length)) > 5
    *_, streamed = jspec.stream(params, draft, *batch, **how, rounds=5)
    np.testing.assert_array_equal(streamed.tokens, whole.tokens)
    for index, text in jspec.generate_many(params, draft, *batch, **how, batch_size=4):
        length = int(whole.length[index])
        assert (int(text.length[0]), int(text.finish_reason[0])) == (
            length,
            int(whole.finish_reason[index]),
        )
        valid = text.tokens[0, :length], whole.tokens[index, :length]
        np.testing.assert_array_equal(*valid, f"prompt {index}")


def test_fewer_keys_or_samplings_than_prompts_are_refused_when_it_is_called(write, batch):
    count = len(batch.keys)
    for name, rows in (("keys", 1), ("sampling", 3)):
        short = batch._replace(**{name: rows_of(getattr(batch, name), slice(0, rows))})
        says = f"{name} of {rows} rows for {count} prompts: give one for each"
        refused(functools.partial(write, *short), says)
    alone = batch._replace(keys=batch.keys[0])
    refused(functools.partial(write, *alone), f"keys of no rows for {count} prompts")


@pytest.mark.parametrize("write", ["generate_many"], indirect=True)
def test_a_batch_of_none_is_refused_when_it_is_called(write, batch):
    refused(functools.partial(write, *batch, batch_size=0), "batch_size=0: at least one")


@pytest.mark.parametrize("write", ["stream", "stream_plain"], indirect=True)
def test_pieces_of_no_rounds_are_refused_when_it_is_called(write, batch):
    refused(functools.partial(write, *batch, rounds=0), "rounds=0: at least one")
