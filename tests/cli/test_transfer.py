"""Models into folders, by command: `jspec export` and `jspec import`."""

import json
import shutil

import jax
import numpy as np
import pytest
from commands import refused, run
from references import make_reference
from safetensors.numpy import load_file, save_file

from jspec.formats.huggingface import load

pytestmark = pytest.mark.usefixtures("small_zoo")


def test_export_writes_a_folder_that_loads_to_the_same_model(models, capsys, tmp_path):
    code, out, _ = run(capsys, "export", "wide", str(tmp_path / "out"), "--json")
    record = json.loads(out)
    ours, theirs = load(models / "wide"), load(tmp_path / "out")
    assert (code, record["source"]) == (0, "zoo:wide")
    assert record["parameters"] == sum(x.size for x in jax.tree.leaves(ours.params))
    assert theirs.stop_token_ids == ours.stop_token_ids and theirs.model == ours.model
    assert theirs.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
    jax.tree.map(np.testing.assert_array_equal, theirs.params, ours.params)


def test_export_refuses_what_is_no_model_folder_and_leaves_it_alone(capsys, tmp_path):
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("years of work")
    assert "no model" in refused(capsys, "export", "target", str(tmp_path / "papers"))
    assert "is a file" in refused(
        capsys, "export", "target", str(tmp_path / "papers" / "thesis.tex")
    )
    assert [file.name for file in tmp_path.rglob("*")] == ["papers", "thesis.tex"]


@pytest.mark.parametrize("kind", ["mistral", "qwen3", "gemma2", "opt"])
def test_import_keeps_a_model_of_another_family_as_what_it_is(capsys, tmp_path, kind):
    make_reference(kind).save_pretrained(tmp_path / "theirs")
    asked = (str(tmp_path / "theirs"), str(tmp_path / "ours"), "--dtype", "float32", "--json")
    code, out, _ = run(capsys, "import", *asked)
    theirs, ours = load(tmp_path / "theirs"), load(tmp_path / "ours")
    assert (code, json.loads(out)["family"]) == (0, kind)
    assert (ours.model, ours.family) == (theirs.model, theirs.family)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_import_and_export_keep_what_is_said_of_generating(models, capsys, tmp_path):
    theirs = shutil.copytree(models / "wide", tmp_path / "theirs")
    said = {"do_sample": True, "temperature": 0.6, "bos_token_id": 7, "pad_token_id": 5}
    (theirs / "generation_config.json").write_text(json.dumps({**said, "eos_token_id": [0, 3]}))
    for verb, source in (("import", theirs), ("export", tmp_path / "import")):
        code, _, _ = run(capsys, verb, str(source), str(tmp_path / verb), "--json")
        written = json.loads((tmp_path / verb / "generation_config.json").read_text())
        assert code == 0 and written == {**said, "eos_token_id": [0, 3]}
        config = json.loads((tmp_path / verb / "config.json").read_text())
        assert (config["bos_token_id"], config["pad_token_id"]) == (7, 5)


def test_import_refuses_a_key_that_is_not_understood_and_writes_nothing(capsys, tmp_path):
    make_reference("llama1").save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    save_file({**load_file(file), "adapter.weight": np.ones(3, np.float32)}, file)
    said = refused(capsys, "import", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert "unexpected adapter.weight [3]" in said
    assert not (tmp_path / "ours").exists()
