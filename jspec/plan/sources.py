"""Where costs come from: what is measured here, what a compiler says, or what a maker declares.

Each is a function of a draft and a batch size that gives the costs of a round and the memory that a
device needs.
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jspec.bench.drafts import Draft, HeadDraft, ModelDraft
from jspec.bench.suite import Workload, workload
from jspec.config import ModelConfig
from jspec.core.cache import Cache
from jspec.core.tree import Tree
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.protocol import Drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.formats.heads import HeadCheckpoint
from jspec.formats.huggingface import Checkpoint
from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import LinenModel, Params
from jspec.models.transformer import observed
from jspec.parallel.memory import free_on
from jspec.parallel.sharding import REPLICATED, RULES, Rules, divides, widest
from jspec.plan.accelerators import Accelerator
from jspec.plan.compiled import NODES, ROWS, Compiled, compile_passes, compiled, needed
from jspec.plan.costs import Costs
from jspec.plan.facts import Overflow
from jspec.plan.measured import costs, level_ms
from jspec.plan.programs import Launch, head_passes, held, laid, laid_cache, model_passes
from jspec.plan.roofline import roofline
from jspec.plan.room import Room
from jspec.plan.sizes import Size, size_of, size_of_head
from jspec.verify import coupled

# Of a round that is compiled, and what a path has at most beyond a text.
COMPILED = Tree.chain(4)
PATH = 16
REPETITIONS = 3
WEIGHED = "weights and caches"


class Contender(NamedTuple):
    """A draft by name: a small model, or a head; `trained` where there are weights of it."""

    name: str
    part: LinenModel | Head
    trained: Draft | None = None


class Work(NamedTuple):
    """How long texts are: tokens before, and new ones."""

    prompt: int
    tokens: int

    @property
    def context(self) -> int:
        """Half-way through."""
        return self.prompt + self.tokens // 2


Source = Callable[[Contender, int], tuple[Costs, Room]]


def declared(
    target: LinenModel,
    chip: Accelerator,
    work: Work,
    *,
    ways: Mapping[str, int],
    dtype: str,
    replicated: bool = False,
) -> Source:
    """From the tables of a maker; memory is that of weights and caches.

    Args:
      ways: how many chips lie along each axis of the mesh.
    """
    theirs, chips = size_of(target, dtype), ways["tensor"] * ways["fsdp"]
    most = widest(target.config)

    def find(draft: Contender, batch: int) -> tuple[Costs, Room]:
        own = size_of_draft(draft.part, target.config, dtype)
        alone = on_each(draft.part, ways, replicated)
        rows = math.ceil(batch / ways["data"])
        found = roofline(
            theirs, own, chip, chips=chips, replicated=alone, batch=rows, context=work.context
        )
        shared = (theirs, chips), (own, 1 if alone else chips)
        weights = sum(math.ceil(size.held / count) for size, count in shared)
        whole = own.held + _caches(own, rows, work) if alone else 0
        room = Room(
            weights + sum(_caches(size, rows, work, count) for size, count in shared),
            int(chip.memory), WEIGHED, weights, batch, bytes=own.bytes,
            devices=math.prod(ways.values()), alone=whole, most=None if chip.slices else most,
        )  # fmt: skip
        return _with_late(found, draft), room

    return find


def compiling(
    target: LinenModel,
    chip: Accelerator,
    mesh: Mesh,
    work: Work,
    *,
    dtype: str,
    replicated: bool = False,
    tick: Callable[[str], None],
) -> Source:
    """From what XLA says of programs that it compiles for chips that are not there."""
    params, targets = laid(target, mesh, dtype), {}
    how = {"ways": mesh.shape, "dtype": dtype, "replicated": replicated}
    guessed, name = declared(target, chip, work, **how), jnp.dtype(dtype)

    def find(draft: Contender, batch: int) -> tuple[Costs, Room]:
        capacity = work.prompt + work.tokens + PATH
        part = draft.part
        own = laid(part, mesh, dtype, _rules(part, mesh.shape, replicated))
        theirs, cache = (
            laid_cache(config, mesh, batch, capacity, name)
            for config in (target.config, part.config)
        )
        room = Room(
            held((params, theirs, own, cache)), int(chip.memory), WEIGHED, held((params, own)),
            batch, bytes=name.itemsize, devices=mesh.size,
            alone=held((own, cache)) if on_each(part, mesh.shape, replicated) else 0,
        )  # fmt: skip
        if not room.fits:
            # XLA would refuse; what it would say of time is declared.
            return guessed(draft, batch)[0], room
        try:
            if batch not in targets:
                passes = model_passes(target, params, theirs, mesh)
                layers = target.config.layers
                targets[batch] = compile_passes(
                    passes, NODES, layers=layers, name="the target", tick=tick
                )
            found = _compile_draft(draft, own, cache, target, params, mesh, tick)
        except Overflow as error:
            over = int(chip.memory) + error.over
            return guessed(draft, batch)[0], replace(room, needed=over, source="compiled")
        took = _with_late(compiled(targets[batch], found, chip), draft)
        return took, replace(room, needed=needed(targets[batch], found), source="compiled")

    return find


def measuring(
    target: Checkpoint,
    work: Work,
    *,
    temperature: float,
    dtype: str,
    tick: Callable[[str], None],
) -> Source:
    """From what is timed on this machine's first device; drafts that nobody trained are filled with
    noise, which takes as long. Raises `ValueError` for a draft that does not fit."""

    @functools.cache
    def loads(batch: int) -> Workload:
        rng = np.random.default_rng(0)
        rows = rng.integers(target.model.config.vocabulary, size=(batch, work.prompt)).tolist()
        context = target.model.config.context
        return workload(rows, batch=batch, tokens=work.tokens, context=context, seed=0)

    known: dict[int, Costs] = {}
    how = {"rule": coupled, "temperature": temperature}
    theirs = size_of(target.model, dtype)

    def find(draft: Contender, batch: int) -> tuple[Costs, Room]:
        room = _room_here(theirs, draft, target.model.config, batch, work, dtype)
        if not room.fits:
            raise ValueError(f"hardware='here': {draft.name} at batch {batch} {room.refusal()}")
        made = draft.trained or untrained(draft.part, target, dtype)
        if draft.trained is None and batch in known:
            # All but its guesses is as with any other draft; wider levels cost as much more.
            tick(f"timing {draft.name}")
            level = level_ms(made, target, loads(batch), **how)
            found = known[batch].guessed_in(level)
        else:
            found = costs(made, target, loads(batch), **how, repetitions=REPETITIONS, tick=tick)
            known[batch] = found
        return found, room

    return find


def remembering(source: Source) -> Source:
    """The same, asked once for each draft's name and batch."""
    known: dict[tuple[str, int], tuple[Costs, Room]] = {}

    def find(draft: Contender, batch: int) -> tuple[Costs, Room]:
        place = draft.name, batch
        if place not in known:
            known[place] = source(draft, batch)
        return known[place]

    return find


