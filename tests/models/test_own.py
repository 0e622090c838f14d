"""A user's own Linen or NNX module as target and as draft, and what is said when it is wrong."""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from references import draw, refused
from texts import CONTEXT, Batch, Candidate, disagreements, near, plain_text, speculative_text

import jspec
from jspec import Block, Output, decode
from jspec.verify import coupled

pytestmark = pytest.mark.law

TOKENS = 40
SHAPE = jspec.Shape(
    vocab_size=61,
    num_hidden_layers=1,
    num_key_value_heads=4,
    head_dim=8,
    max_position_embeddings=CONTEXT,
)


def example(function):
    """What the example in a docstring defines."""
    code = inspect.getdoc(function).split("Example::\n")[1]
    names = {}
    exec(textwrap.dedent(code), names)
    return names


@pytest.fixture(scope="module", params=[jspec.from_linen, jspec.from_nnx], ids=["linen", "nnx"])
def own(request):
    """The model of a docstring's example, and its parameters, which tell tokens apart."""
    names = example(request.param)
    return names["model"], jax.tree.map(lambda x: 3.0 * x, names["params"])


@pytest.fixture(scope="module")
def batch():
    rows = [draw(length, seed=length).tolist() for length in (1, 9, 30)]
    return Batch(
        jspec.pad_prompts(rows, context_length=CONTEXT, max_new_tokens=TOKENS),
        jax.random.split(jax.random.key(71), len(rows)),
        jspec.SamplingParams.create(len(rows), temperature=(0.0, 0.7, 1.2)),
    )


def test_the_module_of_an_example_is_target_and_draft(own, batch):
    model, params = own
    plain = plain_text(model, params, batch, tokens=TOKENS)
    cousin = near(params, jax.random.key(72), 0.1)
    draft = Candidate(jspec.SmallModelDrafter(model, jspec.Tree.branching((2, 2))), cousin)
    written = speculative_text(model, params, batch, draft, tokens=TOKENS)
    ties, parted = disagreements(model, params, batch, plain, written)
    assert not parted
    assert ties <= 1
    assert 1.2 < written.acceptance_length < 3


def test_a_sequence_in_two_pieces_has_the_logits_of_one(own):
    model, params = own
    tokens = draw((2, 12))
    mask = np.tri(12, dtype=bool)
    positions = np.broadcast_to(np.arange(12), (2, 12))
    whole = model.forward(params, tokens, positions, mask)
    first = model.forward(params, tokens[:, :7], positions[:, :7], mask[:7, :7])
    rows = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 5), (0, 0))), first.block)
    second = model.forward(params, tokens[:, 7:], positions[:, 7:], mask[7:], block=rows, start=7)
    np.testing.assert_allclose(
        model.logits(params, second.hidden),
        model.logits(params, whole.hidden)[:, 7:],
        rtol=1e-4,
        atol=1e-4,
    )


def test_axes_have_the_structure_of_the_parameters(own):
    model, params = own
    spec = jax.sharding.PartitionSpec
    names = jax.tree.structure(model.axes(), is_leaf=lambda x: isinstance(x, spec))
    assert names.num_leaves == jax.tree.structure(params).num_leaves


def test_positions_past_the_context_are_not_looked_up(own):
    """Linen's embedding gives NaN where it has no row."""
    model, params = own
    at = CONTEXT - 2
    tokens, positions = draw((1, 4)), at + np.arange(4)[None]
    output = model.forward(params, tokens, positions, np.tri(4, dtype=bool))
    assert np.isfinite(model.logits(params, output.hidden)).all()


def test_a_cache_has_the_dtype_of_the_rows_and_not_of_some_parameter(own, batch):
    """The first parameter is a table; the rest, and so the rows, are float32."""
    model, params = own
    table, *rest = jax.tree.leaves(params)
    for dtype in (jnp.bfloat16, jnp.int32):
        mixed = jax.tree.unflatten(jax.tree.structure(params), [table.astype(dtype), *rest])
        drafter = jspec.SmallModelDrafter(model, jspec.Tree.chain(2))
        how = {"target": model, "drafter": drafter, "rule": coupled}
        most = np.full(len(batch.keys), 4, np.int32)
        state = jax.eval_shape(
            lambda mixed=mixed, how=how, most=most: decode.start_decoding(
                mixed, mixed, batch.prompts, most, **how, room=64
            )
        )
        rows = (state.cache.k, state.cache.v, state.drafter.cache, state.drafter.block)
        dtypes = {x.dtype for x in jax.tree.leaves(rows) if x.ndim == 4}
        assert dtypes == {jnp.dtype("float32")}
        jax.eval_shape(
            lambda mixed=mixed, how=how: jspec.generate(
                mixed, mixed, *batch, **how, max_new_tokens=4
            )
        )


