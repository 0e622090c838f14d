"""Heads at the command line: as drafts, and on their way from folder to folder."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import PROMPT, TOKENS, plain, refused, run
from references import assert_same, edit, rewrite
from safetensors.numpy import load_file

from jspec import load, load_head, save_head
from jspec.bench import peers
from jspec.formats.head_layout import Serving
from jspec.models.eagle3 import eagle3
from jspec.models.heads import eagle, fspad

pytestmark = pytest.mark.usefixtures("small_zoo")
HEADS = {"eagle": eagle, "fspad": fspad}
EAGLE3 = ("eagle3", "speculators")
# Of the tokens that EAGLE-3's have.
D2T = jnp.arange(0, 320, 8, dtype=jnp.int32) - jnp.arange(40)


@pytest.fixture(scope="module")
def heads(models, tmp_path_factory) -> Path:
    """A folder of random heads for the zoo's target."""
    target = load(models / "target")
    place = tmp_path_factory.mktemp("heads")
    for name, make in HEADS.items():
        head = make(dataclasses.replace(target.model.config, num_hidden_layers=1))
        own = head.init(jax.random.key(4))
        save_head(place / name, head, own, embedding=target.params["embedding"])
    for format in EAGLE3:
        config = dataclasses.replace(target.model.config, num_hidden_layers=1)
        head = eagle3(config, layers=(1, 0, 2), draft_vocab_size=len(D2T), norm_output=True)
        asked = {"d2t": D2T, "embedding": target.params["embedding"], "format": format}
        own = head.init(jax.random.key(4))
        save_head(place / format, head, own, serving=Serving("t", ("Any",)), **asked)
    return place


@pytest.fixture
def head(heads, tmp_path) -> Path:
    """One of them, to be damaged."""
    return shutil.copytree(heads / "eagle", tmp_path / "head")


