"""`jspec generate`: the plain text in every way, and where it ends."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import PROMPT, TOKENS, plain, refused, run

from jspec.cli.main import main
from jspec.formats.folder import read_json, write_json
from jspec.formats.huggingface import load, save

GREEDY = (
    "--prompt", PROMPT, "--ignore-eos", "--max-new-tokens", str(TOKENS), "--seed", "7", "--json"
)  # fmt: skip
LOOKUP, SMALL = ("--draft", "lookup"), ("--tree", "chain:1")

pytestmark = pytest.mark.usefixtures("small_zoo")


@pytest.mark.parametrize(
    "how",
    [
        SMALL,
        LOOKUP,
        ("--plain",),
        pytest.param(("--mesh", "fsdp=4", "data=2", "--replicate-draft"), marks=pytest.mark.slow),
    ],
)
def test_generate_writes_the_plain_text_in_every_way(models, capsys, how):
    sampling = {"temperature": 0.8, "top_p": 0.9}
    options = (
        "--temperature",
        "0.8",
        "--top-p",
        "0.9",
        "--seed",
        "7",
        "--max-new-tokens",
        str(TOKENS),
    )
    asked = ("--prompt", PROMPT, "--ignore-eos", "--json")
    code, out, _ = run(capsys, "generate", *asked, *options, *how)
    record = json.loads(out)
    assert code == 0
    assert record["token_ids"] == plain(models / "target", **sampling)
    assert len(record["token_ids"]) == TOKENS == len(record["is_draft_token"])
    assert record["finish_reason"] == "length"
    assert record["num_rounds"] * record["acceptance_length"] == pytest.approx(TOKENS)


def test_generate_prints_the_text_alone_on_stdout_and_statistics_on_stderr(
    models, capsys, monkeypatch
):
    asked = (*LOOKUP, "--ignore-eos", "--max-new-tokens", str(TOKENS), "--seed", "7")
    code, out, err = run(capsys, "generate", "--prompt", PROMPT, *asked)
    tokenizer = load(models / "target").tokenizer
    assert (code, out) == (0, tokenizer.decode(plain(models / "target")) + "\n")
    assert "tokens after a prompt of" in err and "acceptance_rate" in err
    piped = io.TextIOWrapper(io.BytesIO(PROMPT.encode()))
    monkeypatch.setattr(sys, "stdin", piped)
    assert run(capsys, "generate", *asked)[1] == out


def test_generate_stops_at_an_end_of_text_and_leaves_it_out(models, capsys, tmp_path):
    target = load(models / "target")
    third = plain(models / "target")[2]
    folder = tmp_path / "stops"
    save(folder, target.model, target.params, tokenizer=models / "target", stop_token_ids=(third,))
    options = ("--target", str(folder), *LOOKUP, "--prompt", PROMPT, "--seed", "7", "--json")
    _, out, _ = run(capsys, "generate", *options, "--max-new-tokens", str(TOKENS))
    record = json.loads(out)
    assert record["finish_reason"] == "stop"
    assert record["token_ids"][-1] == third and third not in record["token_ids"][:-1]
    assert record["text"] == target.tokenizer.decode(record["token_ids"][:-1])


class InterruptedOutput(io.StringIO):
    """Where somebody presses Ctrl-C as soon as the first words are there."""

    def write(self, text: str) -> int:
        first = not self.getvalue()
        count = super().write(text)
        if first:
            raise KeyboardInterrupt
        return count


def test_an_interrupt_leaves_what_was_written(models, capsys, monkeypatch):
    out = InterruptedOutput()
    monkeypatch.setattr(sys, "stdout", out)
    options = (*LOOKUP, "--ignore-eos", "--max-new-tokens", str(TOKENS), "--seed", "7")
    code = main(["generate", "--prompt", PROMPT, *options])
    monkeypatch.undo()
    whole = load(models / "target").tokenizer.decode(plain(models / "target"))
    written = out.getvalue().removesuffix("\n")
    assert code == 130
    assert 0 < len(written) < len(whole) and whole.startswith(written.rstrip("\ufffd"))
    assert "finish_reason interrupted" in capsys.readouterr().err


def test_an_interrupt_while_it_compiles_ends_the_command_at_once(tmp_path):
    """Of the real command, whose interpreter ends while the compiler still runs."""
    # Shells start what they put in the background deaf to interrupts.
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{hearing}; from jspec.cli.main import entry; entry()"
    asked = ("generate", "--prompt", "def f", "--tree", "4x2x2")
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program, *asked]
    # Where nothing was compiled before.
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env) as process:
        assert "compiling" in process.stderr.readline()
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted before the first token" in err and "Traceback" not in err


@pytest.fixture
def copy(models, tmp_path) -> Path:
    """A copy of the target, to be changed."""
    return shutil.copytree(models / "target", tmp_path / "copy")


@pytest.mark.parametrize("how", [SMALL, LOOKUP, ("--plain",)])
def test_the_stop_string_that_is_complete_first_ends_the_text_with_any_draft(models, capsys, how):
    tokenizer, ids = load(models / "target").tokenizer, plain(models / "target")
    texts = [tokenizer.decode(ids[:count]) for count in range(TOKENS)]
    short, long = texts[-1][5:7], texts[-1][3:14]
    count = next(count for count, text in enumerate(texts) if short in text)
    assert texts[-1].index(short) == 5
    code, out, _ = run(capsys, "generate", *GREEDY, *how, "--stop", long, short)
    record = json.loads(out)
    assert (code, record["finish_reason"]) == (0, "stop")
    assert record["text"] == texts[-1][:5]
    assert record["token_ids"] == ids[:count]
    assert len(record["token_ids"]) == len(record["is_draft_token"]) == count


def test_a_space_that_a_decoder_drops_at_the_beginning_is_kept_after_a_prompt(models, capsys, copy):
    whole = load(models / "target").tokenizer.decode(plain(models / "target"))
    file = copy / "tokenizer.json"
    tokenizer = read_json(file)
    drop = {"type": "Strip", "content": whole[0], "start": 1, "stop": 0}
    tokenizer["decoder"] = {"type": "Sequence", "decoders": [tokenizer["decoder"], drop]}
    write_json(file, tokenizer)
    assert load(copy).tokenizer.decode(plain(models / "target")) == whole[1:]
    _, out, _ = run(capsys, "generate", *GREEDY, *LOOKUP, "--target", str(copy))
    assert json.loads(out)["text"] == whole


@pytest.mark.parametrize("rule", ["token_level", "block"])
def test_a_rule_along_chains_drafts_along_one_unless_told_another_tree(capsys, rule):
    code, out, _ = run(capsys, "generate", *GREEDY, "--rule", rule)
    assert code == 0 and json.loads(out)["options"]["tree"] == "chain:3"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}{{ m.content }", "TemplateSyntaxError"),
        ("{{ raise_exception('no user here') }}", "no user here"),
        ("{{ messages[5].content }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages + 1 }}", "TypeError"),
    ],
)
def test_a_chat_template_that_does_not_work_is_refused_in_one_line(capsys, copy, template, said):
    (copy / "chat_template.jinja").write_text(template)
    asked = ("generate", "--target", str(copy), "--plain", "--prompt", "x", "--chat")
    line = refused(capsys, *asked)
    assert f"chat: the chat template of target='{copy}'" in line and said in line
