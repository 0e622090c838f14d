"""Every public class has an example in its docstring, and every example of the package runs."""

import doctest
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jspec

PACKAGE = Path(jspec.__file__).parent


@functools.cache
def target() -> jspec.Checkpoint:
    return jspec.load("zoo:target")


# What an example may use without making it: of the models that ship with the package.
SHIPPED = {
    "target": target,
    "tokenizer": lambda: target().tokenizer,
    "draft": lambda: jspec.load("zoo:distilled"),
    "head": lambda: jspec.load_head("zoo:eagle", target().model, target().params),
    "engine": lambda: jspec.Speculator.load("zoo:target", draft="zoo:distilled"),
}
# These decode with the shipped models.
LONG = re.compile(r"\bengine\b|Speculator\.load|\.generate\(")


def public_classes() -> list[type]:
    """The classes that `jspec` and the modules in its list name as theirs."""
    named = [getattr(jspec, name) for name in jspec.__all__]
    for module in [x for x in named if isinstance(x, ModuleType)]:
        named += [getattr(module, name) for name in getattr(module, "__all__", ())]
    return [x for x in named if inspect.isclass(x) and x.__module__.startswith("jspec.")]


def examples() -> Iterator[doctest.DocTest]:
    """All docstrings of the package with an example, the modules' own too."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for file in sorted(PACKAGE.rglob("*.py")):
        if ">>>" in file.read_text():
            parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
            module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
            yield from (test for test in finder.find(module) if test.examples)


def as_param(test: doctest.DocTest) -> Any:
    """One whose models generate text is slow."""
    asked = [x.source for x in test.examples if not x.options.get(doctest.SKIP)]
    long = LONG.search("".join(asked))
    return pytest.param(test, id=test.name, marks=pytest.mark.slow if long else ())


class OutputChecker(doctest.OutputChecker):
    """An example that shows no output may have any."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


@pytest.mark.parametrize("test", [as_param(test) for test in examples()])
def test_the_example_of_a_docstring_runs(test: doctest.DocTest):
    public = {name: getattr(jspec, name) for name in jspec.__all__}
    names = {"jspec": jspec, "jax": jax, "jnp": jnp, "np": np, **public, **test.globs}
    code = "".join(example.source for example in test.examples)
    for name, load in SHIPPED.items():
        if re.search(rf"\b{name}\b(?! =)", code) and name not in test.globs:
            names[name] = load()
    test.globs = names
    runner = doctest.DocTestRunner(checker=OutputChecker(), verbose=False)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert not runner.failures, "".join(said)


@pytest.mark.parametrize("kind", public_classes(), ids=lambda kind: kind.__name__)
def test_a_public_class_has_an_example(kind: type):
    assert ">>>" in (kind.__doc__ or ""), f"{kind.__module__}.{kind.__name__}: no >>> example"
