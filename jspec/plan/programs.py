"""The programs of a launch and a step of distillation, lowered from shapes: no weight of them is
ever in memory."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from jspec.config import ModelConfig
from jspec.core.cache import Block, Cache, commit
from jspec.core.candidates import Rule
from jspec.core.prompts import PaddedPrompts
from jspec.core.sampling import SamplingParams
from jspec.decode import generate_program, room_for, speculate, start_decoding
from jspec.draft.protocol import Drafter
from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import LinenPart, Params
from jspec.models.transformer import TransformerModel, with_hidden_states
from jspec.parallel.sharding import RULES, Rules, mesh_axes_of, shardings
from jspec.serving import fill_slot
from jspec.training.data import Batch
from jspec.training.objectives import in_dtype
from jspec.training.recipe import Distillation, FeatureHead
from jspec.training.step import (
    TrainState,
    compile_program,
    init_state,
    make_optimizer,
    state_shardings,
)
from jspec.training.student import make_objective
from jspec.verify import coupled


@dataclass(frozen=True, eq=False)
class Launch:
    """What is compiled: models, the shapes and places of their parameters, and how many texts of
    which length they write.

    Attributes:
      batch, prompt, tokens: texts, tokens of each prompt, and new ones of each.
    """

    target: TransformerModel
    params: Params
    drafter: Drafter
    draft: Params
    mesh: Mesh
    batch: int
    prompt: int
    tokens: int
    rule: Rule = coupled

    def prefill(self) -> Lowered:
        """What comes before the first round."""
        return self._on_mesh(
            start_decoding.lower, *self._inputs(), **self._names(), room=self._room
        )

    def refill(self) -> Lowered:
        """The same for one text."""
        return self._on_mesh(
            start_decoding.lower, *self._single(), **self._names(), room=self._room
        )

    def insert(self, state: Any, fresh: Any) -> Lowered:
        """What puts a text that a refill has begun in the slot of one that is finished."""
        return self._on_mesh(fill_slot.lower, state, fresh, _whole(self.mesh, (), jnp.int32))

    def round(self, state: Any) -> Lowered:
        """One round, which overwrites the `state` that it is given."""
        advance = functools.partial(speculate, **self._names())
        return self._on_mesh(
            jax.jit(advance, donate_argnums=2).lower,
            self.params, self.draft, state, *self._randomness(),
        )  # fmt: skip

    def commit(self, state: Any) -> Lowered:
        """What moves the rows of an accepted path into the target's cache."""
        tree = self.drafter.tree
        block = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (*x.shape[:2], tree.size, x.shape[3]), x.dtype, sharding=x.sharding
            ),
            (state.cache.k, state.cache.v),
        )
        path = self._rows((self.batch, tree.path_length), jnp.int32)
        count = self._rows((self.batch,), jnp.int32)
        return self._on_mesh(
            jax.jit(commit, donate_argnums=0).lower, state.cache, Block(*block), path, count
        )

    def generation(self) -> Lowered:
        """Everything from prompts to texts, as one program."""
        return self._on_mesh(
            generate_program.lower,
            *self._inputs()[:-1], *self._randomness(), self._inputs()[-1],
            **self._names(), room=self._room,
        )  # fmt: skip

    def state(self, prefill: Any) -> Any:
        """The state that a compiled `prefill` returns, as shapes with their places."""
        return self._begun(self._inputs(), prefill)

    def fresh(self, refill: Any) -> Any:
        """The same of one text, which a compiled `refill` returns."""
        return self._begun(self._single(), refill)

    def _begun(self, inputs: tuple[Any, ...], compiled: Any) -> Any:
        with jax.set_mesh(self.mesh):
            shapes = jax.eval_shape(
                functools.partial(start_decoding, **self._names(), room=self._room), *inputs
            )
        return jax.tree.map(_placed, shapes, compiled.output_shardings)

    def _inputs(self) -> tuple[Any, ...]:
        most = self._rows((self.batch,), jnp.int32)
        return self.params, self.draft, self._prompts(), most

    def _single(self) -> tuple[Any, ...]:
        single = jax.tree.map(
            lambda x: _whole(self.mesh, (1, *x.shape[1:]), x.dtype), self._prompts()
        )
        return self.params, self.draft, single, _whole(self.mesh, (1,), jnp.int32)

    @property
    def _room(self) -> int:
        return room_for(self.tokens)

    def _names(self) -> dict[str, Any]:
        return {"target": self.target, "drafter": self.drafter, "rule": self.rule}

    def _prompts(self) -> PaddedPrompts:
        return PaddedPrompts(
            self._rows((self.batch, self.prompt), jnp.int32), self._rows((self.batch,), jnp.int32)
        )

    def _randomness(self) -> tuple[Any, Any]:
        """Keys, and the sampling parameters."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.batch))
        how = SamplingParams.create(self.batch, temperature=1.0)
        return jax.tree.map(lambda x: self._rows(x.shape, x.dtype), (keys, how))

    def _rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return rows_on(self.mesh, shape, dtype)

    def _on_mesh(self, lower: Callable[..., Lowered], *inputs: Any, **names: Any) -> Lowered:
        with jax.set_mesh(self.mesh):
            return lower(*inputs, **names)


@dataclass(frozen=True, eq=False)
class Passes:
    """Passes over new rows of texts whose caches are full: `run` takes `params`, tokens and
    positions `[B, N]`, a mask `[N, N]` and `cache`, and gives logits `[B, N, V]`."""

    run: Callable[[Params, Array, Array, Array, Cache], Array]
    params: Params
    cache: Cache
    mesh: Mesh

    def lower(self, nodes: int) -> Lowered:
        """The likeliest tokens after `nodes` rows."""

        def likeliest(params: Params, tokens: Array, positions: Array, cache: Cache) -> Array:
            mask = jnp.tril(jnp.ones((nodes, nodes), bool))
            return jnp.argmax(self.run(params, tokens, positions, mask, cache), axis=-1)

        batch = self.cache.length.shape[0]
        rows = rows_on(self.mesh, (batch, nodes), jnp.int32)
        with jax.set_mesh(self.mesh):
            return jax.jit(likeliest).lower(self.params, rows, rows, self.cache)


def model_passes(model: TransformerModel, params: Params, cache: Cache, mesh: Mesh) -> Passes:
    """Those of a model."""

    def run(params: Params, tokens: Array, positions: Array, mask: Array, cache: Cache) -> Array:
        output = model.forward(params, tokens, positions, mask, cache)
        return model.logits(params, output.hidden)

    return Passes(run, params, cache, mesh)


def head_passes(
    head: Head, target: TransformerModel, params: HeadParams, cache: Cache, mesh: Mesh
) -> Passes:
    """Those of a head, which reads features of its own."""

    def run(
        params: HeadParams, tokens: Array, positions: Array, mask: Array, cache: Cache
    ) -> Array:
        embedded = head.embed(params, tokens, target=target)
        output = head.forward(params.head, embedded, embedded, positions, mask, cache)
        return head.logits(params, output.hidden, target=target)

    return Passes(run, params, cache, mesh)


def cache_shapes(config: ModelConfig, mesh: Mesh, batch: int, capacity: int, dtype: Any) -> Cache:
    """A full cache as shapes with their places: texts over the axes of the data, heads with the
    parameters."""
    heads = mesh_axes_of("num_key_value_heads", config.num_key_value_heads, mesh.shape) or None
    length = rows_on(mesh, (batch,), jnp.int32)
    place = NamedSharding(mesh, PartitionSpec(*length.sharding.spec, heads))
    shape = (batch, config.num_key_value_heads, capacity, config.head_dim)
    rows = tuple(
        jax.ShapeDtypeStruct(shape, dtype, sharding=place) for _ in range(config.num_hidden_layers)
    )
    return Cache(rows, rows, length)


def rows_on(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An array with a row for each text, split as far as the mesh divides it."""
    place = NamedSharding(mesh, PartitionSpec(mesh_axes_of("batch", shape[0], mesh.shape) or None))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def parameter_shapes(part: LinenPart, mesh: Mesh, dtype: Any, rules: Rules = RULES) -> Params:
    """The shapes of a model's parameters, and their places on a mesh."""
    shapes = jax.eval_shape(part.init, jax.random.key(0))
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, dtype, sharding=place),
        shapes,
        shardings(mesh, part.axes(), rules),
    )


