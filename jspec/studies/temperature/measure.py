"""What is measured of drafts trained at some temperatures: at one node, and by decoding."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jspec import verify
from jspec.bench.suite import Method, Program, plain_program
from jspec.bench.timing import PLAIN
from jspec.core.candidates import Candidates, Rule
from jspec.core.sampling import SamplingParams
from jspec.core.tree import Tree
from jspec.core.tree_text import read_tree
from jspec.draft.draft import Draft
from jspec.draft.small_model import to_vocab_size
from jspec.models.protocol import Model, Params
from jspec.models.teacher_forcing import causal
from jspec.studies.common.measure import (
    DOMAINS,
    IN_DOMAIN,
    Evaluation,
    Material,
    RecordStore,
    time_in_turns,
    timings,
)
from jspec.studies.common.recipe import COUPLED
from jspec.studies.common.records import Measure, Record, Records, records_of
from jspec.studies.temperature.recipe import TemperatureStudy
from jspec.training.checkpoints import Note
from jspec.training.student import trained_part
from jspec.verify.rejection import to_probs

UNTRAINED = "untrained"
# Of which acceptance at one node is measured: EAGLE-2's top-k, recursive rejection, and ours.
NODE_RULES = "one_sample", "without_replacement", COUPLED


def methods(width: int) -> dict[str, tuple[str, str]]:
    """Rules side by side, each with `width` candidates a round on a tree that suits it."""
    chain, comb = f"chain:{width}", f"comb:{'x'.join('2' + '1' * (width - 2))}"
    return {
        "token level, chain": ("token_level", chain),
        "top-k tree": ("one_sample", comb),
        "recursive rejection tree": ("without_replacement", comb),
        "coupled tree": (COUPLED, comb),
        "coupled chain": (COUPLED, chain),
    }


def measure(
    recipe: TemperatureStudy, material: Material, *, mesh: Mesh | None = None, note: Note
) -> Records | None:
    """Trains every draft, measures them all, and times one of each kind beside plain decoding."""
    config = material.setup.target.model.config
    read_tree(recipe.tree, config.max_position_embeddings)
    if recipe.width > config.vocab_size:
        raise ValueError(f"width={recipe.width}: the target has {config.vocab_size} tokens")
    store = RecordStore(recipe)
    note("the target generates what is measured on")
    evaluation = Evaluation(recipe, material.setup.target, material.domains)
    texts = {
        (domain, temperature): _written(evaluation, domain, temperature)
        for domain in DOMAINS
        for temperature in recipe.temperatures
    }
    measured = functools.partial(_measured, recipe, evaluation, texts)
    timed = {UNTRAINED: material.setup.student}
    store.once(f"{UNTRAINED} 0", measured, UNTRAINED, 0, timed[UNTRAINED])
    total = recipe.seeds * len(recipe.train_temperatures)
    for number, (trained_at, seed, run) in enumerate(recipe.runs(), start=1):
        note(f"draft {number} of {total}: trained at {trained_at}, seed {seed}")
        draft = material.train(run, mesh=mesh, note=note)
        if draft is None:
            return None
        store.once(f"{trained_at} {seed}", measured, trained_at, seed, draft)
        timed.setdefault(trained_at, draft)
    return Records([*store.records.all, *_timed(recipe, evaluation, timed)])


def _measured(
    recipe: TemperatureStudy,
    evaluation: Evaluation,
    texts: Mapping[tuple[str, float], tuple[Array, Array]],
    kind: str,
    seed: int,
    draft: Draft,
) -> Iterator[Record]:
    """All numbers of a draft. Of the untrained one and of the reference the rules are measured side
    by side as well, and they are sampled at other temperatures."""
    target, (model, params) = evaluation.target, trained_part(draft)
    context, rules = target.model.config.max_position_embeddings, tuple(map(verify.get, NODE_RULES))

    def at_node(hidden: tuple[Array, Array], own: float, **place: Any) -> Iterator[Record]:
        overlap, shares = node_acceptance(
            target.params, params, hidden, evaluation.keys, (place["temperature"], own),
            target=target.model, draft=model, rules=rules, width=recipe.width,
        )  # fmt: skip
        yield Record(measure=Measure.OVERLAP, value=float(overlap), **place)
        for rule, share in zip(NODE_RULES, shares.tolist(), strict=True):
            yield Record(measure=Measure.NODE_ACCEPTANCE, rule=rule, value=share, **place)

    for (domain, temperature), (text, ours) in texts.items():
        place: dict[str, Any] = {"draft": kind, "seed": seed, "target": recipe.training.target}
        place |= {"domain": domain, "temperature": temperature}
        hidden = ours, hidden_states(params, text, recipe.max_new_tokens, model=model)
        yield from at_node(hidden, temperature or 1.0, **place)
        decoded = {(COUPLED, recipe.tree)}
        if kind in (UNTRAINED, recipe.reference) and domain == IN_DOMAIN:
            decoded |= {*methods(recipe.width).values()}
            # Greedy drafts are the same at any temperature.
            for own in recipe.draft_temperatures if temperature else ():
                yield from at_node(hidden, own, draft_temperature=own, **place)
        for rule, tree in sorted(decoded):
            drafter = draft.drafter(read_tree(tree, context))
            yield from evaluation.acceptance(drafter, params, rule=rule, tree=tree, **place)


def _written(evaluation: Evaluation, domain: str, temperature: float) -> tuple[Array, Array]:
    """A domain's prompts `[B, P + T]` with what the target writes, and its hidden states."""
    target, count = evaluation.target, evaluation.recipe.max_new_tokens
    written = evaluation.plain(domain, temperature).tokens[:, :count]
    texts = jnp.concatenate([jnp.array(evaluation.rows[domain], jnp.int32), written], axis=1)
    return texts, hidden_states(target.params, texts, count, model=target.model)


