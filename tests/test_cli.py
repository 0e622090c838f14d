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
import numpy as np
import pytest
import tiny_zoo
from tokenizers import Tokenizer

from jspec.bench import settings
from jspec.cli.demo import GUESSED, SUPPLIED, coloured
from jspec.cli.generate import Generate
from jspec.cli.main import _hear_again, main
from jspec.core.prompts import prompts
from jspec.core.sampling import sampling
from jspec.decode import autoregress
from jspec.formats.huggingface import load, save
from jspec.models.transformer import transformer
from jspec.zoo.tokenizer import train_tokenizer

PROMPT = "def add(left"
TOKENS = 70  # everywhere, so that the tests share compilations
FIELDS = {
    "temperature",
    "method",
    "plain_tokens_per_second",
    "speculative_tokens_per_second",
    "speedup",
    "tokens_per_round",
    "identical",
}


pytestmark = pytest.mark.usefixtures("small_zoo")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(arguments)
    return code, *capsys.readouterr()


def plain(folder: Path, **law: float) -> list[int]:
    """What the library's plain decoding writes after `PROMPT`."""
    target = load(folder)
    ids = target.tokenizer(PROMPT)["input_ids"]
    written = autoregress(
        target.params,
        prompts([ids], context=tiny_zoo.CONTEXT, tokens=TOKENS),
        jax.random.key(7)[None],
        sampling(1, **law),
        target=target.model,
        tokens=TOKENS,
    )
    return np.asarray(written.tokens)[0].tolist()


class Letters:
    """A tokenizer of one token a character."""

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


# Bad input: exit 2, one line, nothing on stdout


def refused(capsys, *arguments: str) -> str:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("jspec: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--prompt", ""), "prompt='' is empty"),
        (("--prompt", "x" * 300), "more than the context of 320"),
        (("--prompt", "x", "--tokens", "320"), "is 1 more than the context of 320"),
        (("--prompt", "x", "--tokens", "0"), "tokens=0"),
        (("--file", "nowhere.txt"), "file='nowhere.txt': no such file"),
        (("--prompt", "x", "--temperature", "-0.5"), "temperature=-0.5"),
        (("--prompt", "x", "--temperature", "nan"), "temperature=nan"),
        (("--prompt", "x", "--temperature", "warm"), "--temperature: could not convert"),
        (("--prompt", "x", "--top-p", "0"), "top_p=0.0: must lie in (0, 1]"),
        (("--prompt", "x", "--top-p", "1.5"), "top_p=1.5: must lie in (0, 1]"),
        (("--prompt", "x", "--top-k", "-1"), "top_k=-1"),
        (("--prompt", "x", "--seed", "-1"), "seed=-1"),
        (("--prompt", "x", "--tree", "4xx"), "tree='4xx' is no tree and no file: write chain:5"),
        (("--prompt", "x", "--tree", "chain:0"), "tree='chain:0'"),
        (("--prompt", "x", "--tree", "fork:9x0"), "tree='fork:9x0'"),
        (("--prompt", "x", "--tree", "20x20"), "421 nodes with its root"),
        (("--prompt", "x", "--tree", "999999x999999x999999"), "the target's context of 320"),
        (("--prompt", "x", "--lookup", "--tree", "2x2"), "use a chain or a fork"),
        (("--prompt", "x", "--lookup", "--plain"), "exclude each other"),
        (("--prompt", "x", "--plain", "--tree", "2x2"), "tree='2x2': plain"),
        (("--prompt", "x", "--plain", "--rule", "token_level"), "rule='token_level': plain"),
        (("--prompt", "x", "--replicate-draft"), "replicate_draft: no mesh, or no draft"),
        (
            ("--prompt", "x", "--mesh", "fsdp=8", "--lookup", "--replicate-draft"),
            "replicate_draft: no mesh, or no draft",
        ),
        (("--prompt", "x", "--bias", "5=1", "05=2"), "bias='05=2': token 5 has a bias already"),
        (("--prompt", "x", "--target", "zoo:huge"), "zoo:huge is not in the zoo"),
        (("--prompt", "x", "--target", "./nowhere"), "target='./nowhere': no such folder"),
        (("--prompt", "x", "--dtype", "int8"), "int8"),
        (("--prompt", "\udcff"), "is not text in UTF-8"),
        (("--prompt", "x", "--temperature", "1e39"), "temperature=1e+39"),
        (("--prompt", "x", "--top-k", "99999999999999"), "top_k=99999999999999"),
        (("--prompt", "x", "--top-p", "1.0001"), "top_p=1.0001: must lie in (0, 1]"),
        (("--prompt", "x", "--top-p", "1e-50"), "top_p=1e-50: must lie in (0, 1]"),
        (("--prompt", "x", "--bias", "3=1e39"), "bias of 1e+39"),
        (("--prompt", "x", "--tree", ""), "tree='' is no tree"),
        (("--prompt", "x", "--tree", "\u0663x2"), "is no tree and no file"),
        (("--prompt", "x", "--tree", "x" * 5000), "is no tree and no file"),
        (("--prompt", "x", "--draft", ""), "draft=''"),
        (("--prompt", "x", "--lookup", "--rule", "token_level"), "rule='token_level' weighs draws"),
        (("--prompt", "x", "--mesh", "rows=8"), "mesh='rows=8': write each of data, fsdp, tensor"),
        (("--prompt", "x", "--mesh", "data=²"), "mesh='data=²': write each of data, fsdp, tensor"),
        (("--prompt", "x", "--mesh", "data=3"), "mesh data=3, fsdp=1, tensor=1 has 3 devices"),
        (("--prompt", "x", "--mesh", "tensor=8"), "mesh tensor=8 does not divide heads=2"),
        (("--prompt", "x", "--distributed"), "distributed: the other processes were not found"),
        (("--prompt", "x", "--tokenz", "3"), "--tokenz"),
        (("--prompt", "x", "--stop", "luck:0.3"), "stop='luck:0.3': no rule, and no folder with"),
        (("--prompt", "x", "--stop", "confidence"), "stop='confidence' has no threshold"),
        (("--prompt", "x", "--stop", "margin:much"), "stop='margin:much': 'much' is no threshold"),
        (("--prompt", "x", "--stop", "entropy:1.5"), "stop='entropy:1.5': threshold=1.5: must lie"),
        (("--prompt", "x", "--stop", "running:nan"), "stop='running:nan': threshold=nan: must lie"),
        (("--prompt", "x", "--stop", "network"), "has no decision.json: jspec decide writes"),
        (("--prompt", "x", "--stop", ""), "stop='': no rule, and no folder"),
        (("--prompt", "x", "--stop", "margin:0.3", "--lookup"), "look-up has nothing to stop"),
        (("--prompt", "x", "--rule", "by_confidence", "--lookup"), "lookup: its trees are static"),
        (("--prompt", "x", "--rule", "by_confidence", "--stop", "margin:0.3"), "leave one out"),
        (("--prompt", "x", "--stop", "margin:0.3", "--plain"), "plain decoding has nothing to"),
        (
            ("--prompt", "x", "--stop", "margin:0.3", "--tree", "grow:2x2x4"),
            "stop='margin:0.3': tree of 4 nodes grows",
        ),
        (
            ("--prompt", "x", "--stop", "margin:0.3", "--rule", "token_level"),
            "stop=margin reads dice that draft and target share, and rule='token_level' has none",
        ),
    ],
)
def test_generate_refuses_bad_input_in_one_line(capsys, arguments, said):
    assert said in refused(capsys, "generate", *arguments)


