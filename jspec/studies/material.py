"""What a study is made of, beside its recipe."""

from collections.abc import Callable
from typing import NamedTuple

from jspec.distill.recipe import Answers
from jspec.distill.run import Course, prompts
from jspec.distill.texts import Texts
from jspec.formats.huggingface import Checkpoint
from jspec.studies.recipe import TeachingStudy

HOME, AWAY = "in domain", "out of domain"
SEED = 7


class Material(NamedTuple):
    """How drafts are taught, on which texts, and what they are measured on.

    `elsewhere` are texts of another domain; `find` reads a small model of the target's tokens by
    its name.
    """

    course: Course
    texts: Texts
    held_out: Texts
    elsewhere: Texts
    find: Callable[[str], Checkpoint]

    @property
    def domains(self) -> dict[str, Texts]:
        """Texts to measure on."""
        return {HOME: self.held_out, AWAY: self.elsewhere}


def windows(texts: Texts, count: int, recipe: TeachingStudy, *, context: int) -> list[list[int]]:
    """Prompts of `recipe.prompt` tokens, the same in every run; raises `ValueError` if there are
    none as long, or not as many."""
    wanted = Answers(count=count, prompt=recipe.prompt, tokens=recipe.tokens)
    # Those of conversations have lengths of their own; their ends are what an answer hangs on.
    found = [row[-recipe.prompt :] for row in prompts(texts, wanted, context=context, seed=SEED)]
    shortest = min(map(len, found))
    if shortest < recipe.prompt:
        raise ValueError(f"prompt={recipe.prompt}: a prompt has {shortest} tokens: ask for fewer")
    if count > (there := _places(texts, recipe.prompt)):
        raise ValueError(
            f"prompts={count}: the held-out texts hold {there} prompts of {recipe.prompt} tokens: "
            "ask for fewer"
        )
    return [row.tolist() for row in found]


def _places(texts: Texts, length: int) -> int:
    """How many prompts there are."""
    if texts.prompts.any():
        return int((texts.prompts >= length).sum())
    return int((texts.lengths - length + 1).clip(0).sum())
