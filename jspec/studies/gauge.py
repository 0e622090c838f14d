"""What is measured of a draft: at one node, and by decoding."""

from collections.abc import Iterator, Mapping

import jax
import numpy as np

from jspec.core.candidates import Rule
from jspec.core.prompts import prompts as ragged
from jspec.core.sampling import sampling
from jspec.core.tree import Tree
from jspec.decode import autoregress, generate
from jspec.distill.run import Course
from jspec.distill.texts import Texts
from jspec.draft.small_model import SmallModelDrafter
from jspec.models.protocol import Params
from jspec.studies import node
from jspec.studies.material import HOME, SEED, windows
from jspec.studies.recipe import TemperatureStudy
from jspec.studies.records import Record
from jspec.verify import coupled, one_sample, token_level, without_replacement

# Measures: of one draw of the draft `sum min(p, q)`, and of whole decoding.
OVERLAP, PER_ROUND = "overlap", "tokens a round"
NODE_RULES: Mapping[str, Rule] = {
    "top-k": one_sample,
    "recursive rejection": without_replacement,
    "coupled": coupled,
}


def at_node(rule: str) -> str:
    """The measure of a rule at one node with several candidates."""
    return f"one node, {rule}"


def decoded(method: str) -> str:
    """The measure of tokens a round that one of `methods` reaches."""
    return f"{PER_ROUND}, {method}"


def methods(width: int) -> dict[str, tuple[Rule, Tree]]:
    """Rules side by side, each with `width` candidates a round on a tree that suits it."""
    chain, comb = Tree.chain(width), Tree.comb((2,) + (1,) * (width - 2))
    return {
        "token level, chain": (token_level, chain),
        "top-k tree": (one_sample, comb),
        "recursive rejection tree": (without_replacement, comb),
        "coupled tree": (coupled, comb),
        "coupled chain": (coupled, chain),
    }


class Gauge:
    """Prompts of each domain, and what the target wrote after them at each served temperature:
    the same for all drafts."""

    def __init__(
        self,
        recipe: TemperatureStudy,
        course: Course,
        tree: Tree,
        domains: Mapping[str, Texts],
    ) -> None:
        self._recipe, self._tree = recipe, tree
        self._target, self._draft = course.target, course.student.model
        context = course.target.model.config.context
        self._keys = jax.random.split(jax.random.key(SEED), recipe.prompts)
        self._prompts, self._scripts = {}, {}
        for domain, texts in domains.items():
            rows = windows(texts, recipe.prompts, recipe, context=context)
            self._prompts[domain] = ragged(rows, context=context, tokens=recipe.tokens)
            for served in recipe.served:
                self._scripts[domain, served] = self._script(domain, rows, served)

    def records(self, draft: str, seed: int, params: Params, *, compared: bool) -> list[Record]:
        """All numbers of a draft, whose parameters these are.

        Args:
          compared: whether to hold the rules side by side as well, and to draw the draft at other
            temperatures.
        """
        return [
            Record(
                draft=draft,
                seed=seed,
                domain=domain,
                served=served,
                drawn=drawn,
                measure=measure,
                value=value,
            )
            for domain, served in self._scripts
            for measure, drawn, value in (
                *self._common(params, domain, served),
                *(self._compared(params, served) if compared and domain == HOME else ()),
            )
        ]

    def _common(
        self, params: Params, domain: str, served: float
    ) -> Iterator[tuple[str, float | None, float]]:
        for measure, value in self._at_node(params, domain, served, served or 1.0):
            yield measure, None, value
        yield PER_ROUND, None, self._per_round(params, domain, served, coupled, self._tree)

    def _compared(self, params: Params, served: float) -> Iterator[tuple[str, float | None, float]]:
        for name, (rule, tree) in methods(self._recipe.width).items():
            yield decoded(name), None, self._per_round(params, HOME, served, rule, tree)
        # Greedy drafts are the same at any temperature.
        for drawn in self._recipe.drawn if served else ():
            for measure, value in self._at_node(params, HOME, served, drawn):
                yield measure, drawn, value

    def _at_node(
        self, params: Params, domain: str, served: float, drawn: float
    ) -> Iterator[tuple[str, float]]:
        overlap, shares = node.kept(
            self._target.params,
            params,
            self._scripts[domain, served],
            self._keys,
            drawn,
            target=self._target.model,
            draft=self._draft,
            rules=tuple(NODE_RULES.values()),
            width=self._recipe.width,
        )
        yield OVERLAP, float(overlap)
        yield from zip(map(at_node, NODE_RULES), shares.tolist(), strict=True)

    def _per_round(
        self, params: Params, domain: str, served: float, rule: Rule, tree: Tree
    ) -> float:
        return generate(
            self._target.params,
            params,
            self._prompts[domain],
            self._keys,
            sampling(len(self._keys), temperature=served),
            target=self._target.model,
            drafter=SmallModelDrafter(self._draft, tree),
            rule=rule,
            tokens=self._recipe.tokens,
        ).tokens_per_round

    def _script(self, domain: str, rows: list[list[int]], served: float) -> node.Script:
        written = autoregress(
            self._target.params,
            self._prompts[domain],
            self._keys,
            sampling(len(rows), temperature=served),
            target=self._target.model,
            tokens=self._recipe.tokens,
        )
        return node.script(
            self._target.params,
            np.concatenate([np.array(rows, np.int32), np.asarray(written.tokens)], axis=1),
            model=self._target.model,
            prompt=self._recipe.prompt,
            temperature=served,
        )
