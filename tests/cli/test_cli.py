"""The command line: what it prints, where, and how it ends."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import tiny_zoo
from commands import PROMPT, TOKENS, plain, refused, run
from tokenizers import Tokenizer

from jspec.bench import settings
from jspec.cli.demo import BONUS, DRAFTED, coloured
from jspec.cli.generate import Generate
from jspec.cli.main import _hear_again, keep_compiled_programs, main
from jspec.formats.huggingface import load, save
from jspec.models.transformer import transformer
from jspec.zoo.tokenizer import train_tokenizer

FIELDS = {
    "temperature",
    "method",
    "plain_tokens_per_second",
    "speculative_tokens_per_second",
    "speedup",
    "acceptance_length",
    "identical",
}


pytestmark = pytest.mark.usefixtures("small_zoo")


class Letters:
    """A tokenizer of one token a character."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


# Bad input: exit 2, one line, nothing on stdout


def test_the_prompts_excess_over_the_context_is_counted(models, capsys):
    length = len(load(models / "target").tokenizer("y = x\n" * 200)["input_ids"])
    line = refused(capsys, "generate", "--prompt", "y = x\n" * 200, "--max-new-tokens", "10")
    assert f"has {length} tokens" in line and f"is {length + 10 - 320} more" in line


def test_folders_that_are_no_readable_model_are_refused(models, capsys, tmp_path):
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(models / "wide", tmp_path / name))

    empty = tmp_path / "empty"
    empty.mkdir()
    asked = ("generate", "--prompt", "x", "--plain", "--target")
    assert "no config.json" in refused(capsys, *asked, str(empty))
    truncated = damaged("truncated") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    assert "truncated" in refused(capsys, *asked, str(truncated.parent))
    corrupt = damaged("corrupt") / "model.safetensors"
    corrupt.write_bytes(b"not tensors at all")
    assert "corrupt" in refused(capsys, *asked, str(corrupt.parent))
    unknown = damaged("unknown") / "config.json"
    unknown.write_text(unknown.read_text().replace('"llama"', '"mamba"'))
    line = refused(capsys, *asked, str(unknown.parent))
    assert "model_type='mamba' is not known" in line and "llama" in line
    mute = damaged("mute")
    (mute / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(capsys, *asked, str(mute))


def test_a_draft_with_another_vocabulary_is_refused_in_words(models, capsys, tmp_path):
    model = transformer(tiny_zoo.config())
    other = train_tokenizer(["somebody else's words\n" * 40], tiny_zoo.VOCABULARY)
    params = model.init(jax.random.key(0))
    save(tmp_path / "other", model, params, tokenizer=other, stop_token_ids=(0,))
    line = refused(capsys, "generate", "--prompt", "x", "--draft", str(tmp_path / "other"))
    assert "in the draft and" in line and "padding at the end alone" in line


@pytest.mark.slow
def test_a_draft_whose_vocabulary_is_padded_is_taken(models, capsys, tmp_path):
    model = transformer(tiny_zoo.config(vocab_size=384))
    shared = Tokenizer.from_file(str(models / "target" / "tokenizer.json"))
    params = model.init(jax.random.key(0))
    save(tmp_path / "padded", model, params, tokenizer=shared, stop_token_ids=(0,))
    options = ("--max-new-tokens", str(TOKENS), "--ignore-eos", "--seed", "7", "--json")
    draft = ("--draft", str(tmp_path / "padded"), "--tree", "chain:1")
    _, out, _ = run(capsys, "generate", "--prompt", PROMPT, *draft, *options)
    assert json.loads(out)["token_ids"] == plain(models / "target")


def test_help_needs_no_heavy_import():
    program = (
        "import sys, jspec.cli.main as m; code = m.main(['--help']); "
        "sys.exit(code or bool({'torch', 'transformers', 'orbax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


@pytest.mark.parametrize(
    ("kind", "number"), [(KeyboardInterrupt, signal.SIGINT), (SystemExit, signal.SIGTERM)]
)
def test_what_jax_drops_while_it_cleans_up_is_heard_again(kind, number):
    heard = []
    before = signal.signal(number, lambda *_: heard.append(number))
    try:
        _hear_again(SimpleNamespace(exc_type=kind))
        latest = time.monotonic() + 5
        while not heard and time.monotonic() < latest:
            time.sleep(0.01)
    finally:
        signal.signal(number, before)
    assert heard == [number]


@pytest.mark.parametrize("named", [True, False])
def test_compiled_programs_are_kept_below_the_users_cache_or_where_jax_is_told(
    tmp_path, monkeypatch, named
):
    told = {}
    monkeypatch.setattr(jax.config, "update", told.__setitem__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere" if named else "")
    keep_compiled_programs()
    assert ("jax_compilation_cache_dir" in told) != named
    for place in (Path(told[name]) for name in told if name.endswith("_dir")):
        assert place.is_dir() and place.is_relative_to(tmp_path / "jspec")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["distill", "x.py", "--steps", "3"], "--steps: fields of the recipe are written without"),
        (["train", "x.py", "--learning-rate", "1"], "learning_rate=1"),
        (["generate", "import os"], "'import os': a prompt is given by --prompt"),
        (["generate", "--promt", "x"], "--prompt"),
    ],
)
def test_usual_mistakes_are_answered_with_what_is_meant(capsys, argv, says):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jspec: ") and says in line


# The demo


def test_demo_prints_one_object_with_the_best_method_at_each_temperature(capsys, monkeypatch):
    monkeypatch.setattr(settings, "PROMPT_LENGTH", 32)
    monkeypatch.setattr(settings, "TOKENS", 24)
    monkeypatch.setattr(settings, "DEMO_REPETITIONS", 2)
    code, out, err = run(capsys, "demo", "--json")
    record = json.loads(out)
    assert code == 0 and out.count("\n") == 1 and "compiling tree" in err
    assert [result["temperature"] for result in record["results"]] == [0, 1]
    for result in record["results"]:
        assert set(result) == FIELDS
        assert result["method"] in ("chain", "tree", "head", "lookup")
        assert result["identical"] is True
        assert result["acceptance_length"] >= 1
        assert result["speedup"] > 0
    assert record["setting"]["jax"] == jax.__version__


def test_a_generation_is_coloured_by_where_each_token_is_from():
    tokenizer = Letters()
    text = coloured([97, 98, 99, 100], [False, True, True, False], tokenizer)
    assert text.plain == "abcd"
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 1, BONUS),
        (1, 3, DRAFTED),
        (3, 4, BONUS),
    ]


def test_memory_that_cannot_be_had_is_told_in_one_line(capsys, monkeypatch):
    """What jax raises for it, of a real allocation."""

    def enormous(self) -> int:
        import jax

        jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros((2**20, 2**24)))())
        raise AssertionError("a petabyte was there")

    monkeypatch.setattr(Generate, "run", enormous)
    assert main(["generate", "--prompt", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "GB are free on this host" in err and "ask for fewer tokens" in err
