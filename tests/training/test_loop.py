"""Training from the first batch to the last checkpoint."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jspec import ModelConfig, transformer
from jspec.training import loop
from jspec.training.data import Batch, Document, batch_at, pack
from jspec.training.evaluation import held_out_loss
from jspec.training.objectives import language_model_loss
from jspec.training.pretraining import join_documents
from jspec.training.recipe import Pretraining
from jspec.training.step import compile_program, learning_rate_schedule, make_optimizer

pytestmark = pytest.mark.law

CONFIG = ModelConfig(50, 16, 16, 1, 2, 1, 8, 64)
MODEL = transformer(CONFIG)
RNG = np.random.default_rng(0)
OBJECTIVE = functools.partial(language_model_loss, model=MODEL)
END = 2


TOKENS = [RNG.integers(0, 50, 17) for _ in range(12)]
DOCUMENTS = [Document(tokens, np.ones(17)) for tokens in TOKENS]
BLOCKS, HELD_OUT = pack(DOCUMENTS[:6], 16), pack(DOCUMENTS[6:], 16)


def train(recipe, params, blocks=BLOCKS, objective=OBJECTIVE):
    loop.claim_run(recipe, print)
    return loop.train(
        recipe,
        compile_program(params, (), objective=objective, optimizer=make_optimizer(recipe)),
        params,
        (),
        lambda step, params: blocks,
        held_out_loss(objective, (), HELD_OUT, recipe.batch_size),
        lambda found: -found["held_out_loss"],
        note=print,
    ).params


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0))


@pytest.fixture
def recipe(tmp_path):
    return Pretraining(
        name="run", model=CONFIG, output=str(tmp_path), sequence_length=16, batch_size=2, steps=5,
        warmup_steps=1, keep=10,
    )  # fmt: skip


def steps_of(recipe) -> list[int]:
    folder = Path(recipe.output) / recipe.name / "checkpoints"
    return sorted(int(file.name) for file in folder.iterdir() if file.name.isdigit())


def test_every_epoch_visits_all_blocks_in_a_new_order():
    rows = {tuple(tokens): number for number, tokens in enumerate(TOKENS)}
    batches = [batch_at(BLOCKS, step, 2) for step in range(6)]
    seen = [rows[tuple(row)] for batch in batches for row in batch.tokens.tolist()]
    epochs = [seen[:6], seen[6:12]]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    np.testing.assert_array_equal(batch_at(BLOCKS, 4, 2).tokens, batches[4].tokens)
    other = pack(DOCUMENTS[:6], 16, seed=1)
    assert np.any(batch_at(BLOCKS, 0, 6).tokens != batch_at(other, 0, 6).tokens)


def test_documents_are_closed_joined_and_cut_so_that_each_token_is_a_target_once():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "end": END}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    document = join_documents(["a b b", "b a", "b a"], tokenizer, END, 4)
    stream = [0, 1, 1, END, 1, 0, END, 1, 0, END]
    np.testing.assert_array_equal(document.tokens, stream[:9])
    blocks = pack([document], 4)
    rows = blocks.rows(np.arange(2)).tokens
    np.testing.assert_array_equal(sorted(rows.tolist()), sorted([stream[:5], stream[4:9]]))
    np.testing.assert_array_equal(blocks.rows(np.arange(2)).weight, np.ones((2, 4)))
    with pytest.raises(ValueError, match="sequence_length=40: the documents hold 10 tokens"):
        join_documents(["a b b", "b a", "b a"], tokenizer, END, 40)


def test_checkpoints_come_when_they_are_asked_for_and_after_the_last_step(recipe, params):
    train(replace(recipe, save_every=2, evaluate_every=3), params)
    assert steps_of(recipe) == [2, 4, 5]
    log = Path(recipe.output) / "run" / "log.jsonl"
    records = list(map(json.loads, log.read_text().splitlines()))
    assert [record["step"] for record in records] == [3, 5]
    assert all(record["held_out_loss"] > 0 for record in records)


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(recipe, params, tmp_path):
    every = replace(recipe, save_every=1)
    whole = train(replace(every, output=str(tmp_path / "whole")), params)
    stopped = Stopping(3)
    with pytest.raises(KeyboardInterrupt):
        train(every, params, stopped)
    other = jax.tree.map(np.zeros_like, params)  # what it begins with does not matter any more
    resumed = Stopping(99)
    result = train(every, other, resumed)
    assert resumed.asked[0] >= 1
    jax.tree.map(np.testing.assert_array_equal, result, whole)


class Stopping:
    """The blocks, until somebody presses Ctrl-C before a step."""

    def __init__(self, last: int) -> None:
        self.last, self.asked = last, []

    def rows(self, numbers: np.ndarray) -> Batch:
        step = int(numbers[0]) // len(numbers)
        if step == self.last:
            raise KeyboardInterrupt
        self.asked.append(step)
        return BLOCKS.rows(numbers)


def test_a_number_that_is_none_ends_the_run_at_its_step(recipe, params):
    broken = replace(recipe, learning_rate=3e38, warmup_steps=0, save_every=1)
    with pytest.raises(
        FloatingPointError, match=r"^step 1 \(rows 0 to 1 of its data\): norm of the"
    ):
        train(broken, params)
    assert steps_of(recipe) == []
    late = replace(broken, name="late", save_every=5, evaluate_every=5)
    with pytest.raises(FloatingPointError, match="^step [23] .* is (nan|inf)"):
        train(late, params)


def test_a_run_of_another_model_is_not_gone_on_with(recipe, params):
    train(replace(recipe, steps=1), params)
    wider = replace(CONFIG, hidden_size=32)
    other = transformer(wider)
    with pytest.raises(ValueError, match="another run .model.hidden_size=32 where it has 16.: "):
        objective = functools.partial(language_model_loss, model=other)
        train(replace(recipe, model=wider), other.init(jax.random.key(0)), objective=objective)


def test_the_rate_rises_stays_and_falls_to_nothing(recipe):
    planned = replace(recipe, steps=100, warmup_steps=10, cooldown=0.4, learning_rate=1.0)
    rates = [float(learning_rate_schedule(planned)(step)) for step in range(101)]
    np.testing.assert_allclose(rates[:11], np.linspace(0, 1, 11), atol=1e-6)
    np.testing.assert_allclose(rates[10:61], 1, atol=1e-6)
    np.testing.assert_allclose(rates[60:], np.linspace(1, 0, 41), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "middle", "last"), [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)]
)
def test_the_rate_ends_as_its_name_says(recipe, name, middle, last):
    planned = replace(
        recipe,
        steps=200,
        gradient_accumulation_steps=2,
        warmup_steps=0,
        cooldown=0.4,
        learning_rate=1.0,
        schedule=name,
    )
    rate = learning_rate_schedule(planned)
    # Counted in steps of the optimizer, of which there are half as many as batches.
    found = [float(rate(step)) for step in (60, 80, 100)]
    np.testing.assert_allclose(found, [1.0, middle, last], atol=1e-6)
