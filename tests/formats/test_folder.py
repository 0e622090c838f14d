"""Files and folders that are written: whole at every moment, whoever else writes there."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec.formats import folder as files
from jspec.formats.folder import locked, replacing, write_json, writing
from jspec.formats.huggingface import load, save


def test_two_who_write_one_file_do_not_disturb_each_other(tmp_path):
    file = tmp_path / "records.json"
    with writing(file) as mine:
        mine.write_text("mine")
        with writing(file) as theirs:
            theirs.write_text("theirs")
        assert file.read_text() == "theirs"
    assert file.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["records.json"]


def test_a_write_that_fails_leaves_the_file_and_nothing_beside_it(tmp_path):
    file = tmp_path / "records.json"
    write_json(file, {"a": 1})
    with pytest.raises(KeyboardInterrupt), writing(file) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["records.json"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_model_is_exchanged_with_all_that_was_beside_it(exchanges, original, folder, monkeypatch):
    model, params, _ = original
    (folder / "notes" / "deep").mkdir(parents=True)
    (folder / "notes" / "deep" / "one.txt").write_text("mine")
    (folder / "README.md").write_text("mine too")
    (folder / "there").symlink_to("README.md")
    exchange, seen = files._exchange, []

    def watched(new: Path, old: Path) -> bool:
        # From the next moment on, either of the two is all that there is.
        for place in (new, old):
            assert (place / "notes" / "deep" / "one.txt").read_text() == "mine"
            assert (place / "there").read_text() == "mine too" and load(place)
        seen.append(new)
        return exchanges and exchange(new, old)

    monkeypatch.setattr(files, "_exchange", watched)
    save(folder, model, jax.tree.map(jnp.zeros_like, params))
    assert len(seen) == 1 and not np.any(load(folder).params["embedding"])
    assert (folder / "notes" / "deep" / "one.txt").read_text() == "mine"
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="exchanging folders is Linux's")
def test_two_folders_are_exchanged_at_once(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert files._exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "other").exists() and (tmp_path / "other" / "one").exists()


def test_what_a_killed_process_left_is_removed_and_what_another_is_writing_is_not(
    original, tmp_path
):
    model, params, _ = original
    name = tmp_path / "model[1]"  # which is no pattern
    left, others = (tmp_path / f".model[1].{x}.partial" for x in ("00000000", "11111111"))
    for place in (left, others):
        place.mkdir()
        (place / "model.safetensors").touch()
    with locked(others):
        save(name, model, params)
    assert load(name).model == model
    assert not left.exists() and (others / "model.safetensors").exists()


def test_a_folder_is_locked_against_other_processes_until_its_own_ends(tmp_path):
    program = (
        "import sys; from pathlib import Path; from jspec.formats.folder import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"in\n"
        with pytest.raises(BlockingIOError), locked(tmp_path):
            pass
        other.kill()
    with locked(tmp_path), pytest.raises(BlockingIOError), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_tokenizer_that_does_not_fit_on_the_disk_is_an_error_of_the_system(
    original, tmp_path, monkeypatch
):
    model, params, folder = original
    tokenizer = load(folder).tokenizer

    def full(*args, **how):
        raise Exception("No space left on device (os error 28)")  # noqa: TRY002

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="the tokenizer cannot be written .No space left on device"):
        save(tmp_path / "new", model, params, tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_leaves_what_was_there(tmp_path):
    file = tmp_path / "records.json"
    write_json(file, {"a": 1})
    said = f"^{file} is not written .*No space left on device.*: make room there, or"
    with pytest.raises(OSError, match=said), writing(file) as partial:
        partial.symlink_to("/dev/full")
        partial.write_text("b" * 100_000)
    assert file.read_text() == '{\n  "a": 1\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["records.json"]


def test_where_nothing_can_be_written_it_is_said_in_words(original, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/model is not written .*: make room there, or name a"):
        save(tmp_path / "file" / "model", *original[:2])


def test_of_two_who_write_one_new_model_the_later_one_is_there(tmp_path):
    def model(place: Path, text: str) -> None:
        for name in ("config.json", "model.safetensors"):
            (place / name).write_text(text)

    with replacing(tmp_path / "model") as mine:
        with replacing(tmp_path / "model") as theirs:
            model(theirs, "theirs")
        model(mine, "mine")
    assert (tmp_path / "model" / "config.json").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_is_written_into_is_not_there_before_it_is_whole(tmp_path):
    with replacing(tmp_path / "model") as partial:
        (partial / "config.json").touch()
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "config.json").exists()
