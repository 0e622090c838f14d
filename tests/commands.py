"""Commands in this process: what they print, where, and how they end."""

import json
from pathlib import Path

import jax
import numpy as np
import tiny_zoo

from jspec.cli.main import main
from jspec.core.prompts import pad_prompts
from jspec.core.sampling import SamplingParams
from jspec.decode import autoregress
from jspec.formats.huggingface import load

PROMPT = "def add(left"
TOKENS = 70  # everywhere, so that the tests share compilations


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(arguments)
    return code, *capsys.readouterr()


def refused(capsys, *arguments: str) -> str:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("jspec: ") and err.count("\n") == 1, err
    return err


def distil(capsys, config: Path, *changes: str) -> dict:
    capsys.readouterr()
    code = main(("distill", "--json", str(config), *changes))
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def distil_refused(capsys, config: Path, *changes: str) -> str:
    capsys.readouterr()
    assert main(("distill", str(config), *changes)) == 2
    out, err = capsys.readouterr()
    complaint = err.splitlines()[-1]
    assert out == "" and complaint.startswith("jspec: "), err
    return complaint


def plain(folder: Path, **sampling: float) -> list[int]:
    """What the library's plain decoding generates after `PROMPT`."""
    target = load(folder)
    ids = target.tokenizer(PROMPT)["input_ids"]
    output = autoregress(
        target.params,
        pad_prompts([ids], context_length=tiny_zoo.CONTEXT, max_new_tokens=TOKENS),
        jax.random.key(7)[None],
        SamplingParams.create(1, **sampling),
        target=target.model,
        max_new_tokens=TOKENS,
    )
    return np.asarray(output.tokens)[0, :TOKENS].tolist()
