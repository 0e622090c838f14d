"""What is timed as the forward passes of a round."""

import dataclasses
import functools

import jax
import pytest
import tiny_zoo
from programs import products

from jspec import HeadCheckpoint, load
from jspec.bench import breakdown
from jspec.bench.suite import drafted, workload
from jspec.decode import budget, start_decoding
from jspec.draft.draft import HeadDraft, ModelDraft
from jspec.models.heads import fspad


@pytest.mark.parametrize("kind", ["model", "head"])
@pytest.mark.parametrize("tree", ["chain:1", "3x2x1"])
def test_the_passes_of_a_round_are_made_and_no_others(models, kind, tree):
    target, small = load(models / "target"), load(models / "wide")
    head = fspad(dataclasses.replace(target.model.config, num_hidden_layers=1))
    own = HeadCheckpoint(head, head.init(jax.random.key(3)), models, "eagle")
    draft = HeadDraft(target, "", own) if kind == "head" else ModelDraft(target, "", small)
    method = drafted("draft", draft, tree, tiny_zoo.CONTEXT)
    work = workload([[1, 2, 3]], batch=1, tokens=6, context=tiny_zoo.CONTEXT, seed=0)
    names = {"target": target.model, "drafter": method.drafter}
    params = target.params, method.draft
    most, room = budget(work.tokens, work.batches[0], target.model)
    state = start_decoding(*params, work.batches[0], most, **names, rule=method.rule, room=room)
    pending = jax.numpy.zeros(breakdown.ROUNDS, bool)
    loops = (
        (
            functools.partial(breakdown.whole_rounds, rule=method.rule),
            (work.keys[0], work.sampling(0)),
        ),
        (breakdown._passes, (pending,)),
    )
    whole, passes = (
        sorted(products(jax.make_jaxpr(functools.partial(loop, **names))(*params, state, *rest)))
        for loop, rest in loops
    )
    assert whole == passes and whole
