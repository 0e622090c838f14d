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

from jspec.bench.suite import Workload, workload
from jspec.config import ModelConfig
from jspec.core.cache import Cache
from jspec.core.tree import Tree
from jspec.decode import room_for
from jspec.draft.draft import Draft, HeadDraft, ModelDraft
from jspec.draft.feature_head import FeatureDrafter
from jspec.draft.protocol import Drafter
from jspec.draft.small_model import SmallModelDrafter
from jspec.formats.heads import HeadCheckpoint
from jspec.formats.huggingface import Checkpoint
from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import Params
from jspec.models.transformer import TransformerModel, with_hidden_states
from jspec.parallel.memory import free_memory
from jspec.parallel.sharding import REPLICATED, RULES, Rules, divides, most_tensor_devices
from jspec.plan.compiled import (
    NODES,
    ROWS,
    CompiledPasses,
    OutOfMemoryError,
    compile_passes,
    compiled_costs,
    needed_bytes,
)
from jspec.plan.hardware import Accelerator
from jspec.plan.programs import (
    Launch,
    cache_shapes,
    d2t_shape,
    head_passes,
    model_passes,
    parameter_shapes,
    stored_bytes,
)
from jspec.plan.roofline import roofline
from jspec.plan.sizes import MemoryFit, Size, size_of, size_of_draft
from jspec.tuning.costs import Costs, measure_costs, measure_level
from jspec.verify import coupled

# The tree of a round that is compiled, and what a path has at most beyond a text.
COMPILED = Tree.chain(4)
PATH = 16
REPETITIONS = 3
WEIGHED = "weights and caches"


class PlannedDraft(NamedTuple):
    """A draft by name: the module of a small model or of a head, and the loaded draft where there
    are weights of it."""

    name: str
    part: TransformerModel | Head
    trained: Draft | None = None


class TextLengths(NamedTuple):
    """Tokens of a prompt, and new ones."""

    prompt: int
    tokens: int

    @property
    def context(self) -> int:
        """Half-way through."""
        return self.prompt + self.tokens // 2

    @property
    def capacity(self) -> int:
        """The most rows that a cache holds, with the path of a round."""
        return self.prompt + room_for(self.tokens) + PATH


Source = Callable[[PlannedDraft, int], tuple[Costs, MemoryFit]]


def declared(
    target: TransformerModel,
    chip: Accelerator,
    lengths: TextLengths,
    *,
    mesh_shape: Mapping[str, int],
    dtype: str,
    replicated: bool = False,
) -> Source:
    """From a maker's tables; memory is that of weights and caches.

    Args:
      mesh_shape: how many chips there are along each axis of the mesh.
    """
    theirs, chips = size_of(target, dtype), mesh_shape["tensor"] * mesh_shape["fsdp"]
    most = most_tensor_devices(target.config)

    def find(draft: PlannedDraft, batch: int) -> tuple[Costs, MemoryFit]:
        own = size_of_draft(draft.part, target.config, dtype)
        whole = on_each(draft.part, mesh_shape, replicated)
        rows = math.ceil(batch / mesh_shape["data"])
        found = roofline(
            theirs, own, chip, chips=chips, replicated=whole, batch=rows, context=lengths.context
        )
        shared = (theirs, chips), (own, 1 if whole else chips)
        weights = sum(math.ceil(size.stored / count) for size, count in shared)
        memory = MemoryFit(
            weights + sum(_caches(size, rows, lengths, count) for size, count in shared),
            int(chip.memory), WEIGHED, weights, batch, bytes=own.bytes,
            devices=math.prod(mesh_shape.values()),
            replicated=own.stored + _caches(own, rows, lengths) if whole else 0,
            most=None if chip.slices else most,
        )  # fmt: skip
        return _with_pending(found, draft), memory

    return find


