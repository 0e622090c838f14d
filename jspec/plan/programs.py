"""The programs of a launch, lowered from shapes: no weight of them is ever in memory."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from jspec.config import ModelConfig
from jspec.core.cache import Block, Cache, commit
from jspec.core.candidates import Rule
from jspec.core.prompts import Prompts
from jspec.core.sampling import sampling
from jspec.decode import begin, generate, speculate
from jspec.draft.protocol import Drafter
from jspec.models.heads import Head, HeadParams
from jspec.models.protocol import LinenModel, LinenPart, Params
from jspec.parallel.sharding import RULES, Rules, cutting, shardings
from jspec.serving import seat
from jspec.verify import coupled


@dataclass(frozen=True, eq=False)
class Launch:
    """What is compiled: models, the shapes of their parameters with where these lie, and how many
    texts of which length they write.

    Attributes:
      batch, prompt, tokens: texts, tokens of each prompt, and new ones of each.
    """

    target: LinenModel
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
        return self._on_mesh(begin.lower, *self._told(), **self._names(), tokens=self.tokens)

    def refill(self) -> Lowered:
        """The same for one text."""
        return self._on_mesh(begin.lower, *self._alone(), **self._names(), tokens=self.tokens)

    def seat(self, state: Any, fresh: Any) -> Lowered:
        """What puts a text that a refill has begun in the place of one that is done."""
        return self._on_mesh(seat.lower, state, fresh, _whole(self.mesh, (), jnp.int32))

    def round(self, state: Any) -> Lowered:
        """One round, which takes the place of the `state` that it is given."""
        advance = functools.partial(speculate, **self._names())
        return self._on_mesh(
            jax.jit(advance, donate_argnums=2).lower,
            self.params, self.draft, state, *self._chance(),
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
        prompts = self._told()
        return self._on_mesh(
            generate.lower, *prompts, *self._chance(), **self._names(), tokens=self.tokens
        )

    def state(self, prefill: Any) -> Any:
        """The state that a compiled `prefill` leaves, as shapes that lie where it leaves them."""
        return self._begun(self._told(), prefill)

    def fresh(self, refill: Any) -> Any:
        """The same of one text, which a compiled `refill` leaves."""
        return self._begun(self._alone(), refill)

    def _begun(self, told: tuple[Any, ...], compiled: Any) -> Any:
        with jax.set_mesh(self.mesh):
            shapes = jax.eval_shape(
                functools.partial(begin, **self._names(), tokens=self.tokens), *told
            )
        return jax.tree.map(_placed, shapes, compiled.output_shardings)

    def _told(self) -> tuple[Any, ...]:
        return self.params, self.draft, self._prompts()

    def _alone(self) -> tuple[Any, ...]:
        alone = jax.tree.map(
            lambda x: _whole(self.mesh, (1, *x.shape[1:]), x.dtype), self._prompts()
        )
        return self.params, self.draft, alone

    def _names(self) -> dict[str, Any]:
        return {"target": self.target, "drafter": self.drafter, "rule": self.rule}

    def _prompts(self) -> Prompts:
        return Prompts(
            self._rows((self.batch, self.prompt), jnp.int32),
            self._rows((self.batch,), jnp.int32),
        )

    def _chance(self) -> tuple[Any, Any]:
        """Keys, and how is sampled."""
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), self.batch))
        law = sampling(self.batch, temperature=1.0)
        return jax.tree.map(lambda x: self._rows(x.shape, x.dtype), (keys, law))

    def _rows(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return rows_on(self.mesh, shape, dtype)

    def _on_mesh(self, lower: Callable[..., Lowered], *told: Any, **names: Any) -> Lowered:
        with jax.set_mesh(self.mesh):
            return lower(*told, **names)


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


def model_passes(model: LinenModel, params: Params, cache: Cache, mesh: Mesh) -> Passes:
    """Those of a model."""

    def run(params: Params, tokens: Array, positions: Array, mask: Array, cache: Cache) -> Array:
        output = model.forward(params, tokens, positions, mask, cache)
        return model.logits(params, output.hidden)

    return Passes(run, params, cache, mesh)


def head_passes(
    head: Head, target: LinenModel, params: HeadParams, cache: Cache, mesh: Mesh
) -> Passes:
    """Those of a head, which reads features of its own."""

    def run(
        params: HeadParams, tokens: Array, positions: Array, mask: Array, cache: Cache
    ) -> Array:
        embedded = head.embed(params, tokens, target=target)
        guess = head.forward(params.head, embedded, embedded, positions, mask, cache)
        return head.logits(params, guess.hidden, target=target)

    return Passes(run, params, cache, mesh)


def laid_cache(config: ModelConfig, mesh: Mesh, batch: int, capacity: int, dtype: Any) -> Cache:
    """The shapes of a full cache: texts over the axes of the data, heads with the parameters."""
    heads = cutting("kv_heads", config.kv_heads, mesh.shape) or None
    length = rows_on(mesh, (batch,), jnp.int32)
    home = NamedSharding(mesh, PartitionSpec(*length.sharding.spec, heads))
    shape = (batch, config.kv_heads, capacity, config.channels)
    rows = tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=home) for _ in range(config.layers))
    return Cache(rows, rows, length)


def rows_on(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """An array with a row for each text, cut as far as the mesh divides it."""
    home = NamedSharding(mesh, PartitionSpec(cutting("batch", shape[0], mesh.shape) or None))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=home)


def laid(part: LinenPart, mesh: Mesh, dtype: Any, rules: Rules = RULES) -> Params:
    """The shapes of a model's parameters, and where on a mesh they lie."""
    shapes = jax.eval_shape(part.init, jax.random.key(0))
    return jax.tree.map(
        lambda x, home: jax.ShapeDtypeStruct(x.shape, dtype, sharding=home),
        shapes,
        shardings(mesh, part.axes(), rules),
    )


def held(arrays: Any) -> int:
    """Bytes of the arrays, given as shapes, on each device."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(arrays)
    )


def _placed(x: jax.ShapeDtypeStruct, home: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home)


def _whole(mesh: Mesh, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))
