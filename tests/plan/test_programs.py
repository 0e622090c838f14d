"""What compiled programs say of themselves, and programs lowered from shapes alone."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jspec import ModelConfig, transformer
from jspec.decode import room_for
from jspec.models.eagle3 import eagle3
from jspec.models.heads import eagle
from jspec.parallel.sharding import make_mesh
from jspec.plan import sources
from jspec.plan.compiled import (
    CompiledPasses,
    OutOfMemoryError,
    ProgramFacts,
    compile_for,
    compile_passes,
    compiled_costs,
    facts,
    needed_bytes,
)
from jspec.plan.gate import GIVEN, READ, check_launch
from jspec.plan.hardware import ACCELERATORS, mesh_on
from jspec.plan.hlo import Collective, array_bytes, bytes_read, collectives, parse
from jspec.plan.programs import cache_shapes, model_passes, parameter_shapes, stored_bytes
from jspec.plan.roofline import milliseconds
from jspec.plan.sources import TextLengths, launch_of

PROGRAMS = ["prefill", "refill", "insert", "round", "commit", "generation", "step"]
CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    max_position_embeddings=256,
)
HEAD = eagle(ModelConfig(**{**vars(CONFIG), "num_hidden_layers": 1}))
DRAFT = transformer(ModelConfig(**{**vars(CONFIG), "hidden_size": 16, "num_hidden_layers": 1}))
TABLE, ROWS = (4096, 64), 8


def read_of(function, *arrays) -> int:
    return bytes_read(parse(jax.jit(function).lower(*arrays).compile().as_text()))


def shape(*sides: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sides, dtype)


def test_what_is_multiplied_is_read_once():
    weight, x = shape(512, 256), shape(8, 256)
    read = read_of(lambda w, x: x @ w.T, weight, x)
    assert read == pytest.approx(4 * (512 * 256 + 8 * 256), rel=0.05)


def test_of_a_table_the_rows_are_read():
    read = read_of(lambda table, at: table[at], shape(*TABLE), shape(ROWS, dtype=jnp.int32))
    assert 4 * ROWS * TABLE[1] <= read < 4 * math.prod(TABLE) / 10


def test_of_what_is_written_in_place_nothing_is_read():
    def put(buffer, row, at):
        return jax.lax.dynamic_update_slice(buffer, row, (at, 0))

    given = shape(*TABLE), shape(1, TABLE[1]), shape(dtype=jnp.int32)
    text = jax.jit(put, donate_argnums=0).lower(*given).compile().as_text()
    assert bytes_read(parse(text)) < 4 * math.prod(TABLE) / 10


def test_a_loops_body_counts_once():
    def often(weight, x, *, count: int):
        return jax.lax.fori_loop(0, count, lambda _, x: jnp.tanh(x @ weight), x)

    given = shape(256, 256), shape(8, 256)
    few, many = (read_of(functools.partial(often, count=n), *given) for n in (3, 300))
    assert few == many >= 4 * 256 * 256


def test_of_branches_the_one_that_reads_the_most_counts():
    def either(which, one, two, x):
        return jax.lax.cond(which, lambda x: x @ one, lambda x: x @ two @ two, x)

    given = shape(256, 256), shape(256, 256), shape(8, 256)
    read = read_of(either, shape(dtype=bool), *given)
    assert 2 * 4 * 256 * 256 <= read < 2.5 * 4 * 256 * 256


def test_what_lies_in_fast_memory_is_not_read_again():
    text = """
