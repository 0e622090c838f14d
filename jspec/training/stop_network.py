"""Training of stop networks (arXiv 2409.10644), which predict whether a draft token is accepted.

The target generates text, the draft drafts one token at each place of it, and each draft token is
labelled by the code that verifies. Networks learn the labels by binary cross-entropy.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jspec.core.prompts import PaddedPrompts
from jspec.core.sampling import SamplingParams, sample_noise
from jspec.core.tree import Tree
from jspec.decode import autoregress
from jspec.draft.small_model import to_vocab_size
from jspec.draft.stopping import Confidence, Entropy, Margin, Stop, StopInputs
from jspec.models.protocol import Model, Params
from jspec.models.stop_networks import (
    NETWORKS,
    DistributionNetwork,
    HiddenStateNetwork,
    StopNetwork,
    hidden_sizes,
)
from jspec.verify import coupled
from jspec.verify.rejection import to_probs

# Stops that score a draft token without being trained. Their threshold does not matter here.
UNTRAINED: dict[str, Stop] = {
    "confidence": Confidence(0.5),
    "entropy": Entropy(0.5),
    "margin": Margin(0.5),
}
# What accepts draft tokens: equality with the target's own token under shared noise, or a
# rejection test of the two probabilities.
COUPLED, TOKEN_LEVEL = "coupled", "token_level"
# The label that each kind of network learns: the published soft and hard one.
LABELS = dict(zip(NETWORKS, (TOKEN_LEVEL, COUPLED), strict=True))
# As published.
EPOCHS, BATCH_SIZE = 10, 50
ADAM = optax.adam(1e-3)

States = Callable[[Array], tuple[Array, Array]]
"""A draft: hidden states `[B, T, D]` and logits `[B, T, V]` at each token of texts `[B, T]`."""
Tick = Callable[[str], None]


class LabelledTokens(NamedTuple):
    """n draft tokens, each the child that drafting draws below a root, and what becomes of them.

    Attributes:
      inputs: by kind of network what it reads, `[n, in]`.
      accepted: `[n]` by what accepts them: 0 or 1, or the probability of acceptance.
      scores: `[n]` by the stops of `UNTRAINED`.
    """

    inputs: dict[str, Array]
    accepted: dict[str, Array]
    scores: dict[str, Array]


class Examples(NamedTuple):
    """What a network reads of n draft tokens, `inputs` `[n, in]`, and the `labels` `[n]`: whether
    each is accepted, or how likely. Hard labels are not balanced, unlike the published ones, so
    that the network's score is a probability."""

    inputs: Array
    labels: Array


class TrainedNetwork(NamedTuple):
    """A network with its parameters after the best epoch, which is counted from 1, and the
    cross-entropy (nats per draft token) on held-out ones after each epoch."""

    network: StopNetwork
    params: Params
    losses: list[float]
    best_epoch: int


def gather(
    params: Params,
    batches: Iterable[tuple[PaddedPrompts, Array]],
    temperatures: Sequence[float],
    *,
    target: Model,
    states: States,
    max_new_tokens: int,
    tick: Tick = lambda _: None,
) -> dict[float, LabelledTokens]:
    """Labelled draft tokens by the temperature at which the target generated.

    Args:
      params: the target's; states: the draft.
      batches: prompts, with a key `[B]` for each.
      tick: called before each batch.
    """
    batches = list(batches)

    def at(temperature: float) -> Iterator[LabelledTokens]:
        for prompts, keys in batches:
            tick(f"generating at T={temperature:g}")
            yield label_draft_tokens(
                params, prompts, keys, target=target, states=states,
                temperature=temperature, max_new_tokens=max_new_tokens,
            )  # fmt: skip

    return {temperature: join(list(at(temperature))) for temperature in temperatures}


