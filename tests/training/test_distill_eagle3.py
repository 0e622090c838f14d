"""`jspec distill` of heads of EAGLE-3: which tokens they have, and where these are kept."""

import json
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from commands import distil, distil_refused
from references import assert_same, rewrite
from safetensors.numpy import load_file

from jspec import load, load_head
from jspec.cli.main import main
from jspec.training.data import Document
from jspec.training.vocabulary import most_frequent, read_table, write_table

TOKENS = 40
CONFIG = """
from jspec.training.recipe import Distillation, FeatureHead, TeacherData, Text


def config() -> Distillation:
    return Distillation(
        name="run", target="zoo:target", output={output!r},
        head=FeatureHead(
            kind="eagle3", layers=(0, 2), draft_vocab_size=40, feature_weight=0.0,
            logits_weight=1.0, feature_noise=0.0, ttt_steps=2
        ),
        text=Text(source={source!r}, held_out=0.3),
        teacher_data=TeacherData(weight=0.0, prompt_length=4),
        sequence_length=32, batch_size=4, chunk_size=16, steps=4, warmup_steps=1,
        evaluate_every=4, save_every=2, keep=9,
        temperatures="0", tree="chain:1", prompts=2, max_new_tokens=8,
    )
"""
ONE, OTHER = ("def", "add", "left"), ("return", "right", "left")


