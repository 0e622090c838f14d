"""Tokenizers in the files that models were published with."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import tokenizers
from huggingface_hub.utils import filter_repo_objects

from jspec.formats.folder import read_json, write_json
from jspec.formats.huggingface import load
from jspec.formats.tokenizer import read_tokenizer

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


CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend", "LlamaTokenizerFast", "LlamaTokenizer")


@pytest.mark.parametrize("kind", [*CLASSES, "Qwen2TokenizerFast", "GemmaTokenizer"])
@pytest.mark.parametrize("begins", [True, False])
def test_a_text_begins_as_tokenizer_json_says_whatever_the_rest_of_the_folder_asks(
    kind, begins, models, tmp_path
):
    """Whatever the release of transformers: its own classes add tokens, or do not."""
    whole = tokenizers.Tokenizer.from_file(str(models / "target" / "tokenizer.json"))
    ids = whole.encode(TEXT).ids
    if begins:
        whole.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    whole.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    named = {"tokenizer_class": kind, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    flags = [{}, *({f"add_{end}_token": x} for end in ("bos", "eos") for x in (True, False))]
    for flag in flags:
        write_json(tmp_path / "tokenizer_config.json", {**named, **flag})
        assert read_tokenizer(tmp_path)(TEXT)["input_ids"] == [0] * begins + ids


@pytest.mark.parametrize("kind", ["LlamaTokenizer", "LlamaTokenizerFast"])
@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("asked", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_llama_s_older_files_begin_a_text_as_their_settings_say(kind, model_type, asked, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    (tmp_path / "corpus.txt").write_text("ab a b ab.\nthe cat sat: a b\n" * 40)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "corpus.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=280,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
    )
    named = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(tmp_path / "config.json", {"model_type": model_type})
    write_json(tmp_path / "tokenizer_config.json", {**named, **asked})
    ids = read_tokenizer(tmp_path)("ab a b")["input_ids"]
    assert (ids[0] == 1) == asked.get("add_bos_token", False) and ids[-1] != 2