def test_verify_refuses_a_draft_beside_look_up(capsys):
    line = refused(capsys, "verify", "--lookup", "--draft", "zoo:wide")
    assert "draft and lookup exclude each other" in line


def test_the_prompts_excess_over_the_context_is_counted(models, capsys):
    length = len(load(models / "target").tokenizer("y = x\n" * 200)["input_ids"])
    line = refused(capsys, "generate", "--prompt", "y = x\n" * 200, "--tokens", "10")
    assert f"has {length} tokens" in line and f"is {length + 10 - 320} more" in line


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ("[[0], [2]]", "child 2 is there and child 1 is not"),
        ("[[0, -1]]", "ranks count from 0"),
        ("[[0], 7]", "no list of paths"),
        ("[[0]", "is not JSON"),
        ("[]", "1 nodes with its root"),
    ],
)
def test_a_malformed_file_of_paths_is_refused(capsys, tmp_path, paths, said):
    file = tmp_path / "paths.json"
    file.write_text(paths)
    assert said in refused(capsys, "generate", "--prompt", "x", "--tree", str(file))


def test_folders_that_are_no_readable_model_are_refused(models, capsys, tmp_path):
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(models / "wide", tmp_path / name))

    empty = tmp_path / "empty"
    empty.mkdir()
    asked = ("generate", "--prompt", "x", "--target")
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
    save(tmp_path / "other", model, params, tokenizer=other, end_of_text=(0,))
    line = refused(capsys, "generate", "--prompt", "x", "--draft", str(tmp_path / "other"))
    assert "in the draft and" in line and "padding at the end alone" in line


@pytest.mark.slow
def test_a_draft_whose_vocabulary_is_padded_is_taken(models, capsys, tmp_path):
    model = transformer(tiny_zoo.config(vocabulary=384))
    shared = Tokenizer.from_file(str(models / "target" / "tokenizer.json"))
    params = model.init(jax.random.key(0))
    save(tmp_path / "padded", model, params, tokenizer=shared, end_of_text=(0,))
    options = ("--tokens", str(TOKENS), "--no-stop", "--seed", "7", "--tree", "chain:1", "--json")
    draft = ("--draft", str(tmp_path / "padded"))
    _, out, _ = run(capsys, "generate", "--prompt", PROMPT, *draft, *options)
    assert json.loads(out)["ids"] == plain(models / "target")


def test_no_verb_and_an_unknown_one_are_refused(capsys):
    assert "demo" in refused(capsys)
    assert "dance" in refused(capsys, "dance")


def test_debug_adds_the_traceback(capsys):
    code, _, err = run(capsys, "generate", "--prompt", "", "--debug")
    assert code == 2 and "Traceback" in err and err.rstrip().splitlines()[-1].startswith("jspec: ")


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
        assert result["method"] in ("chain", "tree", "head", "look-up")
        assert result["identical"] is True
        assert result["tokens_per_round"] >= 1
        assert result["speedup"] > 0
    assert record["setting"]["jax"] == jax.__version__


def test_a_generation_is_coloured_by_who_wrote_each_token():
    tokenizer = Letters()
    text = coloured([97, 98, 99, 100], [False, True, True, False], tokenizer)
    assert text.plain == "abcd"
    assert [(span.start, span.end, span.style) for span in text.spans] == [
        (0, 1, SUPPLIED),
        (1, 3, GUESSED),
        (3, 4, SUPPLIED),
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
