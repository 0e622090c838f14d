"""The Python standard library's own source: a corpus that every machine already has."""

import sysconfig
import zlib
from pathlib import Path

SKIPPED = frozenset(
    {"test", "tests", "idle_test", "site-packages", "encodings", "pydoc_data", "__phello__"}
)
HELD_OUT_ONE_IN = 20


def training_documents() -> list[str]:
    """The modules that the zoo learns from, in the order of their paths."""
    return [text for path, text in _modules() if not held_out(path)]


def held_out_documents() -> list[str]:
    """The modules that no model of the zoo has seen, in the order of their paths."""
    return [text for path, text in _modules() if held_out(path)]


def out_of_domain_documents() -> list[str]:
    """Prose: the topics of `pydoc`, the longest first."""
    from pydoc_data import topics

    return sorted(topics.topics.values(), key=len, reverse=True)


def held_out(path: str) -> bool:
    """Whether a module, named by its path below the library's root, is kept for evaluation.

    The choice depends on the path alone, so it is the same for every release of Python.
    """
    return zlib.crc32(path.encode()) % HELD_OUT_ONE_IN == 0


def _modules() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not SKIPPED.intersection(path.relative_to(root).parts)
    )
    return [(path, (root / path).read_text(encoding="utf-8", errors="ignore")) for path in paths]