def on_each(part: LinenModel | Head, ways: Mapping[str, int], replicated: bool) -> bool:
    """Whether every device has all of a draft: where that is asked for, or it cannot be cut."""
    return replicated or not divides(ways, part.config)


def launch_of(
    target: LinenModel,
    part: LinenModel | Head,
    mesh: Mesh,
    work: Work,
    *,
    batch: int,
    dtype: str,
    replicated: bool = False,
    tree: Tree = COMPILED,
) -> Launch:
    """What is compiled of a target and a draft on a mesh."""
    rules = _rules(part, mesh.shape, replicated)
    params, own = laid(target, mesh, dtype), laid(part, mesh, dtype, rules)
    if isinstance(part, Head):
        target = observed(target, part.layers)
        drafter: Drafter = FeatureDrafter(part, target, tree)
        draft = HeadParams(own, params, _table(part, target.config, mesh))
    else:
        drafter, draft = SmallModelDrafter(part, tree), own
    return Launch(target, params, drafter, draft, mesh, batch, work.prompt, work.tokens)


def size_of_draft(part: LinenModel | Head, target: ModelConfig, dtype: str) -> Size:
    """Of a draft of either kind."""
    return size_of_head(part, target, dtype) if isinstance(part, Head) else size_of(part, dtype)


def noise(part: LinenModel | Head, dtype: str) -> Params:
    """Parameters that nobody trained."""

    def fill(key: Array) -> Params:
        return jax.tree.map(lambda x: x.astype(dtype), part.init(key))

    return jax.jit(fill)(jax.random.key(0))


def untrained(part: LinenModel | Head, target: Checkpoint, dtype: str) -> Draft:
    """A draft of that shape that knows nothing."""
    params = noise(part, dtype)
    if isinstance(part, Head):
        d2t = None
        if part.draft_vocabulary < target.model.config.vocabulary:
            d2t = jnp.zeros(part.draft_vocabulary, jnp.int32)
        return HeadDraft(HeadCheckpoint(part, params, Path(), "", d2t), target)
    return ModelDraft(Checkpoint(part, params, (), Path(), ""))


def _table(part: Head, target: ModelConfig, mesh: Mesh) -> jax.ShapeDtypeStruct | None:
    """The shape of `HeadParams.d2t`."""
    if part.draft_vocabulary == target.vocabulary:
        return None
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.ShapeDtypeStruct((part.draft_vocabulary,), jnp.int32, sharding=everywhere)


def _rules(part: LinenModel | Head, ways: Mapping[str, int], replicated: bool) -> Rules:
    return REPLICATED if on_each(part, ways, replicated) else RULES


def _compile_draft(
    draft: Contender,
    own: Params,
    cache: Cache,
    target: LinenModel,
    params: Params,
    mesh: Mesh,
    tick: Callable[[str], None],
) -> Compiled:
    """The passes of a draft; what a head has of its target is there once."""
    part = draft.part
    how = {"layers": part.config.layers, "name": draft.name, "tick": tick}
    if not isinstance(part, Head):
        return compile_passes(model_passes(part, own, cache, mesh), ROWS, **how)
    both = HeadParams(own, params, _table(part, target.config, mesh))
    found = compile_passes(head_passes(part, target, both, cache, mesh), ROWS, **how)
    return replace(found, held=held((own, cache)))


def _with_late(costs: Costs, draft: Contender) -> Costs:
    """Of a small model, which has not run a leaf that is kept; a guess is a little more than that
    takes, for it needs no logits."""
    return costs if isinstance(draft.part, Head) else replace(costs, late=costs.guess())


def _room_here(
    target: Size, draft: Contender, config: ModelConfig, batch: int, work: Work, dtype: str
) -> Room:
    """Of this machine's first device, before anything of an untrained draft is there."""
    own = size_of_draft(draft.part, config, dtype)
    free, weights = free_on(jax.local_devices()[0]), target.held + own.held
    # Weights that were read are there already.
    there = target.held + (own.held if draft.trained else 0)
    return Room(
        weights + sum(_caches(size, batch, work) for size in (target, own)),
        None if free is None else free + there, WEIGHED, weights, batch, bytes=own.bytes,
    )  # fmt: skip


def _caches(size: Size, batch: int, work: Work, chips: int = 1) -> int:
    rows = batch * (work.prompt + work.tokens + PATH)
    return math.ceil(rows * size.row / chips)
