"""What is timed as the forward passes of a round."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import pytest
import tiny_zoo

from jspec import HeadCheckpoint, load
from jspec.bench import breakdown, rounds
from jspec.bench.drafts import HeadDraft, ModelDraft
from jspec.bench.suite import drafted, workload
from jspec.decode import begin
from jspec.models.heads import fspad


def products(program: Any) -> Iterator[tuple]:
    """The shapes that a program multiplies, those of its inner programs too."""
    for equation in program.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(variable.aval.shape for variable in equation.invars)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


@pytest.mark.parametrize("kind", ["model", "head"])
@pytest.mark.parametrize("tree", ["chain:1", "3x2x1"])
def test_the_passes_of_a_round_are_made_and_no_others(models, kind, tree):
    target, small = load(models / "target"), load(models / "wide")
    head = fspad(dataclasses.replace(target.model.config, layers=1))
    own = HeadCheckpoint(head, head.init(jax.random.key(3)), models, "eagle")
    draft = HeadDraft(own, target) if kind == "head" else ModelDraft(small)
    method = drafted("draft", draft, tree, tiny_zoo.CONTEXT)
    work = workload([[1, 2, 3]], batch=1, tokens=6, context=tiny_zoo.CONTEXT, seed=0)
    names = {"target": target.model, "drafter": method.drafter}
    params = target.params, method.draft
    state = begin(*params, work.batches[0], **names, rule=method.rule, tokens=6)
    late = jax.numpy.zeros(breakdown.ROUNDS, bool)
    loops = (
        (
            functools.partial(rounds.whole_rounds, rule=method.rule),
            (work.keys[0], work.sampling(0)),
        ),
        (breakdown._passes, (late,)),
    )
    whole, passes = (
        sorted(products(jax.make_jaxpr(functools.partial(loop, **names))(*params, state, *rest)))
        for loop, rest in loops
    )
    assert whole == passes and whole
