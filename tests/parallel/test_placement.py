"""On a mesh everything is what it is without one, and lies where the table says."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from references import assert_same
from texts import (
    Batch,
    Candidate,
    candidates,
    disagreements,
    mixed_batch,
    near,
    plain_text,
    rows_of,
    sharp,
    speculative_text,
)

import jspec
from jspec import Model, ModelConfig, SmallModelDrafter, Tree, decode, verify
from jspec.core.cache import Block, commit, empty_cache
from jspec.formats.huggingface import load, save
from jspec.formats.weights import Stored
from jspec.models.protocol import Params
from jspec.parallel import memory
from jspec.parallel.sharding import REPLICATED, RULES, Rules, constrain, make_mesh, shardings

pytestmark = pytest.mark.law

TOKENS = 48
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "head_dim": 8,
}
TARGET = jspec.transformer(
    ModelConfig(**SIZES, num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512)
)
COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter")


@pytest.fixture(scope="module")
def params() -> Params:
    return sharp(jax.jit(TARGET.init)(jax.random.key(71)))


@pytest.fixture(scope="module")
def batch() -> Batch:
    return mixed_batch(seed=72)


@pytest.fixture(scope="module")
def plain(params, batch):
    return plain_text(TARGET, params, batch, TOKENS)


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return make_mesh(data=2, tensor=4)


def place(model: Model, params: Params, mesh: Mesh, rules: Rules = RULES) -> Params:
    return jax.device_put(params, shardings(mesh, model.axes(), rules))


def placed(kind: str, params: Params, mesh: Mesh) -> Candidate:
    """A drafter, its parameters cut as the target's where the mesh divides them."""
    draft = candidates(TARGET, params)[kind]
    model = getattr(draft.drafter, "model", None)
    if model is None:
        return draft
    rules = RULES if model is TARGET else REPLICATED
    return draft._replace(params=place(model, draft.params, mesh, rules))


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [
        ({"data": 2, "tensor": 4}, "k-ary"),
        pytest.param({"data": 2, "tensor": 4}, "fork", marks=pytest.mark.slow),
        pytest.param({"fsdp": 2, "tensor": 2, "data": 2}, "lookup chain", marks=pytest.mark.slow),
        pytest.param({"fsdp": 8}, "chain", marks=pytest.mark.slow),
        pytest.param({"tensor": 4, "fsdp": 2}, "k-ary", marks=pytest.mark.slow),
        pytest.param({"data": 8}, "fork", marks=pytest.mark.slow),
    ],
)
def test_speculation_on_a_mesh_is_plain_decoding_without_one(sizes, kind, params, batch, plain):
    mesh = make_mesh(**sizes)
    cut = place(TARGET, params, mesh)
    with jax.set_mesh(mesh):
        written = speculative_text(TARGET, cut, batch, placed(kind, params, mesh), TOKENS)
    ties, parted = disagreements(TARGET, params, batch, plain, written)
    print(f"{kind} on {sizes}: {ties} near-ties, {written.acceptance_length:.2f} tokens a round")
    assert not parted and ties <= 1
    assert written.acceptance_length > 1.05
    assert written.tokens.sharding.is_fully_replicated


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["one_sample", "token_level", "without_replacement"])
def test_every_rule_writes_the_same_on_a_mesh(rule, params, batch, mesh):
    tree = Tree.chain(2) if rule == "token_level" else Tree.branching((2, 2))
    few = rows_of(batch, slice(0, 8))
    cousin = near(params, jax.random.key(73), 0.2)
    write = functools.partial(
        jspec.generate,
        target=TARGET,
        drafter=SmallModelDrafter(TARGET, tree),
        rule=rule,
        max_new_tokens=TOKENS,
    )
    alone = write(params, cousin, *few)
    with jax.set_mesh(mesh):
        written = write(place(TARGET, params, mesh), place(TARGET, cousin, mesh), *few)
    np.testing.assert_array_equal(written.tokens, alone.tokens)


@pytest.mark.slow
def test_a_stream_and_a_queue_on_a_mesh_are_plain_decoding_too(params, batch, plain, mesh):
    """A batch of five, which the mesh does not divide."""
    cut, draft = place(TARGET, params, mesh), placed("fork", params, mesh)
    few, expected = (rows_of(x, slice(7, 12)) for x in (batch, plain))
    how = {"target": TARGET, "drafter": draft.drafter, "max_new_tokens": TOKENS}
    with jax.set_mesh(mesh):
        *_, streamed = jspec.stream(cut, draft.params, *few, **how, rounds=16)
        queued = dict(jspec.generate_many(cut, draft.params, *few, **how, batch_size=4))
    assert disagreements(TARGET, params, few, expected, streamed) == (0, [])
    for row, text in queued.items():
        one = slice(row, row + 1)
        assert disagreements(TARGET, params, rows_of(few, one), rows_of(expected, one), text) == (
            0,
            [],
        )


@pytest.mark.parametrize("rules", [RULES, REPLICATED], ids=["cut", "replicated"])
def test_a_cache_lies_where_the_parameters_lie_that_fill_it(rules, params, batch, mesh):
    drafter = SmallModelDrafter(TARGET, Tree.chain(2))
    most = np.full(len(batch.keys), 8, np.int32)
    begin = functools.partial(
        decode.start_decoding, target=TARGET, drafter=drafter, rule=verify.coupled, room=8
    )
    with jax.set_mesh(mesh):
        state = begin(
            place(TARGET, params, mesh), place(TARGET, params, mesh, rules), batch.prompts, most
        )
    heads = "tensor" if rules is RULES else None
    rows = state.tokens.shape[0] // 2
    assert state.cache.k[0].sharding.shard_shape(state.cache.k[0].shape)[:2] == (rows, 1)
    kept = jax.tree.leaves(state.drafter)[0]
    assert kept.sharding.shard_shape(kept.shape)[:2] == (rows, 1 if heads else 4)