def _timed(
    recipe: TemperatureStudy, evaluation: Evaluation, timed: Mapping[str, Draft]
) -> Iterator[Record]:
    """One draft of each kind beside plain decoding, a prompt at a time."""
    target, work = evaluation.target, evaluation.work(recipe.timed_prompts)
    tree = read_tree(recipe.tree, target.model.config.max_position_embeddings)
    first = timed[UNTRAINED]
    untrained = Method(UNTRAINED, first.drafter(tree), first.params)
    speculative = Program(untrained, target.model, target.params, work)
    drafted = [speculative.with_draft(name, draft.params) for name, draft in timed.items()]
    for row in time_in_turns([plain_program(target, work), *drafted], work, recipe):
        place: dict[str, Any] = {"draft": row.method, "temperature": row.temperature}
        if row.method != PLAIN:
            place |= {"rule": COUPLED, "tree": recipe.tree}
        place |= {"target": recipe.training.target, "domain": IN_DOMAIN, "batch": 1}
        yield from records_of(timings(row, Measure.TOKENS_PER_SECOND, Measure.SPEEDUP), **place)


@functools.partial(jax.jit, static_argnames=("count", "model"))
def hidden_states(params: Params, texts: Array, count: int, *, model: Model) -> Array:
    """A model's hidden states `[B, count, D]` before each of the last tokens of `texts`."""
    given = texts[:, :-1]
    return model.forward(params, given, *causal(given)).hidden[:, -count:]


@functools.partial(jax.jit, static_argnames=("target", "draft", "rules", "width"))
def node_acceptance(
    params: Params,
    draft_params: Params,
    hidden: tuple[Array, Array],
    keys: Array,
    temperatures: tuple[float, float],
    *,
    target: Model,
    draft: Model,
    rules: tuple[Rule, ...],
    width: int,
) -> tuple[Array, Array]:
    """How often draft tokens for the next token are accepted, on average over the target's texts.

    Args:
      hidden: `[B, T, D]` of target and draft, before each token that the target wrote.
      keys: `[B]`, of all randomness of the rules.
      temperatures: of the texts and the target's distribution, and of the draft's.
      width: candidates of a node.

    Returns:
      Of one draft token `sum min(p, q)`, what token-level rejection accepts of it; and `[rules]`,
      how often each rule accepts one of `width` candidates, by the code that decodes.
    """
    temperature, own = (jnp.asarray(one) for one in temperatures)

    def row(piece: tuple[Array, ...]) -> tuple[Array, Array]:
        ours, theirs, key = piece
        p = target.logits(params, ours) / jnp.where(temperature > 0, temperature, 1)
        q = to_vocab_size(draft.logits(draft_params, theirs), target.config.vocab_size) / own
        probs = jax.vmap(to_probs, (0, None))
        overlap = jnp.minimum(probs(p, temperature), probs(q, temperature)).sum(axis=-1).mean()
        place_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(p)))
        shares = [
            accepted_at_node(place_keys, p, q, temperature, rule=rule, width=width).mean()
            for rule in rules
        ]
        return overlap, jnp.stack(shares)

    overlap, shares = jax.lax.map(row, (*hidden, keys))
    return overlap.mean(), shares.mean(axis=0)


def accepted_at_node(
    keys: Array, target: Array, draft: Array, temperature: Array, *, rule: Rule, width: int
) -> Array:
    """`[n]` bool: whether the rule accepts one of `width` candidates at each of n nodes.

    Args:
      keys: `[n]`; target, draft: `[n, V]` logits, divided by their temperatures.
      temperature: that of the target, at 0 of which both are greedy.
    """
    tree, count = Tree.branching((width,)), len(target)
    temperature = jnp.full((count,), temperature, jnp.float32)
    wanted = replace(SamplingParams.create(count), temperature=temperature)
    length = jnp.ones((count,), jnp.int32)
    randomness = rule.sample_noise(keys, length, wanted, tree=tree, vocab_size=target.shape[-1])
    tokens, there = rule.draw(randomness, draft[:, None], tree=tree, depth=0, nodes=np.array([0]))
    candidates = Candidates(
        tokens=jnp.pad(tokens[:, 0], ((0, 0), (1, 0))),
        parent=jnp.broadcast_to(jnp.asarray(tree.parents), (count, tree.size)),
        valid=jnp.pad(there[:, 0], ((0, 0), (1, 0)), constant_values=True),
        draft_logits=draft[:, None] if rule.needs_draft_logits else None,
    )
    # The target's logits below the root decide nothing.
    everywhere = jnp.broadcast_to(target[:, None], (count, tree.size, target.shape[-1]))
    return rule.verify(randomness, candidates, everywhere, wanted, tree=tree).num_accepted > 1
