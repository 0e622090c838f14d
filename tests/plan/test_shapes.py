"""Shapes that are planned with: published, imagined, searched, and what they weigh."""

import math
from dataclasses import replace

import jax
import pytest

from jspec import transformer
from jspec.models.heads import eagle, fspad
from jspec.parallel.sharding import divides
from jspec.plan.hardware import ACCELERATORS, accelerator
from jspec.plan.roofline import pass_ms, roofline
from jspec.plan.shapes import SHAPES, read_count, read_shape, shapes, write_shape
from jspec.plan.sizes import parameters_of, size_of, size_of_head

TARGET = SHAPES["llama3.1-8b"]


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # arXiv 2402.01528's drafts, and what the models' pages say.
        ("wide-796m", 796.3),
        ("wide-543m", 543.3),
        ("wide-290m", 290.3),
        ("wide-1.3b", 1333.7),
        ("sheared-1.3b", 1345.3),
        ("llama-65b", 65_285),
        ("llama2-13b", 13_015),
        ("llama2-70b", 68_976),
        ("llama3.1-8b", 8_030),
        ("llama3.1-70b", 70_553),
        ("llama3.2-1b", 1_235.8),
        ("qwen3-8b", 8_190),
        ("qwen3-0.6b", 596.0),
        ("opt-125m", 125.2),
        ("opt-66b", 65_718),
    ],
)
def test_a_published_shape_has_as_many_parameters_as_its_model(name, millions):
    # Counts of the paper leave out the norms.
    assert parameters_of(SHAPES[name]) / 1e6 == pytest.approx(millions, rel=3e-3)


def test_a_pass_reads_every_matrix_once_and_a_row_of_each_table():
    config = replace(TARGET, num_hidden_layers=2)
    size = size_of(transformer(config), "bfloat16")
    params = jax.eval_shape(transformer(config).init, jax.random.key(0))
    whole = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    assert size.parameters == whole == parameters_of(config)
    assert size.stored == 2 * whole
    assert size.read == 2 * (whole - config.vocab_size * config.hidden_size)
    tied = size_of(transformer(replace(config, tie_word_embeddings=True)), "bfloat16")
    assert tied.read == size.read and tied.stored < size.stored
    assert size.cache_row == 2 * 2 * config.num_key_value_heads * config.head_dim * 2


@pytest.mark.parametrize("make", [eagle, fspad])
def test_a_head_reads_its_targets_matrix_of_logits_as_well(make):
    head = make(replace(TARGET, num_hidden_layers=1))
    size = size_of_head(head, TARGET, "bfloat16")
    assert size.read - size.stored == 2 * TARGET.vocab_size * TARGET.hidden_size


def test_what_is_imagined_is_what_was_said():
    found = read_shape("layers=2,width=1024,heads=4,channels=128,feedforward=5000", TARGET)
    assert (
        found.num_hidden_layers,
        found.hidden_size,
        found.num_attention_heads,
        found.num_key_value_heads,
    ) == (2, 1024, 4, 4)
    # Attention is narrower than the model.
    assert found.num_attention_heads * found.head_dim == 512
    assert found.vocab_size == TARGET.vocab_size and found.tie_word_embeddings
    assert read_shape(write_shape(found), TARGET) == found
    assert read_shape("layers=1", TARGET).hidden_size == TARGET.hidden_size


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("width=64", "say how many layers"),
        ("layers=1,depth=3", "'depth=3' is not understood"),
        ("layers=1,layers=2", "not understood"),
        ("layers=x", "not understood"),
        ("layers=0", "layers must lie in 1..1,000"),
        ("layers=999999999", "layers must lie in 1..1,000"),
        ("layers=1,width=0", "width must lie in 1.."),
        ("layers=1,channels=0", "channels must lie in 1.."),
    ],
)
def test_words_that_make_no_shape_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        read_shape(text, TARGET)


