"""The notebooks run from the first cell to the last, and hold no outputs."""

import ast
import json
import sys
import types
from pathlib import Path

import pytest
import tiny_zoo

from jspec import zoo
from jspec.formats import folder as model_folders
from jspec.training import text_data

COLAB = Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))


@pytest.fixture
def shown(models, monkeypatch) -> list[str]:
    """What the notebook displays, where there is nothing to display it."""
    monkeypatch.setattr(model_folders, "ZOO_MODELS", models)
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
    for name, value in changes.items():
        changed = [with_value(source, name, value) for source in sources]
        assert changed != sources, name
        sources = changed
    return sources


def with_value(source: str, name: str, value: str) -> str:
    """A cell that assigns another value to a name, if it assigns one."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).strip("()") == name:
            lines[node.lineno - 1 : node.end_lineno] = [f"{name} = {value}"]
            return "\n".join(lines)
    return source


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
    assert names["engine"].target.folder == zoo.folder("target")


@pytest.mark.slow
def test_the_notebook_teaches_a_draft_that_writes_the_same_text(
    shown, capsys, tmp_path, monkeypatch
):
    for documents in ("training_documents", "held_out_documents"):
        monkeypatch.setattr(text_data, documents, lambda: [tiny_zoo.TEXT * 20] * 4)
    data = {"count": 4, "prompt_length": 8, "max_new_tokens": 16, "tree": "chain:2"}
    sizes = {"sequence_length": 32, "chunk_size": 0, "batch_size": 2, "warmup_steps": 1}
    shown_at = {"steps": 4, "evaluate_every": 2, "max_new_tokens": 8, "prompts": 2}
    changes = {**sizes, **shown_at, "tree": "chain:2", "teacher_data": data}
    values = {"SOURCE": str(COLAB.parent), "OUTPUT": str(tmp_path), "CHANGES": changes}
    notebook = COLAB / "distill.ipynb"
    names = run(
        cells(notebook, NEW_TOKENS="8", **{name: repr(value) for name, value in values.items()})
    )
    out = capsys.readouterr().out
    assert names["same"] and [line["step"] for line in names["log"]] == [2, 4]
    assert "acceptance" in out and "the same text" in out
