"""Tokenizers in the files that models were published with."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from jspec.formats.folder import read_json, write_json
from jspec.formats.huggingface import load

TEXT = "def add(left, right):\n    return  right . left\n"


@pytest.fixture
def published(models, tmp_path) -> Path:
    """The target in OPT's layout: a vocabulary and merges, and no tokenizer.json."""
    folder = shutil.copytree(models / "target", tmp_path / "published")
    model = read_json(folder / "tokenizer.json")["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    lines = ["#version: 0.2", *map(" ".join, model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    settings = {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<|endoftext|>"}
    write_json(folder / "tokenizer_config.json", settings)
    return folder


def test_a_vocabulary_with_its_merges_is_a_tokenizer(models, published):
    ours, theirs = load(models / "target").tokenizer, load(published).tokenizer
    assert theirs(TEXT)["input_ids"] == ours(TEXT)["input_ids"]
    assert theirs.decode(theirs(TEXT)["input_ids"]) == TEXT
    (published / "merges.txt").unlink()
    assert load(published).tokenizer is None


def test_the_hub_is_asked_for_all_files_of_a_tokenizer(published, tmp_path, monkeypatch):
    def download(name: str, **patterns: list[str]) -> Path:
        folder = tmp_path / "downloaded"
        folder.mkdir()
        files = [file.name for file in published.iterdir()]
        for file in filter_repo_objects(files, **patterns):
            shutil.copy(published / file, folder / file)
        return folder

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    tokenizer = load("somebody/opt").tokenizer
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT


def test_spaces_are_decoded_as_they_are(models, published):
    settings = read_json(published / "tokenizer_config.json")
    settings["clean_up_tokenization_spaces"] = True
    write_json(published / "tokenizer_config.json", settings)
    assert not load(published).tokenizer.clean_up_tokenization_spaces