def test_searched_shapes_are_the_widest_within_the_budget_and_differ():
    target, budget = replace(TARGET, num_hidden_layers=4, vocab_size=1000), 40_000_000
    found = list(shapes(target, lambda one: parameters_of(one) <= budget))
    assert len(found) == len(set(found)) > 8
    assert {one.num_hidden_layers for one in found} == {1, 2, 3, 4}
    # Attention is as wide as the model, or half as wide.
    assert {one.hidden_size // (one.num_attention_heads * 128) for one in found} == {1, 2}
    for one in found:
        share = one.hidden_size // (one.num_attention_heads * one.head_dim)
        width = one.hidden_size + one.head_dim
        heads = width // one.head_dim // share
        wider = replace(
            one, hidden_size=width, num_attention_heads=heads, num_key_value_heads=heads,
            intermediate_size=one.intermediate_size // one.hidden_size * width,
        )  # fmt: skip
        assert parameters_of(one) <= budget
        assert parameters_of(wider) > budget or wider.hidden_size > target.hidden_size


@pytest.mark.parametrize(("chips", "some"), [(4, True), (64, False)])
def test_searched_shapes_are_such_as_the_mesh_cuts_where_it_cuts_any(chips, some):
    target, ways = replace(TARGET, num_hidden_layers=1), {"data": 1, "fsdp": 1, "tensor": chips}
    found = list(shapes(target, lambda one: True, lambda one: divides(ways, one)))
    assert found and all(divides(ways, one) == some for one in found)
    # What fits is sought among what can be cut alone: 5 heads would fit as well.
    found = list(
        shapes(
            target,
            lambda one: one.num_attention_heads <= 5,
            lambda one: one.num_attention_heads % 4 == 0,
        )
    )
    assert {one.num_attention_heads for one in found} == {4}


@pytest.mark.parametrize("name", ["opt-125m", "qwen3-0.6b"])
def test_parameters_are_those_of_all_layers(name):
    config = SHAPES[name]
    shapes = jax.eval_shape(transformer(config).init, jax.random.key(0))
    assert parameters_of(config) == sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))


def test_of_learned_positions_a_row_is_read_though_the_embedding_is_the_head_too():
    config = SHAPES["opt-125m"]
    size = size_of(transformer(config), "float32")
    params = jax.eval_shape(transformer(config).init, jax.random.key(0))
    assert config.tie_word_embeddings
    assert size.stored - size.read == 4 * math.prod(params["positions"].shape)


def test_counts_are_read():
    assert [read_count(x) for x in ("1500", "2M", "0.8b", "1.5K")] == [1500, 2e6, 8e8, 1500]
    for text in ("", "many", "-1", "0"):
        with pytest.raises(ValueError, match="parameters="):
            read_count(text)


def test_an_accelerator_that_is_not_known_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="hardware='abacus'.*v5e.*h100"):
        accelerator("abacus")


@pytest.mark.parametrize("name", ACCELERATORS)
@pytest.mark.parametrize("chips", [1, 8])
def test_declared_costs_rise_where_they_must(name, chips):
    target, draft = (
        size_of(transformer(SHAPES[x]), "bfloat16") for x in ("llama3.1-8b", "llama3.2-1b")
    )
    chip = ACCELERATORS[name]

    def costs(batch: int, context: int):
        return roofline(target, draft, chip, chips=chips, batch=batch, context=context)

    one, more, longer = costs(1, 512), costs(64, 512), costs(64, 4096)
    for points in (one.target, one.level):
        counts, values = zip(*points, strict=True)
        assert list(values) == sorted(values) and len(counts) > 2
    assert one.plain < more.plain < longer.plain
    assert one.draft_level() < more.draft_level() < longer.draft_level()
    assert one.draft_level() < one.plain


def test_a_pass_takes_the_time_that_reading_takes_until_it_takes_that_of_computing():
    size, chip = size_of(transformer(TARGET), "bfloat16"), ACCELERATORS["h100"]

    def took(rows: int) -> float:
        return pass_ms(size, chip, chips=1, batch=1, rows=rows, context=0)

    # Weights of 16 GB at 3,350 GB/s, of which three quarters are reached, and 32 layers.
    by_hand = 1e3 * (size.read / chip.bandwidth / 0.75) + 32 * 0.02
    assert took(1) == took(16) == pytest.approx(by_hand)
    assert took(4096) > 4 * took(1)
    assert took(8192) - took(4096) == pytest.approx(1e3 * 4096 * size.operations / chip.rate / 0.75)


def test_more_chips_are_faster_until_they_have_to_talk():
    size = size_of(transformer(TARGET), "bfloat16")
    took = [
        pass_ms(size, ACCELERATORS["v5e"], chips=chips, batch=1, rows=1, context=512)
        for chips in (1, 2, 4, 8)
    ]
    assert took == sorted(took, reverse=True)
    small = size_of(transformer(read_shape("layers=1,width=128,channels=64", TARGET)), "bfloat16")
    alone, shared = (
        pass_ms(small, ACCELERATORS["t4"], chips=chips, batch=64, rows=8, context=16)
        for chips in (1, 256)
    )
    assert math.isfinite(shared) and alone > 0
