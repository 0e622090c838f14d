"""`jspec plan`, as a user meets it."""

import functools
import importlib.util
import json

import pytest

from jspec.cli.main import main
from jspec.core.tree import Tree
from jspec.plan import hardware, sources
from jspec.tuning.costs import measure_costs

ELSEWHERE = ["plan", "--target", "llama3.1-8b", "--hardware", "h100"]


def planned(capsys, *words: str) -> dict:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *words: str) -> str:
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert not said.out
    (line,) = [line for line in said.err.splitlines() if line.startswith("jspec: ")]
    return line


def test_drafts_of_every_kind_are_ranked_for_a_machine_that_is_not_here(capsys):
    drafts = ["llama3.2-1b", "eagle3", "layers=2,width=2048"]
    found = planned(capsys, *ELSEWHERE, "--drafts", *drafts, "--batch", "1", "8")
    assert [one["batch"] for one in found["drafts"]] == [1] * 3 + [8] * 3
    for batch in (1, 8):
        here = [one for one in found["drafts"] if one["batch"] == batch]
        assert {one["draft"] for one in here} == set(drafts)
        speeds = [one["best"]["tokens_per_second"] for one in here]
        assert speeds == sorted(speeds, reverse=True)
        for one in here:
            low, high = one["best"]["speedup_interval"]
            assert low < one["best"]["speedup"] < high
            assert one["acceptance_source"].startswith("assumed: 0.7")
            assert one["costs"]["source"].startswith("declared")
            assert one["fits"] and one["bottleneck"]
        # As often kept, the slower draft needs more to be as fast as the first.
        needed = [one["needed_acceptance"] for one in here[1:]]
        assert all(rate > 0.7 for rate in needed) and needed == sorted(needed)


def test_what_is_said_of_acceptance_is_used_and_named(capsys):
    def speed(*said: str) -> float:
        found = planned(capsys, *ELSEWHERE, "--drafts", "llama3.2-1b", *said)["drafts"][0]
        assert ("stated" in found["acceptance_source"]) == bool(said)
        return found["best"]["speedup"]

    assert speed("--acceptance", "0.9") > speed() > speed("--acceptance", "0.9,0.1")


def test_more_chips_and_fewer_bytes_are_faster_and_fit_more(capsys):
    def first(*words: str) -> dict:
        return planned(capsys, *words, "--drafts", "llama3.2-1b")["drafts"][0]

    one, eight = first(*ELSEWHERE), first(*ELSEWHERE[:-1], "h100:8")
    assert eight["plain_ms"] < one["plain_ms"]
    assert eight["memory"]["needed"] < one["memory"]["needed"]
    full = first(*ELSEWHERE, "--dtype", "float32")
    assert full["memory"]["needed"] == pytest.approx(2 * one["memory"]["needed"], rel=0.01)


def test_the_batch_up_to_which_it_pays_is_told(capsys):
    """Short texts leave a pass to its weights, until there are as many rows as a chip computes."""
    words = [*ELSEWHERE, "--drafts", "eagle3", "--context", "64"]
    one = planned(capsys, *words)["drafts"][0]
    assert 16 < one["pays_up_to_batch"] < max(one["batches_considered"])
    beyond = planned(capsys, *words, "--batch", str(2 * one["pays_up_to_batch"]))["drafts"][0]
    assert beyond["best"]["speedup"] <= 1


def test_a_search_ranks_shapes_within_its_budget_and_draws_them(capsys, tmp_path):
    picture = tmp_path / "new" / "plan.png"
    words = ["--drafts", "llama3.2-1b", "--search", "--parameters", "800M", "--latency", "0.9"]
    found = planned(capsys, *ELSEWHERE, *words, "--picture", str(picture))
    shapes = [one for one in found["drafts"] if one["draft"].startswith("layers=")]
    assert len(shapes) > 2
    for one in shapes:
        assert one["parameters"] <= 800_000_000 and one["draft_level_ms"] <= 0.9
    assert found["pictures"] == [str(picture)] and picture.stat().st_size > 10_000


def test_this_machine_is_measured(capsys, small_zoo, monkeypatch):
    few = functools.partial(measure_costs, probes=(Tree.chain(1), Tree.chain(3)))
    monkeypatch.setattr(sources, "measure_costs", few)
    found = planned(
        capsys, "plan", "--drafts", "zoo:wide", "layers=1,width=16,channels=8", "--context", "48"
    )
    trained, imagined = sorted(found["drafts"], key=lambda one: one["draft"] != "zoo:wide")
    assert trained["acceptance_source"].startswith("measured on")
    assert imagined["acceptance_source"].startswith("assumed")
    for one in found["drafts"]:
        assert one["costs"]["source"] == "measured" and one["plain_ms"] > 0


