"""Teaching a decision network (arXiv 2409.10644) what becomes of guesses."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jspec.draft.stop_networks import HiddenNetwork, LawNetwork, Network, hidden_sizes
from jspec.models.protocol import Params

# As published.
EPOCHS, BATCH = 10, 50
ADAM = optax.adam(1e-3)


class Examples(NamedTuple):
    """What a network reads of n guesses, `inputs` `[n, in]`, and how likely each is kept: `labels`
    `[n]`, or whether it was. Hard ones are not balanced, as published ones are, so that what the
    network gives is a chance."""

    inputs: Array
    labels: Array


class Taught(NamedTuple):
    """The parameters after the `best` epoch, and the nats a guess on held-out ones after each."""

    params: Params
    losses: list[float]
    best: int


def untaught(kind: str, width: int, threshold: float) -> Network:
    """A network of that kind, for a draft whose hidden states have that width."""
    if kind == "hidden":
        return HiddenNetwork(hidden_sizes(width), threshold)
    return LawNetwork(threshold=threshold)


def teach(
    network: Network,
    seen: Examples,
    held_out: Examples,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    tick: Callable[[str], None] = lambda note: None,
) -> Taught:
    """By binary cross-entropy, keeping what is best on held-out guesses.

    Args:
      tick: told of each epoch before it begins.
    """
    start, order = jax.random.split(jax.random.key(seed))
    params = network.init(start)
    state, losses, best = ADAM.init(params), [], params
    for number in range(epochs):
        tick(f"epoch {number + 1} of {epochs}")
        key = jax.random.fold_in(order, number)
        params, state = _epoch(params, state, seen, key, network=network)
        losses.append(float(_loss(params, held_out, network=network)))
        if not math.isfinite(losses[-1]):
            raise ValueError(
                f"loss={losses[-1]} after epoch {number + 1}: the hidden states or the laws of the "
                "draft hold what is no number, so hold it against its target by jspec verify"
            )
        if losses[-1] == min(losses):
            best = params
    return Taught(best, losses, losses.index(min(losses)) + 1)


@functools.partial(jax.jit, static_argnames=("network",))
def chances(params: Params, inputs: Array, *, network: Network) -> Array:
    """`[n, in]` -> `[n]` what the network gives, in [0, 1]."""
    return jax.nn.sigmoid(network.chance(params, inputs))


@functools.partial(jax.jit, static_argnames=("network",))
def _epoch(
    params: Params, state: optax.OptState, seen: Examples, key: Array, *, network: Network
) -> tuple[Params, optax.OptState]:
    """One pass over the guesses in an order of its own; what fills no batch waits for the next."""
    count = len(seen.labels)
    size = min(BATCH, count)
    batches = jax.random.permutation(key, count)[: count // size * size].reshape(-1, size)

    def step(carry: tuple[Params, optax.OptState], batch: Array) -> tuple:
        params, state = carry
        examples = jax.tree.map(lambda x: x[batch], seen)
        slope = jax.grad(_loss)(params, examples, network=network)
        moved, state = ADAM.update(slope, state, params)
        return (optax.apply_updates(params, moved), state), None

    return jax.lax.scan(step, (params, state), batches)[0]


@functools.partial(jax.jit, static_argnames=("network",))
def _loss(params: Params, examples: Examples, *, network: Network) -> Array:
    """Nats a guess."""
    logits = network.chance(params, jnp.asarray(examples.inputs))
    return optax.sigmoid_binary_cross_entropy(logits, examples.labels).mean()
