"""Costs and memory by what a maker declares, and what is refused before anything is allocated."""

from dataclasses import replace
from pathlib import Path

import pytest

from jspec import load_draft, transformer
from jspec.formats import folder as model_folders
from jspec.formats.huggingface import Checkpoint
from jspec.models.heads import eagle
from jspec.parallel.sharding import divides, most_tensor_devices
from jspec.plan import sources
from jspec.plan.compiled import ProgramFacts
from jspec.plan.forecast import Forecast, ranking
from jspec.plan.hardware import ACCELERATORS
from jspec.plan.hlo import Collective
from jspec.plan.roofline import REACHED, milliseconds, pass_ms
from jspec.plan.shapes import SHAPES, read_shape
from jspec.plan.sizes import MemoryFit, size_of
from jspec.plan.sources import PlannedDraft, TextLengths, declared, measuring

TARGET, CHIP, WORK = transformer(SHAPES["llama3.1-8b"]), ACCELERATORS["h100"], TextLengths(512, 512)
SMALL = PlannedDraft("small", transformer(SHAPES["llama3.2-1b"]))


def ways(data: int = 1, fsdp: int = 1, tensor: int = 1) -> dict[str, int]:
    return {"data": data, "fsdp": fsdp, "tensor": tensor}


def source(dtype: str = "bfloat16", **axes: int):
    return declared(TARGET, CHIP, WORK, mesh_shape=ways(**axes), dtype=dtype)


def test_copies_share_the_texts():
    """Four copies of two chips with 64 texts are two chips with 16."""
    ours, room = source(data=4, tensor=2)(SMALL, 64)
    theirs, alone = source(tensor=2)(SMALL, 16)
    assert replace(ours, source="") == replace(theirs, source="")
    assert room.needed == alone.needed < source(tensor=2)(SMALL, 64)[1].needed


def test_a_draft_that_cannot_be_cut_is_whole_on_every_chip():
    three = PlannedDraft(
        "three", transformer(read_shape("layers=2,width=384,heads=3", TARGET.config))
    )
    costs, room = source(tensor=8)(three, 1)
    whole = declared(
        TARGET, CHIP, WORK, mesh_shape=ways(tensor=8), dtype="bfloat16", replicated=True
    )
    assert (costs, room) == whole(three, 1)
    assert whole(SMALL, 1)[1].needed > source(tensor=8)(SMALL, 1)[1].needed


def test_only_a_small_model_has_a_leaf_to_catch_up_with():
    head = PlannedDraft("head", eagle(replace(TARGET.config, num_hidden_layers=1)))
    assert source()(SMALL, 1)[0].pending == source()(SMALL, 1)[0].draft_level() > 0
    assert source()(head, 1)[0].pending == 0


def test_a_gpu_multiplies_float32_at_half_the_rate_and_a_tpu_at_the_same():
    def busy(name: str, dtype: str) -> float:
        chip = replace(ACCELERATORS[name], bandwidth=1e30, dispatch=0.0)
        return pass_ms(size_of(TARGET, dtype), chip, chips=1, batch=1, rows=64, context=0)

    assert busy("h100", "float32") == pytest.approx(2 * busy("h100", "bfloat16"))
    assert busy("v5e", "float32") == pytest.approx(busy("v5e", "bfloat16"))


def test_devices_that_are_advised_can_share_the_target():
    ways = [
        2**n for n in range(7) if divides({"data": 1, "fsdp": 1, "tensor": 2**n}, TARGET.config)
    ]
    assert most_tensor_devices(TARGET.config) == max(ways)
    assert most_tensor_devices(TARGET.config, (1, 3)) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_what_is_declared_and_what_is_compiled_are_counted_alike(dtype):
    size, rows = size_of(TARGET, dtype), 8
    sums, sent = 2 * size.layers, rows * size.width * size.bytes
    facts = ProgramFacts(
        seconds=0.0, read=size.read // 2, operations=rows * size.operations / 2, arguments=0,
        results=0, aliased=0, temporaries=0,
        collectives=(Collective("all-reduce", sums, sums * sent),),
    )  # fmt: skip
    ours = milliseconds(facts.demands, CHIP, layers=size.layers, reached=REACHED)
    theirs = pass_ms(size, CHIP, chips=2, batch=1, rows=rows, context=0)
    assert ours == pytest.approx(theirs)