def compiling(
    target: TransformerModel,
    chip: Accelerator,
    mesh: Mesh,
    lengths: TextLengths,
    *,
    dtype: str,
    replicated: bool = False,
    tick: Callable[[str], None],
) -> Source:
    """From what XLA says of programs that it compiles for chips that are not present."""
    params, targets = parameter_shapes(target, mesh, dtype), {}
    how = {"mesh_shape": mesh.shape, "dtype": dtype, "replicated": replicated}
    estimate, kind = declared(target, chip, lengths, **how), jnp.dtype(dtype)

    def find(draft: PlannedDraft, batch: int) -> tuple[Costs, MemoryFit]:
        part = draft.part
        own = parameter_shapes(part, mesh, dtype, _rules(part, mesh.shape, replicated))
        theirs, cache = (
            cache_shapes(config, mesh, batch, lengths.capacity, kind)
            for config in (target.config, part.config)
        )
        whole = on_each(part, mesh.shape, replicated)
        memory = MemoryFit(
            stored_bytes((params, theirs, own, cache)), int(chip.memory), WEIGHED,
            stored_bytes((params, own)), batch, bytes=kind.itemsize, devices=mesh.size,
            replicated=stored_bytes((own, cache)) if whole else 0,
        )  # fmt: skip
        if not memory.fits:
            # XLA would refuse; the time is what the maker declares.
            return estimate(draft, batch)[0], memory
        try:
            if batch not in targets:
                passes = model_passes(target, params, theirs, mesh)
                layers = target.config.num_hidden_layers
                targets[batch] = compile_passes(
                    passes, NODES, layers=layers, name="the target", tick=tick
                )
            found = _compile_draft(draft, own, cache, target, params, mesh, tick)
        except OutOfMemoryError as error:
            over = int(chip.memory) + error.over
            return estimate(draft, batch)[0], replace(memory, needed=over, source="compiled")
        costs = _with_pending(compiled_costs(targets[batch], found, chip), draft)
        needed = needed_bytes(targets[batch], found)
        return costs, replace(memory, needed=needed, source="compiled")

    return find


def measuring(
    target: Checkpoint,
    lengths: TextLengths,
    *,
    temperature: float,
    dtype: str,
    tick: Callable[[str], None],
) -> Source:
    """From what is timed on this machine's first device; drafts without weights are filled with
    noise, which takes as long. Raises `ValueError` for a draft that does not fit."""

    @functools.cache
    def loads(batch: int) -> Workload:
        rng = np.random.default_rng(0)
        rows = rng.integers(target.model.config.vocab_size, size=(batch, lengths.prompt)).tolist()
        context = target.model.config.max_position_embeddings
        return workload(rows, batch=batch, tokens=lengths.tokens, context=context, seed=0)

    known: dict[int, Costs] = {}
    how = {"rule": coupled, "temperature": temperature}
    theirs = size_of(target.model, dtype)

    def find(draft: PlannedDraft, batch: int) -> tuple[Costs, MemoryFit]:
        memory = _memory_here(theirs, draft, target.model.config, batch, lengths, dtype)
        if not memory.fits:
            raise ValueError(f"hardware='here': {draft.name} at batch {batch} {memory.refusal()}")
        made = draft.trained or untrained(draft.part, target, dtype)
        if draft.trained is None and batch in known:
            # All but its drafting is as with any other draft; wider levels cost as much more.
            tick(f"timing {draft.name}")
            level = measure_level(made, target, loads(batch), **how)
            found = known[batch].with_draft_level(level)
        else:
            found = measure_costs(
                made, target, loads(batch), **how, repetitions=REPETITIONS, tick=tick
            )
            known[batch] = found
        return found, memory

    return find


def cached(source: Source) -> Source:
    """The same, asked once for each draft's name and batch."""
    known: dict[tuple[str, int], tuple[Costs, MemoryFit]] = {}

    def find(draft: PlannedDraft, batch: int) -> tuple[Costs, MemoryFit]:
        place = draft.name, batch
        if place not in known:
            known[place] = source(draft, batch)
        return known[place]

    return find


def on_each(part: TransformerModel | Head, mesh_shape: Mapping[str, int], replicated: bool) -> bool:
    """Whether every device has the whole draft: where that is asked for, or it cannot be split."""
    return replicated or not divides(mesh_shape, part.config)