@pytest.fixture(autouse=True)
def small(small_zoo):
    """Commands take the tiny zoo."""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Where two texts are, of different words, and two configs that learn them, of one run."""
    folder = tmp_path_factory.mktemp("eagle3")
    for name, words in (("one", ONE), ("other", OTHER)):
        rng = np.random.default_rng(0)
        lines = [json.dumps({"text": " ".join(rng.choice(words, 30))}) for _ in range(20)]
        source = folder / f"{name}.jsonl"
        source.write_text("\n".join(lines))
        config = CONFIG.format(output=str(folder / "runs"), source=str(source))
        (folder / f"{name}.py").write_text(config)
    return folder


@pytest.fixture
def run(place, capsys, tmp_path) -> Path:
    """The folder of a run that went on once, with other texts than it began with; to be damaged."""
    whole = place / "runs" / "run"
    if not (whole / "model").is_dir():
        distil(capsys, place / "one.py", "steps=2")
        begun = (whole / "vocabulary.safetensors").read_bytes()
        distil(capsys, place / "other.py")
        assert (whole / "vocabulary.safetensors").read_bytes() == begun
    return shutil.copytree(whole, tmp_path / "run")


def read(folder, models):
    target = load(models / "target")
    return load_head(folder, target.model, target.params)


def documents(*texts):
    return [Document(np.array(text), np.ones(len(text)), 1.0) for text in texts]


def test_the_most_frequent_tokens_are_taken_and_of_the_rest_the_lowest():
    texts = [np.random.default_rng(seed).integers(0, 30, 50 + seed) ** 2 % 61 for seed in range(3)]
    counts = Counter(np.concatenate(texts).tolist())
    order = sorted(range(61), key=lambda token: (token not in (7, 60), -counts[token], token))
    for count in (2, 5, 30, 61):
        d2t = most_frequent(documents(*texts), count, vocabulary=61, always=(7, 60, 7))
        np.testing.assert_array_equal(d2t + np.arange(count), sorted(order[:count]))
    d2t = most_frequent(documents([1999]), 500, vocabulary=2000, always=())
    np.testing.assert_array_equal(d2t + np.arange(500), [*range(499), 1999])


def test_counts_do_not_depend_on_how_many_texts_are_read_at_a_time(monkeypatch):
    texts = documents(*([n % 7, n % 3, 5] for n in range(50)))
    wanted = most_frequent(texts, 4, vocabulary=9, always=())
    monkeypatch.setattr("jspec.training.vocabulary.COUNTED", 8)
    np.testing.assert_array_equal(most_frequent(texts, 4, vocabulary=9, always=()), wanted)


@pytest.mark.parametrize("count", [1, 10])
def test_more_tokens_than_there_are_or_fewer_than_must_be_are_refused(count):
    with pytest.raises(
        ValueError, match=f"^head.draft_vocab_size={count}: the target has 9 tokens, of which 2 end"
    ):
        most_frequent(documents([1]), count, vocabulary=9, always=(3, 4))


def test_a_kept_table_is_read_back_and_no_other_is_put_in_its_place(tmp_path):
    assert read_table(tmp_path, 3) is None
    write_table(tmp_path, None)
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        write_table(tmp_path, np.array([0, 4, 5], np.int32))
    np.testing.assert_array_equal(read_table(tmp_path, 3), [0, 4, 5])
    with pytest.raises(ValueError, match="has other tokens than the draft: take another name"):
        write_table(tmp_path, np.array([0, 4, 6]))
    with pytest.raises(ValueError, match="has 3 tokens, and head.draft_vocab_size=2: "):
        read_table(tmp_path, 2)
    assert [file.name for file in tmp_path.iterdir()] == ["vocabulary.safetensors"]


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_the_tokens_that_it_began_with(run, place, models, capsys):
    tokenizer = load(models / "target").tokenizer
    head = read(run / "model", models)
    assert (head.format, head.head.layers) == ("eagle3", (0, 2))
    own = head.params_for(()).tokens
    assert own.shape == (TOKENS,) and 0 in own  # the end of text
    # Of the words that both texts are made of, those of the first.
    for words, there in ((ONE[:2], True), (OTHER[:2], False)):
        ids = [tokenizer(f" {word}")["input_ids"][-1] for word in words]
        assert np.isin(ids, own).all() == there
    table = load_file(run / "vocabulary.safetensors")["d2t"]
    np.testing.assert_array_equal(table, head.d2t)
    # And another run on the second text has others.
    distil(capsys, place / "other.py", "name=second", "steps=1")
    other = load_file(place / "runs" / "second" / "vocabulary.safetensors")["d2t"]
    assert not np.array_equal(table, other)


@pytest.mark.slow
def test_a_run_is_exported_with_its_tokens(run, models, capsys, tmp_path):
    for format in ("eagle3", "speculators"):
        asked = (str(run), str(tmp_path / format), "--format", format)
        assert main(("export", *asked)) == 0
        ours, theirs = read(run / "model", models), read(tmp_path / format, models)
        assert theirs.head == ours.head
        assert_same((theirs.params, theirs.d2t), (ours.params, ours.d2t))


@pytest.mark.slow
def test_a_run_without_its_table_is_refused(run, place, capsys, tmp_path):
    (run / "vocabulary.safetensors").unlink()
    rewrite(run / "recipe.json", output=str(tmp_path))
    capsys.readouterr()
    assert main(("export", str(run), str(tmp_path / "out"))) == 2
    assert "has no vocabulary.safetensors" in capsys.readouterr().err
    said = distil_refused(capsys, place / "one.py", f"output={tmp_path}", "steps=6")
    assert "has no vocabulary.safetensors" in said and "40 tokens" in said


@pytest.mark.slow
def test_a_run_goes_on_from_a_head_of_eagle3(run, place, models, capsys, tmp_path):
    from_it = f"draft={run / 'model'}", f"output={tmp_path / 'runs'}"
    done = distil(
        capsys, place / "other.py", *from_it, "head.draft_vocab_size=0", "head.layers=", "steps=1"
    )
    ours, theirs = read(run / "model", models), read(Path(done["folder"]), models)
    assert theirs.head == ours.head
    assert_same(theirs.d2t, ours.d2t)
    apart = [np.abs(a - b).max() for a, b in zip(leaves(ours), leaves(theirs), strict=True)]
    assert 0 < max(apart) < 0.1
    for change, said in (
        ("head.draft_vocab_size=41", "head.draft_vocab_size=41, and the draft has 40"),
        ("head.layers=0 1", "head.layers=(0, 1), and the draft has (0, 2)"),
        ("head.num_attention_heads=4", "head.num_attention_heads=4, and the draft has 2"),
    ):
        assert said in distil_refused(capsys, place / "other.py", *from_it, "name=no", change)


def leaves(head):
    return [np.asarray(x) for x in jax.tree.leaves(head.params)]


@pytest.mark.slow
def test_a_draft_of_another_kind_is_refused(run, place, capsys, tmp_path):
    asked = f"draft={run / 'model'}", f"output={tmp_path}", "head.kind=fspad"
    more = "head.draft_vocab_size=0", "head.layers=", "head.feature_weight=1"
    said = distil_refused(capsys, place / "other.py", *asked, *more)
    assert "head.kind='fspad', and the draft has 'eagle3'" in said


def test_more_tokens_than_the_target_has_are_refused(place, capsys):
    said = distil_refused(capsys, place / "one.py", "name=many", "head.draft_vocab_size=321")
    assert "head.draft_vocab_size=321: the target has 320" in said
