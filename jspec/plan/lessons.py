"""A step of distillation, lowered from shapes: no weight of it is ever in memory."""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from jspec.distill.batch import Batch
from jspec.distill.objective import computed_in
from jspec.distill.optimizer import optimizer
from jspec.distill.recipe import Distillation, FeatureHead
from jspec.distill.step import TrainState, program, start, whereabouts
from jspec.distill.student import HeadStudent, ModelStudent, Student
from jspec.models.heads import Head
from jspec.models.protocol import LinenModel, Params
from jspec.parallel.sharding import RULES, Rules, shardings
from jspec.plan.programs import laid


def recipe_for(part: LinenModel | Head, *, length: int, batch: int) -> Distillation:
    """How a draft of that kind is taught at scale, as configs/ do it: bfloat16, layers computed
    again, logits made in pieces. Rows are read whole, which compiles soonest."""
    how = {"model": part.config} if not isinstance(part, Head) else {"head": _told(part)}
    return Distillation(
        name="planned",
        target="planned",
        teacher="bfloat16",
        compute="bfloat16",
        remat=True,
        length=length,
        batch=batch,
        **how,
    )


def step_program(
    recipe: Distillation,
    target: LinenModel,
    part: LinenModel | Head,
    mesh: Mesh,
    rules: Rules = RULES,
) -> tuple[Lowered, TrainState]:
    """The step, and the state that it is given and takes the place of.

    Args:
      rules: where the draft's parameters lie.
    """
    params, own = laid(target, mesh, recipe.teacher), laid(part, mesh, jnp.float32, rules)
    student: Student = ModelStudent(part, own)
    if isinstance(part, Head):
        everywhere = NamedSharding(mesh, PartitionSpec())
        d2t = jax.ShapeDtypeStruct((part.draft_vocabulary,), jnp.int32, sharding=everywhere)
        few = part.draft_vocabulary < target.config.vocabulary
        student = HeadStudent(part, own, d2t if few else None)
    rule, frozen = optimizer(recipe), student.frozen(params)
    with jax.set_mesh(mesh):
        steps = program(
            own,
            frozen,
            objective=computed_in(
                student.objective(recipe, student.reading(target)), recipe.compute
            ),
            optimizer=rule,
            mesh=mesh,
        )
        state = _state(own, rule, mesh)
        return steps.step.lower(state, frozen, _batch(recipe, mesh)), state


def _state(own: Params, rule: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    shapes = jax.eval_shape(functools.partial(start, optimizer=rule), own)
    homes = whereabouts(shapes, own, NamedSharding(mesh, PartitionSpec()))
    return jax.tree.map(
        lambda x, home: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=home), shapes, homes
    )


def _batch(recipe: Distillation, mesh: Mesh) -> Batch:
    home = shardings(mesh, PartitionSpec("batch"))
    whole, told = (recipe.batch, recipe.length + 1), (recipe.batch, recipe.length)
    kinds = [(whole, jnp.int32)] * 2 + [(told, jnp.float32)] * 2 + [(whole[:1], jnp.int32)]
    return Batch(*(jax.ShapeDtypeStruct(*kind, sharding=home) for kind in kinds))


def _told(head: Head) -> FeatureHead:
    if head.kind == "eagle3":
        return FeatureHead(kind="eagle3", features=0.0, logits=1.0, tokens=head.draft_vocabulary)
    return FeatureHead(kind=head.kind)