def launch_of(
    target: TransformerModel,
    part: TransformerModel | Head,
    mesh: Mesh,
    lengths: TextLengths,
    *,
    batch: int,
    dtype: str,
    replicated: bool = False,
    tree: Tree = COMPILED,
) -> Launch:
    """What is compiled of a target and a draft on a mesh."""
    rules = _rules(part, mesh.shape, replicated)
    params = parameter_shapes(target, mesh, dtype)
    own = parameter_shapes(part, mesh, dtype, rules)
    if isinstance(part, Head):
        target = with_hidden_states(target, part.layers)
        drafter: Drafter = FeatureDrafter(part, target, tree)
        draft = HeadParams(own, params, d2t_shape(part, target.config, mesh))
    else:
        drafter, draft = SmallModelDrafter(part, tree), own
    return Launch(target, params, drafter, draft, mesh, batch, lengths.prompt, lengths.tokens)


def random_params(part: TransformerModel | Head, dtype: str) -> Params:
    """Parameters of a part that nobody trained."""

    def fill(key: Array) -> Params:
        return jax.tree.map(lambda x: x.astype(dtype), part.init(key))

    return jax.jit(fill)(jax.random.key(0))


def untrained(part: TransformerModel | Head, target: Checkpoint, dtype: str) -> Draft:
    """A draft with random parameters."""
    params = random_params(part, dtype)
    if isinstance(part, Head):
        d2t = None
        if part.draft_vocab_size < target.model.config.vocab_size:
            d2t = jnp.zeros(part.draft_vocab_size, jnp.int32)
        return HeadDraft(target, "", HeadCheckpoint(part, params, Path(), "", d2t))
    return ModelDraft(target, "", Checkpoint(part, params, (), Path(), ""))


def _rules(part: TransformerModel | Head, mesh_shape: Mapping[str, int], replicated: bool) -> Rules:
    return REPLICATED if on_each(part, mesh_shape, replicated) else RULES


def _compile_draft(
    draft: PlannedDraft,
    own: Params,
    cache: Cache,
    target: TransformerModel,
    params: Params,
    mesh: Mesh,
    tick: Callable[[str], None],
) -> CompiledPasses:
    """The passes of a draft; what a head uses of its target is stored once."""
    part = draft.part
    how = {"layers": part.config.num_hidden_layers, "name": draft.name, "tick": tick}
    if not isinstance(part, Head):
        return compile_passes(model_passes(part, own, cache, mesh), ROWS, **how)
    both = HeadParams(own, params, d2t_shape(part, target.config, mesh))
    found = compile_passes(head_passes(part, target, both, cache, mesh), ROWS, **how)
    return replace(found, stored=stored_bytes((own, cache)))


def _with_pending(costs: Costs, draft: PlannedDraft) -> Costs:
    """Of a small model, which has not run an accepted leaf; a level of drafting takes a little more
    than that, for a pending token needs no logits."""
    pending = 0.0 if isinstance(draft.part, Head) else costs.draft_level()
    return replace(costs, pending=pending)


def _memory_here(
    target: Size,
    draft: PlannedDraft,
    config: ModelConfig,
    batch: int,
    lengths: TextLengths,
    dtype: str,
) -> MemoryFit:
    """Of this machine's first device, before anything of an untrained draft is allocated."""
    own = size_of_draft(draft.part, config, dtype)
    free, weights = free_memory(jax.local_devices()[0]), target.stored + own.stored
    # Weights that were loaded are in memory already.
    loaded = target.stored + (own.stored if draft.trained else 0)
    return MemoryFit(
        weights + sum(_caches(size, batch, lengths) for size in (target, own)),
        None if free is None else free + loaded, WEIGHED, weights, batch, bytes=own.bytes,
    )  # fmt: skip


def _caches(size: Size, batch: int, lengths: TextLengths, chips: int = 1) -> int:
    return math.ceil(batch * lengths.capacity * size.cache_row / chips)
