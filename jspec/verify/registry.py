"""Verification rules as named objects: what they share, and where a name finds them."""

import difflib
from typing import Any, ClassVar

from jspec.core.candidates import Rule
from jspec.core.tree import DynamicTree, Tree

_RULES: dict[str, Rule] = {}


class NamedRule:
    """A rule that prints and pickles as its name, and says which candidates it is exact for.

    Subclasses are frozen dataclasses with the methods of `Rule`.

    >>> get("coupled"), get("coupled").sources
    (coupled, ('sampled from the draft by the rule', 'chosen by the drafter'))
    """

    name: ClassVar[str]
    needs_draft_logits: ClassVar[bool]
    drafter_invariant: ClassVar[bool]
    sources: ClassVar[tuple[str, ...]]
    """The sources of candidates for which it is exact."""
    why_not: ClassVar[str]
    """Why it is not exact for others, and what would do."""

    def check_compatible(self, tree: Tree | DynamicTree, source: str) -> None:
        """Raises `ValueError` with the reason if the rule is not exact for such candidates."""
        if source not in self.sources:
            raise ValueError(f"rule={self.name!r} with candidates {source}: {self.why_not}")

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return get, (self.name,)


def register(rule: Rule) -> Rule:
    """Makes a rule known by its name, and returns it; a name is taken once."""
    if _RULES.setdefault(rule.name, rule) != rule:
        raise ValueError(f"rule={rule.name!r} is registered already: choose another name")
    return rule


def get(rule: Rule | str) -> Rule:
    """The rule of that name; a rule itself is handed back.

    >>> get("coupled")
    coupled

    Raises `ValueError` for a name that no rule has.
    """
    if not isinstance(rule, str):
        return rule
    if rule not in _RULES:
        near = difflib.get_close_matches(rule, _RULES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"rule={rule!r} is not known: {hint}{', '.join(names())} are")
    return _RULES[rule]


def names() -> tuple[str, ...]:
    """The names of all registered rules, in the order of their registration."""
    return tuple(_RULES)
