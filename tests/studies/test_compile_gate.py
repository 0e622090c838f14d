"""The gate as a study: every launch once, what is refused, and what a person reads of it."""

import json

import jax
import pytest

from jspec.cli.main import main
from jspec.config import ModelConfig
from jspec.plan import shapes
from jspec.plan.gate import ProgramCheck
from jspec.studies.compile_gate import measure as study_of_gates
from jspec.studies.compile_gate import report
from jspec.studies.compile_gate.measure import compilers
from jspec.studies.compile_gate.recipe import PAIRS, CompileGateStudy, Launch

SMALL = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=8,
    max_position_embeddings=256,
)
LAUNCHES = ("small/small/v5e:2x4/data=2,tensor=4", "small/eagle/v5e:2x4/tensor=8")
PROGRAMS = ["prefill", "refill", "insert", "round", "commit", "generation", "step"]
FINE = ProgramCheck("round", 2.0, 10**9, 100, 100, 1.01, 3, "")


@pytest.fixture
def small(monkeypatch):
    """A target that compiles in no time, for a slice whose chips are this test's devices."""
    monkeypatch.setitem(shapes.SHAPES, "small", SMALL)
    monkeypatch.setattr(study_of_gates, "devices_of", lambda hardware: jax.devices())


def words(tmp_path, *more: str) -> list[str]:
    sizes = ("prompt_length=64", "max_new_tokens=32", "length=64", "rows=1")
    return ["study", "--json", "compile-gate", f"output={tmp_path}", *sizes, *more]


def test_every_launch_is_taken_through_once(small, tmp_path, capsys, monkeypatch):
    asked = words(tmp_path, f"launches={LAUNCHES[0]}")
    code = main(asked)
    said = json.loads(capsys.readouterr().out)["findings"]
    folder = tmp_path / "compile_gate"
    (cell,) = json.loads((folder / "results.json").read_text())["launches"]
    names = [one["program"] for one in cell["programs"]]
    assert names == PROGRAMS
    # What is compiled here and not for a TPU may read more; nothing else is wrong.
    wrong = [one["problem"] for one in cell["programs"] if one["problem"]]
    assert all("reads" in one for one in wrong) and cell["passed"] == (not wrong)
    assert said[0] == f"{int(not wrong)} of 1 launches pass." and code == bool(wrong)
    assert cell["versions"] == compilers() and cell["date"].startswith("2")
    assert "| small | small | v5e:2x4 | data=2,tensor=4 |" in (folder / "report.md").read_text()
    monkeypatch.setattr(study_of_gates, "check_launch", lambda *_, **__: pytest.fail("again"))
    monkeypatch.setattr(study_of_gates, "compilers", lambda: "others")
    assert main(asked) == code
    # What was compiled before is told as what it is.
    assert compilers() in (folder / "report.md").read_text()


def test_a_mesh_that_cuts_no_heads_is_refused_by_name(small, tmp_path, capsys):
    assert main(words(tmp_path, f"launches={LAUNCHES[1]}")) == 2
    assert "mesh tensor=8 does not divide num_key_value_heads=4" in capsys.readouterr().err


def test_what_xla_refuses_is_kept_and_told(small, tmp_path, capsys, monkeypatch):
    def refusing(*_, **__):
        yield FINE
        raise RuntimeError("RESOURCE_EXHAUSTED: of memory\nthere is none")

    monkeypatch.setattr(study_of_gates, "check_launch", refusing)
    assert main(words(tmp_path, f"launches={LAUNCHES[0]}")) == 1
    count, why = json.loads(capsys.readouterr().out)["findings"]
    assert count == "0 of 1 launches pass."
    assert why == f"{LAUNCHES[0]}: RESOURCE_EXHAUSTED: of memory there is none"


def test_what_is_wrong_is_told_beside_what_passes(tmp_path):
    cell = Launch("small", "small", "v5e:2x4", "tensor=8")
    wrong = ProgramCheck("commit", 1.0, 5, 9, 0, None, 2, "devices exchange 2 times")
    recipe = CompileGateStudy(output=str(tmp_path))
    recipe.folder.mkdir(parents=True)
    made = {**cell._asdict(), "refused": "", "versions": "jax 1", "date": "2026-01-01"}
    found = [
        {**made, "passed": one == FINE, "programs": [FINE.record(), one.record()]}
        for one in (FINE, wrong)
    ]
    said = report.CompileGateReport.write(recipe, found)
    assert report.passed(found[:1]) and not report.passed(found)
    assert said[0] == "1 of 2 launches pass."
    assert said[1].endswith("commit devices exchange 2 times")


def test_all_that_is_asked_for_is_taken_through():
    """Every target with its drafts, on slices of three kinds, of 1 to 256 chips."""
    launches = CompileGateStudy().read_launches()
    assert {one.target for one in launches} == set(PAIRS)
    for target in PAIRS:
        here = [one for one in launches if one.target == target]
        assert {one.hardware.partition(":")[0] for one in here} == {"v5e", "v6e", "v5p"}
        assert {one.draft for one in here} == set(PAIRS[target][0])
        assert any(one.hardware in ("v5e:16x16", "v5p:4x8x8") for one in here)


@pytest.mark.parametrize(
    ("launches", "said"),
    [
        (("llama3.1-8b/eagle/v5e:2x4",), "^launches='llama3.1-8b/eagle/v5e:2x4': write target"),
        (("nobody/eagle/v5e:2x4/tensor=8",), "^launches='nobody"),
        (("llama3.1-8b/eagle/v9:2x4/tensor=8",), "^hardware='v9:2x4' is no TPU slice"),
        ((), "^launches="),
    ],
)
def test_a_launch_that_cannot_be_is_refused(launches, said):
    with pytest.raises(ValueError, match=said):
        CompileGateStudy(launches=launches)
    with pytest.raises(
        ValueError, match="^prompt_length=100: prompts are padded to a multiple of 64"
    ):
        CompileGateStudy(prompt_length=100)