def right(x, rows):
    return Output(x, Block((rows,), (rows,)))


class Wrong(nn.Module):
    """A model without sense; a test says what its answers are made of, and by what else."""

    output: Callable = right
    logit: Callable = lambda x: x
    also: Callable = lambda x: x
    start: Callable = nn.initializers.normal(1.0)

    def setup(self):
        self.table = self.param("table", self.start, (61, 32))

    def __call__(self, tokens, positions, mask, cache, block, start):
        rows = jnp.zeros((tokens.shape[0], 4, tokens.shape[1], 8))
        return self.output(self.also(self.table[tokens]), rows)

    def logits(self, hidden):
        return self.logit(hidden @ self.table.T)


def first_trace(wrong):
    return lambda: jspec.from_linen(wrong, SHAPE).init(jax.random.key(0))


ROWS = "float32 [1, 4, 1, 8]"


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (lambda x, rows: x, ["returned float32 [1, 1, 32]", "Output"]),
        (lambda x, rows: (x, rows), ["returned tuple", "Output"]),
        (lambda x, rows: None, ["returned NoneType", "Output"]),
        (lambda x, rows: Output(x, None), ["block NoneType", "Block"]),
        (lambda x, rows: right(x[0], rows), ["hidden float32 [1, 32]", "[1, 1, D]"]),
        (lambda x, rows: right([x], rows), ["hidden list", "[1, 1, D]"]),
        (lambda x, rows: Output(x, Block(None, None)), ["k of NoneType", "num_hidden_layers=1"]),
        (lambda x, rows: Output(x, Block(rows, rows)), [f"k of {ROWS}", "num_hidden_layers=1"]),
        (lambda x, rows: Output(x, Block((rows,), [rows])), ["v of list", "num_hidden_layers=1"]),
        (
            lambda x, rows: Output(x, Block((rows,), (rows,) * 2)),
            ["v of 2 layers", "num_hidden_layers=1"],
        ),
        (lambda x, rows: Output(x, Block((None,), (rows,))), ["k[0] NoneType", ROWS]),
        (lambda x, rows: right(x, rows[:, :2]), ["k[0] float32 [1, 2, 1, 8]", ROWS]),
        (lambda x, rows: right(x, rows.astype(int)), ["k[0] int32 [1, 4, 1, 8]", ROWS]),
        (
            lambda x, rows: Output(x, Block((rows,), (rows.astype("bfloat16"),))),
            ["v[0] bfloat16 [1, 4, 1, 8]", ROWS],
        ),
    ],
)
def test_a_call_that_breaks_the_protocol_is_told_with_what_it_returned(output, words):
    refused(first_trace(Wrong(output)), "Wrong.__call__ returned", *words)


@pytest.mark.parametrize(
    ("logit", "words"),
    [
        (lambda x: x[..., 1:], "float32 [1, 1, 60]"),
        (lambda x: x[0], "float32 [1, 61]"),
        (lambda x: x.astype("bfloat16"), "bfloat16 [1, 1, 61]"),
        (lambda x: None, "NoneType"),
        (lambda x: (x,), "tuple"),
    ],
)
def test_logits_that_break_the_protocol_are_told_with_what_they_are(logit, words):
    wanted = "float32 [1, 1, 61] is asked for"
    refused(first_trace(Wrong(logit=logit)), f"Wrong.logits returned {words}", wanted)


@pytest.mark.parametrize(
    ("also", "words"),
    [
        (nn.Dropout(0.5, deterministic=False), ["InvalidRngError", "dropout"]),
        (nn.BatchNorm(use_running_average=True), ["ScopeCollectionNotFound", "batch_stats"]),
    ],
)
def test_a_module_that_needs_more_than_parameters_is_told_what(also, words):
    refused(first_trace(Wrong(also=also)), "Wrong.__call__ raised", "parameters", *words)