def train_both(
    training: Mapping[float, LabelledTokens],
    held_out: Mapping[float, LabelledTokens],
    *,
    width: int,
    epochs: int = EPOCHS,
    seed: int = 0,
    tick: Tick = lambda _: None,
) -> dict[str, TrainedNetwork]:
    """Each of the published networks by its kind, trained on all temperatures together.

    Args:
      width: of the draft's hidden states.
      tick: called before each epoch.
    """

    def one(kind: str) -> TrainedNetwork:
        examples = [
            Examples(tokens.inputs[kind], tokens.accepted[LABELS[kind]])
            for tokens in (join(list(part.values())) for part in (training, held_out))
        ]
        return train_network(
            make_network(kind, width),
            *examples,
            epochs=epochs,
            seed=seed,
            tick=lambda note: tick(f"{kind} network, {note}"),
        )

    return {kind: one(kind) for kind in NETWORKS}


def label_draft_tokens(
    params: Params,
    prompts: PaddedPrompts,
    keys: Array,
    *,
    target: Model,
    states: States,
    temperature: float,
    max_new_tokens: int,
) -> LabelledTokens:
    """Has the target generate after each prompt, with the noise of its keys `[B]`, and the draft
    draft each of these tokens: n = B x `max_new_tokens`, row by row."""
    how = SamplingParams.create(len(keys), temperature=temperature)
    generated = autoregress(
        params, prompts, keys, how, target=target, max_new_tokens=max_new_tokens
    ).tokens[:, :max_new_tokens]
    text = append_tokens(prompts, generated)
    vocabulary = target.config.vocab_size
    hidden, logits = (states_before(prompts, x, max_new_tokens) for x in states(text))
    places = prompts.length[:, None] + jnp.arange(max_new_tokens, dtype=jnp.int32)[None]
    found = label(
        _target_logits(params, text, prompts, target=target, tokens=max_new_tokens),
        to_vocab_size(logits, vocabulary),
        hidden,
        sample_noise(keys, places, vocabulary, how),
        generated,
        temperature,
    )
    return jax.tree.map(np.asarray, found)


def join(pieces: Sequence[LabelledTokens]) -> LabelledTokens:
    """All of them as one."""
    return jax.tree.map(lambda *x: np.concatenate(x), *pieces)


@jax.jit
def label(
    target: Array, draft: Array, hidden: Array, noise: Array, picks: Array, temperature: Array
) -> LabelledTokens:
    """What becomes of one draft token at each place, by the code that drafts and verifies.

    Args:
      target, draft: `[B, T, V]` logits; hidden: `[B, T, D]` the draft's; noise: `[B, T, V]`.
      picks: `[B, T]` what the target generated there.
    """
    # Every place is the root of a sequence.
    target, draft, hidden, noise = (
        x.reshape(-1, 1, x.shape[-1]) for x in (target, draft, hidden, noise)
    )
    how = _at_one_temperature(len(noise), temperature)
    t = jnp.where(temperature > 0, temperature, 1.0)
    p, q = target / t, draft / t
    children, _ = coupled.draw(noise, q, tree=Tree.chain(1), depth=0, nodes=np.array([0]))
    seen = StopInputs(coupled, noise, how, 0, hidden, q, children)
    drawn, ones = children[:, 0], jnp.ones(len(noise), jnp.float32)
    of_target, of_draft = (
        jnp.take_along_axis(jax.vmap(to_probs, (0, None))(x[:, 0], temperature), drawn, axis=-1)[
            :, 0
        ]
        for x in (p, q)
    )
    return LabelledTokens(
        inputs={
            kind: make_network(kind, hidden.shape[-1]).inputs(hidden, q)[:, 0].astype(jnp.float32)
            for kind in NETWORKS
        },
        accepted={
            COUPLED: (drawn[:, 0] == picks.reshape(-1)).astype(jnp.float32),
            TOKEN_LEVEL: jnp.clip(of_target / of_draft, 0.0, 1.0),
        },
        scores={name: stop.score((), (), ones, seen) for name, stop in UNTRAINED.items()},
    )


def make_network(kind: str, width: int) -> StopNetwork:
    """A network of that kind, for a draft whose hidden states have that width."""
    if NETWORKS[kind] is HiddenStateNetwork:
        return HiddenStateNetwork(hidden_sizes(width))
    return DistributionNetwork()


