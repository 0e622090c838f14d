"""Models and rules as the options of the verbs name them."""

from typing import Literal

from jax.sharding import Mesh

from jspec import verify
from jspec.cli.verb import say
from jspec.core.candidates import Rule
from jspec.draft.draft import Draft
from jspec.formats.huggingface import Checkpoint
from jspec.training.loading import load_model

Dtype = Literal["float32", "bfloat16", "float16"]
LOSSY = "lossy"


def load_target(source: str, dtype: str, mesh: Mesh | None = None) -> Checkpoint:
    """Loads a model that can generate text: one with a tokenizer."""
    target = load_model("target", source, dtype, mesh)
    if target.tokenizer is None:
        raise ValueError(
            f"target={source!r} has no tokenizer: put its tokenizer.json beside config.json"
        )
    return target


# The lossy rule is its study's, which is imported when the rule is asked for.


def find_rule(name: str) -> Rule:
    """The rule of that name; raises `ValueError` for a name that no rule has."""
    if name == LOSSY:
        from jspec.studies.multi_candidate import lossy  # noqa: F401
    return verify.get(name)


def draft_under(rule: str, draft: Draft) -> Draft:
    """The draft as it drafts under a rule: under the lossy one below roots that the target samples.

    Raises `ValueError` for a draft that the lossy rule does not take.
    """
    if rule != LOSSY:
        return draft
    from jspec.studies.multi_candidate.lossy import below_roots

    return below_roots(draft)


def warn_of_loss(*rules: str) -> None:
    """Says what the lossy rule does to the text, if it is among `rules`."""
    if LOSSY in rules:
        from jspec.studies.multi_candidate.lossy import LOSS

        say(LOSS)