def test_rows_that_are_rounded_behind_the_back_of_attention_are_told_when_it_drafts(batch):
    class Rounded(example(jspec.from_linen)["Tiny"]):
        def __call__(self, *arguments):
            output = super().__call__(*arguments)
            return replace(output, block=jax.tree.map(lambda x: x.astype("bfloat16"), output.block))

    model = jspec.from_linen(Rounded(), SHAPE)
    params = model.init(jax.random.key(0))
    draft = Candidate(jspec.SmallModelDrafter(model, jspec.Tree.chain(2)), params)
    refused(
        lambda: speculative_text(model, params, batch, draft, tokens=TOKENS),
        "Rounded.__call__ raised TypeError",
        "bfloat16",
    )


class Headless(nnx.Module):
    def __call__(self, tokens, positions, mask, cache=None, block=None, start=0):
        return right(tokens, tokens)


class Short(nn.Module):
    def __call__(self, tokens):
        return tokens

    def logits(self, hidden):
        return hidden


@pytest.mark.parametrize(
    ("take", "module", "words"),
    [
        (jspec.from_nnx, Headless(), ["Headless has no logits", "Headless.logits(hidden)"]),
        (jspec.from_linen, Short(), ["Short.__call__", "too many", "mask, cache, block, start)"]),
        (jspec.from_nnx, Wrong(), ["module=Wrong", "flax.nnx"]),
        (jspec.from_linen, Headless(), ["module=Headless", "flax.linen"]),
        (jspec.from_linen, Wrong, ["module=Wrong", "an instance"]),
    ],
)
def test_a_module_without_the_methods_of_a_model_is_refused(take, module, words):
    refused(lambda: take(module, SHAPE), *words)


def test_names_of_axes_that_the_mesh_does_not_have_are_kept():
    """Flax itself would hold a parameter to the mesh by them."""
    named = nn.with_partitioning(nn.initializers.normal(1.0), ("words", "tensor"))
    model = jspec.from_linen(Wrong(start=named), SHAPE)
    expected = model.init(jax.random.key(0))
    with jax.set_mesh(jspec.make_mesh(data=2, tensor=4)):
        assert model.axes() == {"table": jax.sharding.PartitionSpec("words", "tensor")}
        for init in (model.init, jax.jit(model.init)):
            jax.tree.map(np.testing.assert_array_equal, init(jax.random.key(0)), expected)


def test_a_module_that_forgets_the_block_is_told_so_when_it_first_decodes(batch):
    """A block is given in drafting, after the prompts have been committed without one."""

    class Forgets(nnx.Module):
        def __init__(self):
            self.table = nnx.Param(jnp.eye(61))

        def __call__(self, tokens, positions, mask, cache=None, block=None, start=0):
            rows = jnp.zeros((tokens.shape[0], 4, tokens.shape[1], 8))
            return jspec.Output(self.table[tokens], jspec.Block((rows,), (rows,)))

        def logits(self, hidden):
            return hidden

    model, params = jspec.from_nnx(Forgets(), SHAPE)
    draft = Candidate(jspec.SmallModelDrafter(model, jspec.Tree.chain(3)), params)
    refused(
        lambda: speculative_text(model, params, batch, draft, tokens=TOKENS),
        "Forgets.__call__",
        "k[0] float32 [3, 4, 1, 8]",
        "[3, 4, 4, 8]",
    )


def test_fresh_parameters_of_an_nnx_module_are_another_module():
    model = example(jspec.from_nnx)["model"]
    refused(lambda: model.init(jax.random.key(0)), "Tiny", "another module")


def test_variables_that_are_no_parameters_travel_with_them():
    class Counting(nnx.Module):
        def __init__(self, rngs):
            self.table = nnx.Param(jnp.eye(61))
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.seen = nnx.Variable(jnp.int32(0))

        def __call__(self, tokens, positions, mask, cache=None, block=None, start=0):
            self.seen[...] += 1
            rows = jnp.zeros((tokens.shape[0], 4, tokens.shape[1], 8))
            hidden = self.dropout(self.table[tokens])
            return jspec.Output(hidden, jspec.Block((rows,), (rows,)))

        def logits(self, hidden):
            return hidden

    module = Counting(nnx.Rngs(0))
    module.eval()
    model, params = jspec.from_nnx(module, SHAPE)
    assert jax.tree.leaves(params)[0].dtype == jnp.float32
    tokens = draw((2, 3))
    for _ in range(2):
        output = jax.jit(model.forward)(params, tokens, tokens, np.tri(3, dtype=bool))
        np.testing.assert_array_equal(output.hidden, np.eye(61)[tokens])


def test_a_shape_of_nothing_is_refused():
    refused(lambda: jspec.Shape(61, 0, 4, 8, 64), "num_hidden_layers=0", "at least 1")