def test_commit_moves_nothing_between_devices(mesh):
    cache = empty_cache(TARGET.config, 4, 32, jnp.float32)
    spec = PartitionSpec("data", "tensor")
    home = jax.sharding.NamedSharding(mesh, spec)
    by_row = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))
    rows = jnp.zeros((4, 4, 6, 8))
    block = jax.device_put(Block((rows,) * 2, (rows,) * 2), home)
    cache = cache.replace(
        k=jax.device_put(cache.k, home),
        v=jax.device_put(cache.v, home),
        length=jax.device_put(cache.length, by_row),
    )
    path, count = jax.device_put((jnp.zeros((4, 3), jnp.int32), jnp.ones(4, jnp.int32)), by_row)
    with jax.set_mesh(mesh):
        program = jax.jit(commit).lower(cache, block, path, count).compile().as_text()
        sums = jax.jit(lambda x: x.sum()).lower(cache.k[0]).compile().as_text()
    assert not COLLECTIVE.search(program)
    # The pattern finds those that there are.
    assert COLLECTIVE.search(sums)


@pytest.mark.parametrize(("rows", "gathered"), [(1, 0), (2, 1)])
def test_a_table_is_gathered_only_for_rows_that_lie_as_its_columns_do(rows, gathered):
    # No matrix of a layer is as high as the table of so many tokens.
    sizes = SIZES | {"vocab_size": 80, "max_position_embeddings": 8}
    model = jspec.transformer(ModelConfig(**sizes, num_attention_heads=8, num_key_value_heads=4))
    params = jax.jit(model.init)(jax.random.key(73))
    mesh = make_mesh(fsdp=2, tensor=4)
    laid = jax.device_put(params, shardings(mesh, model.axes()))
    tokens, seen = jnp.arange(rows * 3).reshape(rows, 3), jnp.tril(jnp.ones((3, 3), bool))

    def look_up(params: Params) -> jax.Array:
        return model.forward(params, tokens, jnp.zeros_like(tokens), seen).hidden

    with jax.set_mesh(mesh):
        program = jax.jit(look_up).lower(laid).compile()
        found = program(laid)
    whole = re.findall(r"= f32\[20,32\]\S* all-gather", program.as_text())
    assert len(whole) == gathered
    # Of numbers about 1, sums of 32 products that two devices add up in another order.
    np.testing.assert_allclose(found, look_up(params), atol=1e-5)


def test_loading_on_a_mesh_is_loading_and_each_device_reads_its_own_piece(
    tmp_path, params, mesh, monkeypatch
):
    save(tmp_path / "m", TARGET, params)
    read, sizes = Stored.read, []

    def noted(tensor, piece=()):
        found = read(tensor, piece)
        if len(tensor.shape) == 2:
            sizes.append(found.size / math.prod(tensor.shape))
        return found

    monkeypatch.setattr(Stored, "read", noted)
    cut = load(tmp_path / "m", mesh=mesh)
    assert max(sizes) == 1 / 4
    assert_same(cut.params, params)
    homes = jax.tree.map(lambda x: x.sharding, cut.params)
    assert homes == shardings(mesh, TARGET.axes())
    whole = load(tmp_path / "m", mesh=mesh, rules=REPLICATED).params
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(whole))
    assert_same(whole, params)


def test_an_axis_that_the_mesh_does_not_divide_is_cut_as_far_as_it_does(mesh):
    def home(rows: int) -> PartitionSpec:
        return jax.jit(lambda: constrain(jnp.zeros((rows, 3)), "batch", None))().sharding.spec

    with jax.set_mesh(make_mesh(data=2, fsdp=4)):
        assert [home(rows)[:1] for rows in (8, 6)] == [(("data", "fsdp"),), ("data",)]
        assert not any(home(3))


def test_a_mesh_that_does_not_divide_a_model_is_refused(tmp_path, params):
    save(tmp_path / "m", TARGET, params)
    with pytest.raises(
        ValueError, match="^mesh tensor=8 does not divide num_key_value_heads=4: take"
    ):
        load(tmp_path / "m", mesh=make_mesh(tensor=8))


def test_a_container_may_have_less_than_the_host(tmp_path, monkeypatch):
    for name, content in {"LIMIT": "3000\n", "USED": "1000\n"}.items():
        (tmp_path / name).write_text(content)
        monkeypatch.setattr(memory, name, tmp_path / name)
    assert memory.free_host_memory() == 2000
    (tmp_path / "LIMIT").write_text("max\n")
    assert memory.free_host_memory() > 10**6


def test_a_model_that_does_not_fit_is_refused_before_it_is_read(tmp_path, params, monkeypatch):
    save(tmp_path / "m", TARGET, params)
    monkeypatch.setattr(memory, "free_host_memory", lambda: 10_000)
    with pytest.raises(ValueError, match=r"the weights of .* need 0\.\d+ GB .* 0\.00 GB are free"):
        load(tmp_path / "m")
