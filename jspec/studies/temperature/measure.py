"""What is measured of drafts trained at some temperatures: at one node, and by decoding."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jspec import verify
from jspec.bench.suite import Method, Program
from jspec.bench.timing import PLAIN
from jspec.core.candidates import Candidates, Rule
from jspec.core.sampling import SamplingParams
from jspec.core.tree import Tree
from jspec.core.tree_text import read_tree
from jspec.models.protocol import Model, Params
from jspec.studies.common.measure import (
    IN_DOMAIN,
    Evaluation,
    Material,
    acceptance,
    time_in_turns,
    timings,
)
from jspec.studies.common.recipe import COUPLED
from jspec.studies.common.records import Measure, Record, Records, RecordStore
from jspec.studies.temperature.recipe import TemperatureStudy
from jspec.training.checkpoints import Note
from jspec.training.data import Batch
from jspec.training.objectives import forward_in_chunks
from jspec.training.run import TrainSetup, run_distillation
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
    """Trains every draft, measures them all, and times one of each kind beside plain decoding.

    What is done is kept below `output/name`, and not done again. None if the machine was taken
    away meanwhile.
    """
    setup = material.setup
    initial = trained_part(setup.student)[1]
    config = setup.target.model.config
    read_tree(recipe.tree, config.max_position_embeddings)
    if recipe.width > config.vocab_size:
        raise ValueError(f"width={recipe.width}: the target has {config.vocab_size} tokens")
    store = RecordStore(recipe)
    note("the target generates what is measured on")
    evaluation = Evaluation(recipe, setup.target, material.domains)
    measured = _Measurement(recipe, setup, evaluation)

    def once(draft: str, seed: int, params: Params) -> None:
        compared = draft in (UNTRAINED, recipe.reference)
        store.once(f"{draft} {seed}", lambda: measured.of(draft, seed, params, compared=compared))

    once(UNTRAINED, 0, initial)
    timed = {UNTRAINED: initial}
    total = recipe.seeds * len(recipe.train_temperatures)
    for number, (trained_at, seed, run) in enumerate(recipe.runs(), start=1):
        note(f"draft {number} of {total}: trained at {trained_at}, seed {seed}")
        done = run_distillation(run, setup, material.texts, material.held_out, mesh=mesh, note=note)
        if done.step < run.steps:
            return None
        once(trained_at, seed, done.params)
        timed.setdefault(trained_at, done.params)
    return Records([*store.records.all, *_timed(recipe, setup, evaluation, timed)])


class _Measurement:
    """What the target generates at each temperature, and what drafts make of it."""

    def __init__(self, recipe: TemperatureStudy, setup: TrainSetup, evaluation: Evaluation) -> None:
        self._recipe, self._evaluation = recipe, evaluation
        self._target, self._student = setup.target, setup.student
        self._texts = {
            (domain, temperature): self._write(domain, rows, temperature)
            for domain, rows in evaluation.rows.items()
            for temperature in recipe.temperatures
        }

    def of(self, draft: str, seed: int, params: Params, *, compared: bool) -> Iterator[Record]:
        """All numbers of a draft, whose parameters these are.

        Args:
          compared: whether to measure the rules side by side as well, and to sample the draft at
            other temperatures.
        """
        recipe, context = self._recipe, self._target.model.config.max_position_embeddings
        named = {"draft": draft, "seed": seed, "target": recipe.training.target}
        for place in self._texts:
            domain, temperature = place
            here = functools.partial(Record, domain=domain, temperature=temperature, **named)
            yield from self._at_node(here, params, place, temperature or 1.0)
            decoded = {(COUPLED, recipe.tree)}
            if compared and domain == IN_DOMAIN:
                decoded |= {*methods(recipe.width).values()}
                # Greedy drafts are the same at any temperature.
                for own in recipe.draft_temperatures if temperature else ():
                    there = functools.partial(here, draft_temperature=own)
                    yield from self._at_node(there, params, place, own)
            for rule, tree in sorted(decoded):
                drafter = self._student.drafter(read_tree(tree, context))
                found = self._evaluation.decode(domain, temperature, drafter, params, rule)
                yield from acceptance(found, functools.partial(here, rule=rule, tree=tree))

    def _at_node(
        self, here: functools.partial, params: Params, place: tuple[str, float], own: float
    ) -> Iterator[Record]:
        overlap, shares = node_acceptance(
            self._target.params, params, self._texts[place], self._evaluation.keys, own,
            target=self._target.model, draft=trained_part(self._student)[0],
            rules=tuple(map(verify.get, NODE_RULES)), width=self._recipe.width,
        )  # fmt: skip
        yield here(measure=Measure.OVERLAP, value=float(overlap))
        for rule, share in zip(NODE_RULES, shares.tolist(), strict=True):
            yield here(measure=Measure.NODE_ACCEPTANCE, rule=rule, value=share)

    def _write(self, domain: str, rows: list[list[int]], temperature: float) -> "TargetTexts":
        generated = self._evaluation.plain(domain, temperature).tokens
        generated = np.asarray(generated)[:, : self._recipe.max_new_tokens]
        return target_texts(
            self._target.params, np.concatenate([np.array(rows, np.int32), generated], axis=1),
            model=self._target.model, prompt_length=self._recipe.prompt_length,
            temperature=temperature,
        )  # fmt: skip


def _timed(
    recipe: TemperatureStudy,
    setup: TrainSetup,
    evaluation: Evaluation,
    timed: Mapping[str, Params],
) -> Iterator[Record]:
    """One draft of each kind beside plain decoding, a prompt at a time."""
    target, work = setup.target, evaluation.timed_work()
    tree = read_tree(recipe.tree, target.model.config.max_position_embeddings)
    untrained = Method(UNTRAINED, setup.student.drafter(tree), timed[UNTRAINED])
    speculative = Program(untrained, target.model, target.params, work)
    programs = [
        Program(Method(PLAIN), target.model, target.params, work),
        *(speculative.with_draft(name, params) for name, params in timed.items()),
    ]
    named = {"target": recipe.training.target, "domain": IN_DOMAIN, "batch": 1}
    for row in time_in_turns(programs, work, recipe.temperatures, recipe.repetitions):
        here = functools.partial(Record, draft=row.method, temperature=row.temperature, **named)
        if row.method != PLAIN:
            here = functools.partial(here, rule=COUPLED, tree=recipe.tree)
        for name, value in timings(row, Measure.TOKENS_PER_SECOND, Measure.SPEEDUP):
            yield here(measure=name, value=value)


class TargetTexts(NamedTuple):
    """Texts of the target: `batch` of B rows, whose last T `places` `[T]` follow the prompts, at
    the `temperature` that they were sampled at; `hidden` `[B, T, D]` the target's."""

    batch: Batch
    places: Array
    temperature: float
    hidden: Array


