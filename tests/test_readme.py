"""The Python of the READMEs is what the package does."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The one that a person runs first: it must not wait for `pytest -m slow`.
FIRST = "README.md:1"


def blocks() -> Iterator[tuple[str, str]]:
    """Every block of Python, by its file and its number there."""
    for file in [ROOT / "README.md", *sorted((ROOT / "jspec").rglob("README.md"))]:
        for number, code in enumerate(BLOCK.findall(file.read_text()), start=1):
            yield f"{file.relative_to(ROOT)}:{number}", code


BLOCKS = dict(blocks())


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What a block defines, run where it finds `configs` and may write."""
    (folder / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(BLOCKS[name], name, "exec"), names)
    return names


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_compiles(name):
    compile(BLOCKS[name], name, "exec")


def test_the_three_lines_run(tmp_path, monkeypatch, capsys):
    names = run(FIRST, tmp_path, monkeypatch)
    assert len(BLOCKS[FIRST].splitlines()) == 4  # the import, and three lines
    assert names["out"].text in capsys.readouterr().out
    assert names["out"].acceptance_length > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BLOCKS if name != FIRST])
def test_a_block_runs(name, tmp_path, monkeypatch):
    run(name, tmp_path, monkeypatch)


def test_links_lead_to_files():
    for file in [ROOT / "README.md", *sorted((ROOT / "jspec").rglob("README.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
            assert os.path.exists(file.parent / link), f"{file.relative_to(ROOT)}: {link}"
