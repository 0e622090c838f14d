"""A user's own Linen or NNX module as target and as draft, and what is said when it is wrong."""

import inspect
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from references import draw, refused
from texts import CONTEXT, Batch, Candidate, disagreements, near, plain_text, speculative_text

import jspec

TOKENS = 40
SHAPE = jspec.Shape(vocabulary=61, layers=1, kv_heads=4, channels=8, context=CONTEXT)


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
        jspec.prompts(rows, context=CONTEXT, tokens=TOKENS),
        jax.random.split(jax.random.key(71), len(rows)),
        jspec.sampling(len(rows), temperature=(0.0, 0.7, 1.2)),
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
    assert 1.2 < written.tokens_per_round < 3


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


class Wrong(nn.Module):
    """A model without sense whose answers have any shapes."""

    hidden: tuple[int, ...] = (2, 3, 8)
    rows: tuple[tuple[int, ...], ...] = ((2, 4, 3, 8),)
    logit: tuple[int, ...] = (2, 3, 61)
    dtype: str = "float32"
    whole: bool = True

    def __call__(self, tokens, positions, mask, cache=None, block=None, start=0):
        rows = tuple(jnp.zeros(shape) for shape in self.rows)
        output = jspec.Output(jnp.zeros(self.hidden), jspec.Block(rows, rows))
        return output if self.whole else output.hidden

    def logits(self, hidden):
        return jnp.zeros(self.logit, self.dtype)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (Wrong(whole=False), ["Wrong.__call__", "ArrayImpl", "Output"]),
        (Wrong(hidden=(2, 8)), ["Wrong.__call__", "hidden [2, 8]", "[2, 3, D]"]),
        (Wrong(rows=((2, 4, 3, 8),) * 2), ["Wrong.__call__", "2 layers", "layers=1"]),
        (Wrong(rows=((2, 3, 4, 8),)), ["Wrong.__call__", "k[0] [2, 3, 4, 8]", "[2, 4, 3, 8]"]),
        (Wrong(logit=(2, 3, 60)), ["Wrong.logits", "[2, 3, 60]", "float32 [2, 3, 61]"]),
        (Wrong(logit=(2, 61)), ["Wrong.logits", "[2, 61]", "float32 [2, 3, 61]"]),
        (Wrong(dtype="bfloat16"), ["Wrong.logits", "bfloat16 [2, 3, 61]", "float32"]),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_told_with_its_method_and_shape(wrong, words):
    model = jspec.from_linen(wrong, SHAPE)

    def both():
        tokens = np.zeros((2, 3), int)
        output = model.forward({}, tokens, tokens, np.tri(3, dtype=bool))
        model.logits({}, output.hidden)

    refused(both, *words)


def test_a_module_that_forgets_the_block_is_told_so_when_it_first_decodes(batch):
    """A block is given in drafting, after the prompts have been committed without one."""

    class Forgetful(nnx.Module):
        def __init__(self):
            self.table = nnx.Param(jnp.eye(61))

        def __call__(self, tokens, positions, mask, cache=None, block=None, start=0):
            rows = jnp.zeros((tokens.shape[0], 4, tokens.shape[1], 8))
            return jspec.Output(self.table[tokens], jspec.Block((rows,), (rows,)))

        def logits(self, hidden):
            return hidden

    model, params = jspec.from_nnx(Forgetful(), SHAPE)
    draft = Candidate(jspec.SmallModelDrafter(model, jspec.Tree.chain(3)), params)
    refused(
        lambda: speculative_text(model, params, batch, draft, tokens=TOKENS),
        "Forgetful.__call__",
        "k[0] [3, 4, 1, 8]",
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
    refused(lambda: jspec.Shape(61, 0, 4, 8, 64), "layers=0", "at least 1")
