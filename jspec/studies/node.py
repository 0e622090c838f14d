"""How often a guess is kept at one node, on text that the target wrote itself."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.candidates import Candidates, Rule
from jspec.core.sampling import sampling
from jspec.core.tree import Tree
from jspec.distill.batch import Batch
from jspec.distill.objective import read
from jspec.models.protocol import Model, Params
from jspec.verify.rejection import law


class Script(NamedTuple):
    """Texts to be read again: `batch` of B rows, whose last T `places` `[T]` come after the
    prompts, at the `temperature` that they were written at; `hidden` `[B, T, D]` the target's."""

    batch: Batch
    places: Array
    temperature: float
    hidden: Array


def script(
    params: Params, texts: np.ndarray, *, model: Model, prompt: int, temperature: float
) -> Script:
    """The target's side of its own texts `[B, P + T]`, of which P = `prompt` were given."""
    rows, length = texts.shape
    batch = Batch(
        tokens=jnp.asarray(texts),
        document=jnp.zeros((rows, length), jnp.int32),
        weight=jnp.ones((rows, length - 1)),
        temperature=jnp.full((rows, length - 1), temperature, jnp.float32),
        number=jnp.arange(rows),
    )
    places = jnp.arange(prompt - 1, length - 1)
    return Script(batch, places, temperature, _hidden(params, batch, places, model=model))


@functools.partial(jax.jit, static_argnames=("target", "draft", "rules", "width"))
def kept(
    params: Params,
    draft_params: Params,
    script: Script,
    keys: Array,
    drawn: Array,
    *,
    target: Model,
    draft: Model,
    rules: tuple[Rule, ...],
    width: int,
) -> tuple[Array, Array]:
    """What is kept on average of a draft's guesses of the next token, sampled at `drawn`.

    Args:
      keys: `[B]`, of all that the rules roll.
      drawn: the temperature of the draft's law; the target's is the script's.
      width: candidates of a node.

    Returns:
      Of one draw `sum min(p, q)`, what token-level rejection keeps of it; and `[rules]`, how often
      each rule keeps one of `width` candidates, by the code that decodes.
    """
    vocabulary = target.config.vocabulary
    hidden = _hidden(draft_params, script.batch, script.places, model=draft)
    served = script.temperature

    def row(piece: tuple[Array, ...]) -> tuple[Array, Array]:
        ours, theirs, key = piece
        p = target.logits(params, ours) / jnp.where(served > 0, served, 1)
        q = draft.logits(draft_params, theirs)[..., :vocabulary] / drawn
        missing = vocabulary - q.shape[-1]
        q = jnp.pad(q, ((0, 0), (0, missing)), constant_values=-jnp.inf)
        laws = jax.vmap(law, (0, None))
        overlap = jnp.minimum(laws(p, served), laws(q, served)).sum(axis=-1).mean()
        dice = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(p)))
        shares = [one_node(dice, p, q, served, rule=rule, width=width).mean() for rule in rules]
        return overlap, jnp.stack(shares)

    overlap, shares = jax.lax.map(row, (script.hidden, hidden, keys))
    return overlap.mean(), shares.mean(axis=0)


def one_node(
    keys: Array, target: Array, draft: Array, temperature: Array, *, rule: Rule, width: int
) -> Array:
    """`[n]` bool: whether the rule keeps one of `width` candidates at each of n nodes.

    Args:
      keys: `[n]`; target, draft: `[n, V]` logits, divided by their temperatures.
      temperature: that of the target, at 0 of which both are greedy.
    """
    tree, count = Tree.branching((width,)), len(target)
    wanted = sampling(count).replace(temperature=jnp.full((count,), temperature, jnp.float32))
    length = jnp.ones((count,), jnp.int32)
    dice = rule.roll(keys, length, wanted, tree=tree, vocabulary=target.shape[-1])
    tokens, there = rule.draw(dice, draft[:, None], tree=tree, depth=0, nodes=np.array([0]))
    candidates = Candidates(
        tokens=jnp.pad(tokens[:, 0], ((0, 0), (1, 0))),
        parent=jnp.broadcast_to(jnp.asarray(tree.parents), (count, tree.size)),
        valid=jnp.pad(there[:, 0], ((0, 0), (1, 0)), constant_values=True),
        logits=draft[:, None] if rule.WEIGHS else None,
    )
    # What the target says below the root decides nothing.
    everywhere = jnp.broadcast_to(target[:, None], (count, tree.size, target.shape[-1]))
    return rule.verify(dice, candidates, everywhere, wanted, tree=tree).count > 1


@functools.partial(jax.jit, static_argnames=("model",))
def _hidden(params: Params, batch: Batch, places: Array, *, model: Model) -> Array:
    ((_, output),) = read(params, batch, model=model)
    return output.hidden[:, places]
