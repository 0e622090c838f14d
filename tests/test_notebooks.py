"""The notebooks run from the first cell to the last, and hold no outputs."""

import json
import sys
import types
from pathlib import Path

import pytest
import tiny_zoo

from jspec import zoo
from jspec.zoo import lessons

COLAB = Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))


@pytest.fixture
def shown(models, monkeypatch) -> list[str]:
    """What the notebook displays, where there is nothing to display it."""
    monkeypatch.setattr(zoo, "MODELS", models)
    pieces: list[str] = []
    display = types.ModuleType("IPython.display")
    display.HTML, display.display = str, pieces.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return pieces


def cells(notebook: Path, **changes: str) -> list[str]:
    """The sources of the code cells, with other values after some names."""
    read = json.loads(notebook.read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in read if cell["cell_type"] == "code"]
    for before, after in changes.items():
        assert any(f"{before} = " in source for source in sources)
        sources = [
            "\n".join(
                f"{before} = {after}" if line.startswith(f"{before} = ") else line
                for line in source.splitlines()
            )
            for source in sources
        ]
    return sources


def run(sources: list[str]) -> dict:
    names: dict = {}
    for source in sources:
        exec(compile(source, "cell", "exec"), names)
    return names


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_stores_no_outputs(notebook):
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.parametrize("mesh", ["{}", pytest.param('{"data": 8}', marks=pytest.mark.slow)])
def test_the_notebook_writes_the_same_text_twice(shown, capsys, mesh):
    names = run(cells(COLAB / "generate.ipynb", NEW_TOKENS="16", MESH=mesh))
    out = capsys.readouterr().out
    assert names["same"] and "the same text" in out
    (page,) = shown
    assert page.startswith("<pre") and page.count("<span") >= 1


def test_without_network_the_notebook_takes_what_ships(shown, capsys):
    pair = '"nobody/target", "nobody/draft"'
    sources = cells(COLAB / "generate.ipynb", **{"TARGET, DRAFT": pair})
    names = run(sources[:3])
    assert "a local folder works without the hub" in capsys.readouterr().out
    assert names["target"].folder == zoo.folder("target")


@pytest.mark.slow
def test_the_notebook_teaches_a_draft_that_writes_the_same_text(
    shown, capsys, tmp_path, monkeypatch
):
    for documents in ("training_documents", "held_out_documents"):
        monkeypatch.setattr(lessons, documents, lambda: [tiny_zoo.TEXT * 20] * 4)
    changes = (
        "steps=4 evaluate_every=2 answers.count=4 answers.prompt=8 answers.tokens=16 length=32 "
        "chunk=0 batch=2 warmup=1 tokens=8 prompts=2 tree=chain:2 answers.tree=chain:2"
    )
    values = {"SOURCE": str(COLAB.parent), "OUTPUT": str(tmp_path), "CHANGES": changes}
    notebook = COLAB / "distill.ipynb"
    names = run(
        cells(notebook, NEW_TOKENS="8", **{name: repr(text) for name, text in values.items()})
    )
    out = capsys.readouterr().out
    assert names["same"] and [line["step"] for line in names["log"]] == [2, 4]
    assert "acceptance" in out and "the same text" in out
