"""The rooms and the words: imports go one way, files stay readable, words are the field's."""

import ast
import re
from pathlib import Path

import pytest

import jspec

PACKAGE = Path(jspec.__file__).parent
PROJECT = PACKAGE.parent
# From the ground up. A module imports from its own part and from those before it.
ORDER = (
    *("config", "parallel", "core", "models", "formats", "verify", "draft", "decode", "serving"),
    *("zoo", "training", "bench", "tuning", "api", "plan", "studies", "cli"),
)
FLOORS = {part: floor for floor, part in enumerate(ORDER)}
LONGEST = 550
# What names nothing that a person could look for.
VAGUE = {"utils", "helpers", "base", "manager", "misc", "common"}
# Words that the field has others for: see the glossary in jspec/README.md.
PRIVATE = re.compile(
    r"\b("
    r"dice|foretold|foretell|foretells|otherwise than|hangs? on|is no number|afresh|anew|"
    r"whereabouts|rolled|guess|guessing|"
    r"Outlook|Gauge|Duel|Parting|Sight|Forgetful|Pupil|as it was|Verdict|kept by depth|WEIGHS|"
    r"(?<!draft )tokens per round|over smallest slice|until one is done|look-up|kv heads|"
    r"guessed|guesses|"
    r"warped|warp"
    r")\b"
)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, the package itself left out."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["jspec", *path.relative_to(PACKAGE).with_suffix("").parts]
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    del found["jspec"]
    return found


def imported(source: str, name: str, known: set[str]) -> set[str]:
    """The modules of ours that `source` imports, at the top or inside a function.

    A name taken from the package itself, which imports every floor, counts as `jspec`.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import hides its floor"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= inside & known
            if inside - known:
                names.add(node.module)
    return {found for found in names if found.split(".")[0] == "jspec"}


def broken(name: str, imports: set[str]) -> list[str]:
    """What a module imports and may not."""
    part = name.split(".")[1]
    wrong = []
    for other in sorted(imports):
        its = other.split(".")[1] if "." in other else None
        if its != part and (its is None or FLOORS[its] >= FLOORS[part]):
            wrong.append(f"{name} imports {other}")
    return wrong


def test_a_module_never_imports_from_a_higher_floor():
    known = modules()
    wrong = []
    for name, path in known.items():
        wrong += broken(name, imported(path.read_text(), name, set(known)))
    assert not wrong


def test_modules_of_one_room_never_import_each_other_in_a_circle():
    known = modules()
    edges = {
        name: imported(path.read_text(), name, set(known)) - {name} for name, path in known.items()
    }

    def reaches(start: str, goal: str) -> bool:
        seen, stack = set(), [start]
        while stack:
            for other in edges.get(stack.pop(), ()):
                if other == goal:
                    return True
                if other not in seen:
                    seen.add(other)
                    stack.append(other)
        return False

    assert not [name for name in known if reaches(name, name)]


def test_every_module_has_a_floor():
    assert not {name.split(".")[1] for name in modules()} - set(FLOORS)


def test_an_import_that_climbs_is_noticed_wherever_it_stands():
    known = {"jspec.decode", "jspec.serving", "jspec.config", "jspec.zoo", "jspec.zoo.corpus"}
    for source in (
        "from jspec.decode import generate",
        "from jspec import decode",
        "import jspec.decode",
        "import jspec",
        "from jspec import generate",
        "from jspec import zoo",
        "def f():\n    from jspec.zoo.corpus import documents",
    ):
        assert broken("jspec.draft.lookup", imported(source, "a test", known)), source
        assert broken("jspec.core.cache", imported(source, "a test", known)), source
    for source in (
        "from jspec.config import ModelConfig",
        "from jspec import config",
        "import jax",
    ):
        assert not broken("jspec.draft.lookup", imported(source, "a test", known)), source
    assert not broken("jspec.serving", imported("from jspec import decode", "a test", known))
    assert not broken("jspec.training.run", imported("from jspec import zoo", "a test", known))


def test_a_file_has_one_subject_and_a_name_that_says_it():
    for name, path in modules().items():
        assert len(path.read_text().splitlines()) <= LONGEST, name
        assert name.split(".")[-1] not in VAGUE or name == "jspec.studies.common", name
    assert len(list(PACKAGE.glob("*.py"))) <= 7


@pytest.mark.parametrize("place", ["jspec", "configs", "colab", "README.md", "tests"])
def test_the_field_s_words_are_used(place):
    files = (
        [PROJECT / place] if (PROJECT / place).is_file() else sorted((PROJECT / place).rglob("*"))
    )
    found = [
        f"{path.relative_to(PROJECT)}:{number}: {line.strip()[:80]}"
        for path in files
        if path.suffix in (".py", ".md", ".ipynb") and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if PRIVATE.search(line.replace("_", " "))
    ]
    assert not found, "\n".join(found)