ENTRY %main (p: bf16[64,32]) -> f32[64,32] {
  %p = bf16[64,32]{1,0:T(8,128)(2,1)} parameter(0)
  %start = (bf16[64,32]{1,0:T(8,128)(2,1)S(1)}, bf16[64,32]{1,0}, u32[]{:S(2)}) copy-start(%p)
  %done = bf16[64,32]{1,0:T(8,128)(2,1)S(1)} copy-done(%start)
  %part = ((bf16[64,32]{1,0}), bf16[16,32]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:16]}
  ROOT %out = f32[64,32]{1,0} convert(%done)
}
"""
    assert bytes_read(parse(text)) == 64 * 32 * 2 + 16 * 32 * 2 + 4
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule nothing")


def test_sizes_of_types():
    assert array_bytes("(bf16[2,3]{1,0}, pred[7], u32[], f8e4m3fn[5])") == 12 + 7 + 4 + 5


def test_exchanges_are_counted_by_kind_and_bytes():
    mesh = make_mesh(data=1, tensor=8)
    cut = NamedSharding(mesh, PartitionSpec(None, "tensor"))
    x, weight = (jax.ShapeDtypeStruct(s, jnp.float32, sharding=cut) for s in ((4, 64), (32, 64)))
    _, facts = compile_for(
        jax.jit(lambda x, w: x @ w.T, out_shardings=NamedSharding(mesh, PartitionSpec())).lower(
            x, weight
        )
    )
    assert facts.collectives == (Collective("all-reduce", 1, 4 * 32 * 4),)
    entry = "ENTRY %main (p: f32[2]) -> f32[2] {\n  %a = f32[2]{0} add(%p, %p)\n"
    assert collectives(parse(entry + "}")) == ()
    started = "  %s = (bf16[8,4]{1,0}, bf16[64,4]{1,0}) all-gather-start(%p), dimensions={0}\n"
    started += "  %d = bf16[64,4]{1,0} all-gather-done(%s)\n}"
    assert collectives(parse(entry + started)) == (Collective("all-gather", 1, 64 * 4 * 2),)


def test_time_is_that_of_what_takes_the_longest():
    chip = ACCELERATORS["v5e"]

    def ms(read: int = 0, operations: float = 0.0, sent: int = 0) -> float:
        told = (Collective("all-reduce", 2, sent),) if sent else ()
        demands = ProgramFacts(0.0, read, operations, 0, 0, 0, 0, told).demands
        return milliseconds(demands, chip, layers=0, reached=1.0)

    reading = 1e3 * 8e9 / chip.bandwidth
    assert ms(read=8 * 10**9) == pytest.approx(reading)
    assert ms(read=8 * 10**9, operations=1e9) == pytest.approx(reading)
    assert ms(read=1, operations=chip.rate) == pytest.approx(1e3)
    more = ms(read=8 * 10**9, sent=10**9)
    # A sum is gathered and handed out.
    assert more == pytest.approx(reading + 1e3 * (2e9 / chip.link + 2 * chip.dispatch))


class Refused:
    """A program that XLA refuses."""

    def __init__(self, said: str) -> None:
        self.said = said

    def compile(self):
        raise RuntimeError(self.said)


def test_what_xla_finds_no_room_for_is_told_in_bytes():
    said = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 24.01G of 15.75G hbm. Exceeded hbm capacity by 8.50G.\n\nTotal hbm usage"
    )
    with pytest.raises(OutOfMemoryError, match=f"^needs some {17 * 2**29:,} bytes more") as caught:
        compile_for(Refused(said))
    assert caught.value.over == 17 * 2**29
    with pytest.raises(RuntimeError, match="^INTERNAL") as other:
        compile_for(Refused("INTERNAL: something else"))
    assert not isinstance(other.value, OutOfMemoryError)


def test_a_launch_that_xla_finds_no_room_for_does_not_fit(mesh, monkeypatch):
    def refuse(*_, **__):
        raise OutOfMemoryError(1000)

    chip, work, how = ACCELERATORS["v5e"], TextLengths(64, 32), {"dtype": "bfloat16"}
    monkeypatch.setattr(sources, "compile_passes", refuse)
    find = sources.compiling(transformer(CONFIG), chip, mesh, work, **how, tick=str)
    draft = sources.PlannedDraft("small", DRAFT)
    took, room = find(draft, 8)
    assert not room.fits and room.needed == int(chip.memory) + 1000
    told = sources.declared(transformer(CONFIG), chip, work, mesh_shape=mesh.shape, **how)
    assert took == told(draft, 8)[0]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=2, tensor=4)


def test_shapes_lie_where_parameters_lie(mesh):
    params = parameter_shapes(transformer(CONFIG), mesh, jnp.bfloat16)
    whole = sum(x.size for x in jax.tree.leaves(params))
    norms = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 1)
    # All but the norms is cut in four, and every one has two bytes.
    assert stored_bytes(params) == 2 * ((whole - norms) // 4 + norms)
    cache = cache_shapes(CONFIG, mesh, 6, 40, jnp.bfloat16)
    assert (
        stored_bytes(cache)
        == 2 * 2 * CONFIG.num_hidden_layers * (6 // 2) * (4 // 4) * 40 * 8 + 3 * 4
    )


@pytest.mark.parametrize("part", [DRAFT, HEAD], ids=["model", "head"])
def test_a_launch_of_shapes_goes_through_the_gate(part, mesh):
    """Round, commit and step write over what they are given, and commit exchanges nothing."""
    found = {
        one.program: one
        for one in check_launch(
            transformer(CONFIG), part, mesh, ACCELERATORS["v5e"], TextLengths(64, 32),
            batch=4, training=(32, 4), tick=lambda said: None,
        )
    }  # fmt: skip
    assert list(found) == PROGRAMS
    for one in found.values():
        assert one.aliased >= GIVEN * one.donated and one.memory > 0
    assert found["commit"].collectives == 0 < found["round"].collectives
    assert found["commit"].donated and found["step"].donated > found["commit"].donated


@pytest.mark.parametrize("kind", [eagle, functools.partial(eagle3, layers=(0, 1, 2))])
def test_a_round_reads_what_its_passes_must_and_little_more(kind):
    wide = {"vocab_size": 1024, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 32}
    config, alone = ModelConfig(**{**vars(CONFIG), **wide}), mesh_on(jax.devices()[:1], {})
    passed = check_launch(
        transformer(config), kind(ModelConfig(**{**vars(config), "num_hidden_layers": 1})), alone,
        ACCELERATORS["v5e"], TextLengths(64, 32), batch=1, training=(32, 1), dtype="float32",
        tick=lambda said: None,
    )  # fmt: skip
    once = next(one for one in passed if one.program == "round")
    assert 1 <= once.read_ratio <= READ and not once.problem


def test_a_problem_is_reported(mesh):
    tiny = ACCELERATORS["v5e"].__class__("tiny", 1000.0, 1.0, 1.0, 1.0, 0.0)
    first = next(
        check_launch(
            transformer(CONFIG), DRAFT, mesh, tiny, TextLengths(64, 32),
            batch=4, training=(32, 4), tick=lambda said: None,
        )
    )  # fmt: skip
    assert first.problem == f"needs {first.memory - 1000:,} bytes more than tiny has"


def test_a_newcomer_is_begun_beside_the_texts_that_are_being_written(mesh):
    launch = launch_of(
        transformer(CONFIG), DRAFT, mesh, TextLengths(64, 32), batch=4, dtype="bfloat16"
    )
    passed = check_launch(
        transformer(CONFIG), DRAFT, mesh, ACCELERATORS["v5e"], TextLengths(64, 32),
        batch=4, training=(32, 4), tick=lambda said: None,
    )  # fmt: skip
    refill = {one.program: one for one in itertools.islice(passed, 2)}["refill"]
    alone = facts(launch.refill().compile()).memory
    assert refill.memory == alone + stored_bytes(launch.state(launch.prefill().compile()))


def test_the_state_of_a_round_is_that_of_its_prefill(mesh):
    launch = launch_of(
        transformer(CONFIG), DRAFT, mesh, TextLengths(64, 32), batch=4, dtype="float32"
    )
    state = launch.state(launch.prefill().compile())
    assert state.cache.k[0].shape == (4, 4, 64 + room_for(32) + launch.drafter.tree.path_length, 8)
    after = launch.round(state).compile()
    # Rows stay where they are from round to round.
    for given, home in zip(state.cache.k, after.output_shardings.cache.k, strict=True):
        assert given.sharding.is_equivalent_to(home, given.ndim)
        assert given.sharding.spec[1] == "tensor"


def test_between_what_is_compiled_a_pass_costs_as_much_up_to_the_roofs_knee():
    """Weights are read once for however many rows, operations grow with these: time stands still
    for as long as reading takes longer, and then grows with the rows."""
    chip = ACCELERATORS["v5e"]
    read, knee = 10**9, 16
    each = read / chip.bandwidth * chip.rate / knee
    of = {n: ProgramFacts(0.0, read, n * each, 0, 0, 0, 0, ()) for n in (1, 64)}
    points = dict(CompiledPasses(of, stored=0, layers=0).points(chip))
    assert list(points) == [1, 2, 4, 8, 16, 32, 64]
    assert points[8] == points[16] == points[1] == pytest.approx(1e3 * read / chip.bandwidth / 0.75)
    assert [points[32], points[64]] == pytest.approx([2 * points[1], 4 * points[1]])


def test_compiled_costs_rise_and_hold_the_bytes_of_what_was_compiled(mesh):
    """No weight is made: the passes are of a model that no machine would hold."""
    large = ModelConfig(
        **{
            **vars(CONFIG),
            "num_hidden_layers": 1,
            "intermediate_size": 400_000,
            "hidden_size": 8192,
        }
    )
    cache = cache_shapes(large, mesh, 4, 64, jnp.bfloat16)
    params = parameter_shapes(transformer(large), mesh, jnp.bfloat16)
    passes = model_passes(transformer(large), params, cache, mesh)
    target = compile_passes(passes, (1, 8), layers=1, name="large", tick=lambda said: None)
    small = parameter_shapes(DRAFT, mesh, jnp.bfloat16)
    own = cache_shapes(DRAFT.config, mesh, 4, 64, jnp.bfloat16)
    draft = compile_passes(
        model_passes(DRAFT, small, own, mesh),
        (1, 8),
        layers=1,
        name="draft",
        tick=lambda said: None,
    )
    chip = ACCELERATORS["v5p"]
    costs = compiled_costs(target, draft, chip)
    assert costs.verification(1) == costs.plain <= costs.verification(8)
    assert 0 < costs.draft_level() < costs.plain / 10
    assert target.stored == stored_bytes((params, cache)) > 4e9
    assert needed_bytes(target, draft) >= target.stored + draft.stored


def test_a_mesh_must_be_as_large_as_its_slice():
    devices = jax.devices()
    assert mesh_on(devices, {"tensor": 4, "data": 2}).shape == {"data": 2, "fsdp": 1, "tensor": 4}
    with pytest.raises(ValueError, match="mesh='tensor=4' has 4 devices, and the slice 8"):
        mesh_on(devices, {"tensor": 4})
    assert np.array(mesh_on(devices[:1], {}).devices).shape == (1, 1, 1)
