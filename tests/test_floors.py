"""The house: a module imports only from lower floors, or from its own folder."""

import ast
from pathlib import Path

import jspec

PACKAGE = Path(jspec.__file__).parent
# From the ground up; a module imports from its own part and from those before it.
ORDER = (
    "config parallel core models formats verify draft decode serving zoo distill bench plan studies cli"
).split()
FLOORS = {part: floor for floor, part in enumerate(ORDER)}
LONGEST = 500


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


def test_every_module_has_a_floor():
    assert not {name.split(".")[1] for name in modules()} - set(FLOORS)


def test_an_import_that_climbs_is_noticed_wherever_it_stands():
    known = {"jspec.decode", "jspec.serving", "jspec.core.cache", "jspec.zoo", "jspec.zoo.corpus"}
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
    for source in ("from jspec.core.cache import Cache", "from jspec import config", "import jax"):
        assert not broken("jspec.draft.lookup", imported(source, "a test", known)), source
    assert not broken("jspec.serving", imported("from jspec import decode", "a test", known))
    assert not broken("jspec.zoo.training", imported("from jspec import zoo", "a test", known))


def test_no_file_has_two_subjects():
    for name, path in modules().items():
        assert len(path.read_text().splitlines()) <= LONGEST, name
        vague = {"utils", "helpers", "base", "manager", "misc"}
        assert name.split(".")[-1] not in vague