def train_network(
    network: StopNetwork,
    training: Examples,
    held_out: Examples,
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    tick: Tick = lambda _: None,
) -> TrainedNetwork:
    """Trains by binary cross-entropy, and keeps what is best on held-out draft tokens.

    Args:
      tick: called before each epoch.
    """
    start, order = jax.random.split(jax.random.key(seed))
    params = network.init(start)
    state, losses, best = ADAM.init(params), [], params
    for number in range(epochs):
        tick(f"epoch {number + 1} of {epochs}")
        key = jax.random.fold_in(order, number)
        params, state = _epoch(params, state, training, key, network=network)
        losses.append(float(_loss(params, held_out, network=network)))
        if not math.isfinite(losses[-1]):
            raise ValueError(
                f"loss={losses[-1]} after epoch {number + 1}: the draft's hidden states or logits "
                "are NaN or infinite, so compare it with its target by jspec verify"
            )
        if losses[-1] == min(losses):
            best = params
    return TrainedNetwork(network, best, losses, losses.index(min(losses)) + 1)


@functools.partial(jax.jit, static_argnames=("network",))
def network_scores(params: Params, inputs: Array, *, network: StopNetwork) -> Array:
    """`[n, in]` -> `[n]` the probability of acceptance that the network predicts."""
    return jax.nn.sigmoid(network.logits(params, inputs))


def append_tokens(prompts: PaddedPrompts, generated: Array) -> Array:
    """`[B, P + T]` prompts, each followed at once by what was generated after it, `[B, T]`."""
    text = jnp.pad(prompts.tokens, ((0, 0), (0, generated.shape[1])))
    put = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))
    return put(text, generated, prompts.length, 0)


def states_before(prompts: PaddedPrompts, states: Array, tokens: int) -> Array:
    """Of states `[B, M, ...]` at every token of a text, those before each of the `tokens` after the
    prompts: `[B, tokens, ...]`."""
    place = prompts.length[:, None] - 1 + jnp.arange(tokens, dtype=jnp.int32)[None]
    return jnp.take_along_axis(states, place[..., None], axis=1)


@functools.partial(jax.jit, static_argnames=("network",))
def _epoch(
    params: Params, state: optax.OptState, examples: Examples, key: Array, *, network: StopNetwork
) -> tuple[Params, optax.OptState]:
    """One pass over the examples in a new order; what does not fill a batch is left out."""
    count = len(examples.labels)
    size = min(BATCH_SIZE, count)
    batches = jax.random.permutation(key, count)[: count // size * size].reshape(-1, size)

    def step(
        carry: tuple[Params, optax.OptState], batch: Array
    ) -> tuple[tuple[Params, optax.OptState], None]:
        params, state = carry
        chosen = jax.tree.map(lambda x: x[batch], examples)
        gradient = jax.grad(_loss)(params, chosen, network=network)
        # Optax multiplies whole numbers with others.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = ADAM.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, state), batches)[0]


@functools.partial(jax.jit, static_argnames=("network",))
def _loss(params: Params, examples: Examples, *, network: StopNetwork) -> Array:
    """Cross-entropy, in nats per draft token."""
    logits = network.logits(params, jnp.asarray(examples.inputs))
    return optax.sigmoid_binary_cross_entropy(logits, examples.labels).mean()


def _at_one_temperature(rows: int, temperature: Array) -> SamplingParams:
    """One temperature for all rows, which may be traced."""
    return replace(
        SamplingParams.create(rows), temperature=jnp.full((rows,), temperature, jnp.float32)
    )


@functools.partial(jax.jit, static_argnames=("target", "tokens"))
def _target_logits(
    params: Params, text: Array, prompts: PaddedPrompts, *, target: Model, tokens: int
) -> Array:
    """The target's `[B, tokens, V]` before each of its own tokens."""
    length = text.shape[1]
    places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None], text.shape)
    causal = jnp.tril(jnp.ones((length, length), bool))
    hidden = target.forward(params, text, places, causal).hidden
    return target.logits(params, states_before(prompts, hidden, tokens))