def target_texts(
    params: Params, texts: np.ndarray, *, model: Model, prompt_length: int, temperature: float
) -> TargetTexts:
    """The target's side of its own texts `[B, P + T]`, of which P = `prompt_length` were given."""
    rows, length = texts.shape
    batch = Batch(
        tokens=jnp.asarray(texts),
        document=jnp.zeros((rows, length), jnp.int32),
        weight=jnp.ones((rows, length - 1)),
        temperature=jnp.full((rows, length - 1), temperature, jnp.float32),
        number=jnp.arange(rows),
    )
    places = jnp.arange(prompt_length - 1, length - 1)
    return TargetTexts(batch, places, temperature, _hidden(params, batch, places, model=model))


@functools.partial(jax.jit, static_argnames=("target", "draft", "rules", "width"))
def node_acceptance(
    params: Params,
    draft_params: Params,
    texts: TargetTexts,
    keys: Array,
    draft_temperature: float | Array,
    *,
    target: Model,
    draft: Model,
    rules: tuple[Rule, ...],
    width: int,
) -> tuple[Array, Array]:
    """How often draft tokens for the next token are accepted, on average over the target's texts.

    Args:
      keys: `[B]`, of all randomness of the rules.
      draft_temperature: of the draft's distribution; the target's is that of the texts.
      width: candidates of a node.

    Returns:
      Of one draft token `sum min(p, q)`, what token-level rejection accepts of it; and `[rules]`,
      how often each rule accepts one of `width` candidates, by the code that decodes.
    """
    vocabulary = target.config.vocab_size
    hidden = _hidden(draft_params, texts.batch, texts.places, model=draft)
    temperature = jnp.asarray(texts.temperature)

    def row(piece: tuple[Array, ...]) -> tuple[Array, Array]:
        ours, theirs, key = piece
        p = target.logits(params, ours) / jnp.where(temperature > 0, temperature, 1)
        q = draft.logits(draft_params, theirs)[..., :vocabulary] / draft_temperature
        missing = vocabulary - q.shape[-1]
        q = jnp.pad(q, ((0, 0), (0, missing)), constant_values=-jnp.inf)
        probs = jax.vmap(to_probs, (0, None))
        overlap = jnp.minimum(probs(p, temperature), probs(q, temperature)).sum(axis=-1).mean()
        place_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(p)))
        shares = [
            accepted_at_node(place_keys, p, q, temperature, rule=rule, width=width).mean()
            for rule in rules
        ]
        return overlap, jnp.stack(shares)

    overlap, shares = jax.lax.map(row, (texts.hidden, hidden, keys))
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


@functools.partial(jax.jit, static_argnames=("model",))
def _hidden(params: Params, batch: Batch, places: Array, *, model: Model) -> Array:
    ((_, output),) = forward_in_chunks(params, batch, model=model)
    return output.hidden[:, places]