def test_people_read_what_bounds_a_draft(capsys):
    assert main([*ELSEWHERE, "--drafts", "llama3.2-1b"]) == 0
    said = capsys.readouterr().err
    assert "llama3.2-1b, batch 1: pays; bound by " in said
    assert "acceptance assumed: 0.7 at every depth" in said and "costs declared" in said


@pytest.mark.slow
def test_within_milliseconds_alone_the_largest_shapes_are_found(capsys):
    words = [*ELSEWHERE, "--drafts", "llama3.2-1b", "--search", "--latency", "0.4"]
    found = [one for one in planned(capsys, *words)["drafts"] if "layers=" in one["draft"]]
    assert len(found) > 2
    # All of them use the time that there is, and none takes more.
    assert all(0.3 < one["draft_level_ms"] <= 0.4 for one in found)


def test_of_a_model_that_the_hub_has_its_config_is_all_that_is_fetched(
    capsys, tmp_path, monkeypatch
):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def fetch(name: str, file: str) -> str:
        asked.append((name, file))
        said = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
                "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 4, "vocab_size": 128256, "rms_norm_eps": 1e-5,
                "max_position_embeddings": 131072, "rope_theta": 500000.0}  # fmt: skip
        (tmp_path / file).write_text(json.dumps(said))
        return str(tmp_path / file)

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("weights"))
    (found,) = planned(capsys, *ELSEWHERE, "--drafts", "somebody/small")["drafts"]
    assert asked == [("somebody/small", "config.json")] and found["fits"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--hardware", "h100:16"), "hardware='h100:16': 16 do not divide the heads"),
        (("--hardware", "abacus"), "hardware='abacus' is not known: here, v4"),
        (("--hardware", "h100:many"), "hardware='h100:many': write a number"),
        (("--hardware", "h100:²"), "hardware='h100:²': write a number"),
        (("--hardware", "h100:2x2"), "is no TPU slice: there are v4:2x2x1"),
        (("--hardware", "v5e:2x2x2"), "slices of v5e are written as 2x4 is"),
        (("--hardware", "h100:8", "--mesh", "tensor=4"), "mesh='tensor=4'"),
        (("--drafts", "llama-68m"), "has a vocabulary of 32000, and the target one of 128256"),
        (("--drafts", "nobody/knows"), "shapes known by name are llama-65b"),
        (("--drafts", "layers=0"), "layers must lie in 1..1,000"),
        (("--acceptance", "nan"), "must lie between 0 and 1"),
        (("--acceptance", "measured"), "llama3.1-8b is a shape without weights"),
        (("--parameters", "800M"), "add --search"),
        (("--drafts", "eagle3", "eagle3"), "give each once"),
        (("--latency", "0.5"), "add --search"),
        (("--batch", "0"), "batch=0: must be at least 1"),
        (("--batch", "1", "1"), "each once"),
        (("--context", "1"), "context=1"),
        (("--context", "900000"), "the target has one of 131072"),
        (("--search",), "search has no budget"),
        (("--search", "--parameters", "9"), "no shape is within both"),
        (("--search", "--latency", "1", "--hardware", "here"), "here every shape would have to"),
        (
            ("--target", "zoo:target", "--drafts", "zoo:fspad"),
            "'zoo:fspad': it is a head, of which",
        ),
        (("--picture", "plan.jpg"), "name a file that ends in .png"),
        (("--temperature", "-1"), "temperature"),
    ],
)
def test_bad_input_is_one_line(words, said, capsys):
    line = refused(
        capsys, *ELSEWHERE, *({} if "--drafts" in words else ("--drafts", "llama3.2-1b")), *words
    )
    assert said in line


def test_what_cannot_be_measured_is_said_before_anything_is(capsys):
    line = refused(
        capsys, "plan", "--acceptance", "measured", "--drafts", "zoo:distilled", "layers=1"
    )
    assert line.startswith("jspec: acceptance='measured': layers=1 was never trained")


def test_a_batch_that_is_asked_for_is_thought_of(capsys):
    words = (*ELSEWHERE, "--drafts", "eagle3", "--batch", "3")
    (found,) = planned(capsys, *words)["drafts"]
    assert 3 in found["batches_considered"]


def test_what_does_not_fit_says_by_how_much_and_what_would(capsys):
    words = ["plan", "--target", "llama3.1-70b", "--drafts", "llama3.2-1b", "--hardware", "h100"]
    line = refused(capsys, *words)
    assert "GB of each device" in line and "bytes) more than there are: take" in line
    assert planned(capsys, *words[:-1], "h100:4")["drafts"][0]["fits"]


def test_what_installs_the_compiler_is_named_where_it_is_missing(capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        hardware.importlib.util,
        "find_spec",
        lambda name: None if name == "libtpu" else found(name),
    )
    line = refused(capsys, *ELSEWHERE[:-1], "v5e:2x4", "--drafts", "llama3.2-1b")
    assert "pip install 'jspec[tpu]'" in line and "v5e:8 is planned" in line