def test_what_does_not_fit_here_is_refused_before_it_is_made(monkeypatch):
    monkeypatch.setattr(sources, "free_memory", lambda device: 10)
    monkeypatch.setattr(sources, "untrained", lambda *_: pytest.fail("made"))
    config = replace(
        TARGET.config, num_hidden_layers=1, hidden_size=256, intermediate_size=256, vocab_size=100
    )
    target = Checkpoint(transformer(config), {}, (), Path(), "")
    find = measuring(target, TextLengths(8, 8), temperature=0.0, dtype="float32", tick=str)
    draft = PlannedDraft("wide", transformer(read_shape("layers=1,width=256", config)))
    with pytest.raises(ValueError, match="^hardware='here': wide at batch 1 needs .* other hard"):
        find(draft, 1)


@pytest.mark.parametrize(
    ("room", "said"),
    [
        # 100 of weights, 10 a text: 20 texts are in 300.
        (
            MemoryFit(500, 300, "", 100, 40, bytes=2, devices=1),
            "take a batch of 20 or 2 such devices",
        ),
        (MemoryFit(500, 90, "", 100, 40, bytes=2, devices=4), "take 32 such devices"),
        (MemoryFit(500, 300, "", 400, 1, bytes=4, devices=2), "take bfloat16 or 4 such devices"),
        (MemoryFit(500, 300, "", 400, 1, bytes=2), "take other hardware"),
        # Of the 500 every device has 200: what is left of 300 holds 300 of 2 devices in 6.
        (MemoryFit(500, 300, "", 500, 1, bytes=2, devices=2, replicated=200), "take 8 such"),
        (
            MemoryFit(500, 300, "", 500, 1, bytes=2, devices=2, most=2),
            "take devices with more memory",
        ),
        (MemoryFit(500, 300, "", 500, 1, bytes=2, devices=2, replicated=300), "take devices with"),
    ],
)
def test_what_would_fit_is_said(room, said):
    assert not room.fits
    assert room.refusal().endswith(said) or said in room.refusal()
    assert f"({room.needed - room.available:,} bytes) more" in room.refusal()


def test_what_would_fit_fits():
    costs, room = source()(SMALL, 4096)
    assert not room.fits and costs.plain > 0
    batch = int(room.refusal().split("a batch of ")[1].split()[0])
    assert source()(SMALL, batch)[1].fits and not source()(SMALL, batch + 1)[1].fits
    more = int(room.refusal().split(" such devices")[0].split()[-1])
    assert source(data=more)(SMALL, 4096)[1].fits


def test_what_does_not_fit_is_ranked_last(monkeypatch):
    from jspec.plan.forecast import forecasts
    from jspec.tuning.acceptance import read_acceptance

    told = []
    for batch_of, name in ((1, "fits"), (1, "large")):
        (one,) = forecasts(
            name, 1, [batch_of], lambda batch: source()(SMALL, batch), read_acceptance("0.7")
        )
        told.append(one)
    fast = replace(told[1].best, tokens_per_second=10 * told[1].best.tokens_per_second)
    large = replace(told[1], best=fast, memory=replace(told[1].memory, available=10))
    assert [one.draft for one in ranking([large, told[0]])] == ["fits", "large"]
    assert isinstance(large, Forecast)


def test_a_target_without_a_tokenizer_is_held_against_a_draft_by_numbers(models, monkeypatch):
    monkeypatch.setattr(model_folders, "ZOO_MODELS", models)
    target = Checkpoint(transformer(SHAPES["opt-125m"]), {}, (), Path(), "")
    with pytest.raises(ValueError, match="^the target has no tokenizer, and the draft 'zoo:wide'"):
        load_draft("zoo:wide", target)