def d2t_shape(part: Head, target: ModelConfig, mesh: Mesh) -> jax.ShapeDtypeStruct | None:
    """The shape of `HeadParams.d2t`; None for a head that has all of the target's tokens."""
    if part.draft_vocab_size == target.vocab_size:
        return None
    return _whole(mesh, (part.draft_vocab_size,), jnp.int32)


def stored_bytes(arrays: Any) -> int:
    """Bytes of the arrays, given as shapes, on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )


def recipe_for(part: TransformerModel | Head, *, length: int, batch: int) -> Distillation:
    """How a draft of that kind is trained at scale, as in configs/: bfloat16, layers recomputed,
    logits in chunks. Rows are read whole, which compiles soonest."""
    how = {"model": part.config} if not isinstance(part, Head) else {"head": _head_recipe(part)}
    return Distillation(
        name="planned",
        target="planned",
        teacher_dtype="bfloat16",
        compute_dtype="bfloat16",
        remat=True,
        sequence_length=length,
        batch_size=batch,
        **how,
    )


def distillation_step(
    recipe: Distillation,
    target: TransformerModel,
    part: TransformerModel | Head,
    mesh: Mesh,
    rules: Rules = RULES,
) -> tuple[Lowered, TrainState]:
    """The step, and the state that it is given and overwrites.

    Args:
      rules: for the places of the draft's parameters.
    """
    params = parameter_shapes(target, mesh, recipe.teacher_dtype)
    own = parameter_shapes(part, mesh, jnp.float32, rules)
    frozen: Params = params
    if isinstance(part, Head):
        frozen = HeadParams((), params, d2t_shape(part, target.config, mesh))
        target = with_hidden_states(target, part.layers)
    optimiser = make_optimizer(recipe)
    with jax.set_mesh(mesh):
        steps = compile_program(
            own,
            frozen,
            objective=in_dtype(make_objective(part, recipe, target), recipe.compute_dtype),
            optimizer=optimiser,
            mesh=mesh,
        )
        state = _train_state(own, optimiser, mesh)
        return steps.step.lower(state, frozen, _batch(recipe, mesh)), state


def _placed(x: jax.ShapeDtypeStruct, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)


def _whole(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))


def _train_state(own: Params, optimiser: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    shapes = jax.eval_shape(functools.partial(init_state, optimizer=optimiser), own)
    places = state_shardings(shapes, own, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )


def _batch(recipe: Distillation, mesh: Mesh) -> Batch:
    place = shardings(mesh, PartitionSpec("batch"))
    tokens, targets = (
        (recipe.batch_size, recipe.sequence_length + 1),
        (recipe.batch_size, recipe.sequence_length),
    )
    kinds = [(tokens, jnp.int32)] * 2 + [(targets, jnp.float32)] * 2 + [(tokens[:1], jnp.int32)]
    return Batch(*(jax.ShapeDtypeStruct(*kind, sharding=place) for kind in kinds))


def _head_recipe(head: Head) -> FeatureHead:
    if head.kind == "eagle3":
        return FeatureHead(
            kind="eagle3",
            feature_weight=0.0,
            logits_weight=1.0,
            draft_vocab_size=head.draft_vocab_size,
        )
    return FeatureHead(kind=head.kind)