@pytest.mark.parametrize(
    ("name", "sampling", "how"),
    [
        ("eagle", {"temperature": 0.0}, ()),
        ("eagle", {"temperature": 0.8}, ()),
        ("fspad", {"temperature": 0.8}, ("--mesh", "fsdp=4", "data=2", "--replicate-draft")),
        ("eagle3", {"temperature": 0.0}, ()),
        pytest.param(
            "speculators",
            {"temperature": 0.8},
            ("--mesh", "fsdp=4", "data=2"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_text_is_plain_decodings_with_a_head_too(models, heads, capsys, name, sampling, how):
    asked = (
        "--prompt",
        PROMPT,
        "--ignore-eos",
        "--json",
        "--seed",
        "7",
        "--max-new-tokens",
        str(TOKENS),
    )
    options = (
        "--tree",
        "chain:1",
        "--draft",
        str(heads / name),
        "--temperature",
        str(sampling["temperature"]),
    )
    code, out, _ = run(capsys, "generate", *asked, *options, *how)
    record = json.loads(out)
    assert code == 0
    assert record["token_ids"] == plain(models / "target", **sampling)
    assert len(record["accepted_by_position"]) == 1


@pytest.mark.slow
def test_a_prompt_beyond_what_a_head_was_made_for_is_told(head, capsys):
    rewrite(head / "config.json", max_position_embeddings=40)
    asked = ("--prompt", PROMPT, "--ignore-eos", "--draft", str(head), "--max-new-tokens")
    for tokens, told in ((str(TOKENS), True), ("20", False)):
        code, _, err = run(capsys, "generate", *asked, tokens)
        assert code == 0
        assert ("40 tokens, and the target for 320" in err) == told


@pytest.mark.parametrize("name", ["fspad", pytest.param("eagle3", marks=pytest.mark.slow)])
def test_verify_examines_a_head(heads, capsys, name):
    short = (
        "--prompts",
        "1",
        "--prompt-length",
        "24",
        "--max-new-tokens",
        "40",
        "--temperatures",
        "0",
    )
    code, out, _ = run(capsys, "verify", "--json", "--draft", str(heads / name), *short)
    found = json.loads(out)
    beyond = [cause for cause in found["causes"] if cause.startswith("vocabulary: ")]
    assert bool(beyond) == (name == "eagle3")
    assert code == 0 and found["temperatures"][0]["passed"]
    assert found["health"]["draft_loss"] > 0
    causes = [cause.partition(":")[0] for cause in found["causes"]]
    assert causes[-1] == "training" and "tokenizer" not in causes


@pytest.mark.parametrize("verb", ["import", "export"])
def test_a_head_goes_from_folder_to_folder_bit_for_bit(models, heads, capsys, tmp_path, verb):
    asked = (str(heads / "fspad"), str(tmp_path / "out"), "--target", "zoo:target", "--json")
    code, out, _ = run(capsys, verb, *asked, "--dtype", "float32")
    record, target = json.loads(out), load(models / "target")
    ours, theirs = (
        load_head(place, target.model, target.params)
        for place in (heads / "fspad", tmp_path / "out")
    )
    assert (code, record["family"], record["target"]) == (0, "eagle", "zoo:target")
    assert record["kind"] == "fspad"
    assert record["parameters"] == sum(x.size for x in jax.tree.leaves(ours.params))
    assert theirs.head == ours.head
    assert_same(theirs.params, ours.params)
    embedding = load_file(tmp_path / "out" / "model.safetensors")["embed_tokens.weight"]
    np.testing.assert_array_equal(embedding, target.params["embedding"])


def test_numbers_that_are_not_finite_are_not_passed_on(head, capsys, tmp_path):
    edit(head, lambda tensors: tensors["fc.weight"].__setitem__((0, 0), np.nan))
    made = str(tmp_path / "out"), "--target", "zoo:target"
    assert "fuse.weight holds numbers that are not finite" in refused(
        capsys, "import", str(head), *made
    )
    assert not (tmp_path / "out").exists()


def test_a_head_of_eagle3_goes_from_layout_to_layout_bit_for_bit(models, heads, capsys, tmp_path):
    target = load(models / "target")
    asked = ("--target", "zoo:target", "--json", "--dtype", "float32")
    for verb, source, format, more in (
        ("import", heads / "eagle3", "speculators", ("--speculative-tokens", "4")),
        ("export", tmp_path / "speculators", "eagle3", ()),
    ):
        place = (str(source), str(tmp_path / format), "--format", format)
        code, out, _ = run(capsys, verb, *place, *asked, *more)
        assert (code, json.loads(out)["family"]) == (0, format)
    ours, theirs = (
        load_head(place / "eagle3", target.model, target.params) for place in (heads, tmp_path)
    )
    assert theirs.head == ours.head
    assert_same((theirs.params, theirs.d2t), (ours.params, ours.d2t))
    config = json.loads((tmp_path / "speculators" / "config.json").read_text())
    served = config["speculators_config"]
    assert served["proposal_methods"][0]["speculative_tokens"] == 4
    # A name that a server finds, whatever it was called here.
    assert served["verifier"] == {
        "name_or_path": str(models / "target"), "architectures": ["LlamaForCausalLM"]
    }  # fmt: skip


def damaged(change):
    return lambda head: edit(head, change)


def pickled(head):
    (head / "model.safetensors").rename(head / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda h: rewrite(h / "config.json", hidden_size=32), "hidden_size=32, and the target's"),
        (lambda h: rewrite(h / "config.json", vocab_size=9), "vocab_size=9, and the target's is"),
        (damaged(lambda t: t.update({"x": np.ones(3, np.float32)})), "unexpected x [3]"),
        (damaged(lambda t: t.pop("fc.weight")), "missing fc.weight [16, 32]"),
        (
            damaged(lambda t: t.update({"fc.weight": np.ones((16, 48), np.float32)})),
            "fc.weight should be [16, 32], is [16, 48]",
        ),
        (
            damaged(lambda t: t.update({"embed_tokens.weight": 2 * t["embed_tokens.weight"]})),
            "made for another target",
        ),
        (
            damaged(lambda t: t.update({"midlayer.hidden_norm.weight": np.ones(16, np.float32)})),
            "eagle_aux_hidden_state_layer_ids is missing, and a target of 2 layers has no usual",
        ),
        (pickled, "run: python -c"),
    ],
)
def test_a_head_that_does_not_fit_is_one_line(head, capsys, tmp_path, damage, said):
    damage(head)
    spoken = refused(capsys, "generate", "--prompt", "x", "--draft", str(head))
    assert f"draft='{head}'" in spoken and said in spoken
    out = str(tmp_path / "out")
    spoken = refused(capsys, "import", str(head), out, "--target", "zoo:target")
    assert f"source='{head}'" in spoken and said in spoken
    assert not (tmp_path / "out").exists()


def test_heads_and_models_are_not_taken_for_each_other(models, head, capsys, tmp_path):
    model, out = str(models / "target"), str(tmp_path / "out")
    plain_text = ("generate", "--prompt", "x", "--plain")
    assert "no whole model" in refused(capsys, *plain_text, "--target", str(head))
    said = refused(capsys, "import", str(head), out)
    assert "target: " in said and "name the model" in said
    for_target = ("--target", "zoo:target")
    said = refused(capsys, "import", str(head), out, "--format", "hf", *for_target)
    assert "format='hf'" in said and "eagle" in said
    said = refused(capsys, "export", model, out, "--format", "eagle")
    assert "format='eagle'" in said and "whole model" in said
    assert "leave it out" in refused(capsys, "export", "target", out, *for_target)
    said = refused(capsys, "export", str(head), out, "--format", "speculators", *for_target)
    assert "format='speculators' holds heads of EAGLE-3, and this is one of EAGLE or FSPAD" in said
    said = refused(capsys, "import", str(head), out, "--speculative-tokens", "3", *for_target)
    assert "speculative_tokens=3: format='eagle' does not say it" in said
    said = refused(capsys, "import", str(head), out, "--target", str(head))
    assert f"target='{head}'" in said and "no whole model" in said
    assert not (tmp_path / "out").exists()


def test_a_format_is_hf_where_a_model_is_asked_for(models, capsys, tmp_path):
    code, _, _ = run(capsys, "export", "wide", str(tmp_path / "out"), "--format", "hf")
    assert code == 0
    assert_same(load(tmp_path / "out").params, load(models / "wide").params)


def test_a_head_of_eagle3_is_not_written_as_another(heads, capsys, tmp_path):
    asked = (str(heads / "eagle3"), str(tmp_path / "out"), "--target", "zoo:target")
    said = refused(capsys, "export", *asked, "--format", "eagle")
    assert "format='eagle' holds heads of EAGLE or FSPAD" in said
    assert "take eagle3 or speculators" in said


@pytest.mark.slow
def test_bench_takes_a_head_beside_a_model_and_only_models_assist_transformers(
    heads, capsys, monkeypatch
):
    pytest.importorskip("torch")
    monkeypatch.setattr(peers, "THREADS", (1,))
    head, other = str(heads / "eagle"), str(heads / "eagle3")
    code, out, _ = run(
        capsys, "bench", "--drafts", head, other, "zoo:wide", "--trees", "chain:1", "--lookups",
        "--temperatures", "0", "--prompts", "1", "--prompt-length", "8", "--max-new-tokens", "6",
        "--repetitions", "1", "--json", "--against-transformers",
    )  # fmt: skip
    rows = {row["method"]: row for row in json.loads(out)["results"]}
    assert code == 0
    assert all(rows[f"{name} chain:1"]["identical"] for name in (head, other, "zoo:wide"))
    assert [name for name in rows if name.startswith(peers.ASSISTED)] == [
        peers.label(f"{peers.ASSISTED} zoo:wide", 1)
    ]
