"""Guesses that a draft makes on text of its target, one a place, and what becomes of each."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec.core.prompts import Prompts
from jspec.core.sampling import Sampling, noise, sampling
from jspec.core.tree import Tree
from jspec.decode import autoregress
from jspec.draft.small_model import widened
from jspec.draft.stop_networks import HiddenNetwork, LawNetwork, hidden_sizes
from jspec.draft.stopping import Confidence, Entropy, Margin, Seen, Stop
from jspec.models.protocol import Model, Params
from jspec.verify import coupled
from jspec.verify.rejection import law

# What gives a guess a chance without being taught. The threshold is of no account here.
UNTAUGHT: dict[str, Stop] = {
    "confidence": Confidence(0.5),
    "entropy": Entropy(0.5),
    "margin": Margin(0.5),
}
# What keeps guesses: the target's own pick, or a draw against the two laws.
COUPLED, TOKEN_LEVEL = "coupled", "token_level"
# By the kind of a network, what it is taught: the published soft and hard label.
LABELS = {"hidden": TOKEN_LEVEL, "law": COUPLED}

Reader = Callable[[Array], tuple[Array, Array]]
"""A draft: hidden states `[B, T, D]` and logits `[B, T, V]` at each token of texts `[B, T]`."""


class Rollouts(NamedTuple):
    """Of n guesses, each the child that drafting draws below a root.

    Attributes:
      inputs: by the kind of a network what it reads, `[n, in]`.
      kept: `[n]` by what keeps them: 0 or 1 whether the target picks the guess, or how likely it
        survives against the laws.
      chances: `[n]` what `UNTAUGHT` give them.
    """

    inputs: dict[str, Array]
    kept: dict[str, Array]
    chances: dict[str, Array]

    def __getitem__(self, guesses: slice) -> "Rollouts":
        return jax.tree.map(lambda x: x[guesses], self)


def rollouts(
    params: Params,
    prompts: Prompts,
    keys: Array,
    *,
    target: Model,
    reader: Reader,
    temperature: float,
    tokens: int,
) -> Rollouts:
    """Has the target write `tokens` after each of the prompts, with the dice of its keys `[B]`, and
    the draft guess each of them: n = B x `tokens`, row by row."""
    how = sampling(len(keys), temperature=temperature)
    written = autoregress(params, prompts, keys, how, target=target, tokens=tokens).tokens
    text = written_out(prompts, written)
    vocabulary = target.config.vocabulary
    hidden, guesses = (before(prompts, x, tokens) for x in reader(text))
    places = prompts.length[:, None] + jnp.arange(tokens)[None]
    found = judged(
        _logits(params, text, prompts, target=target, tokens=tokens),
        widened(guesses, vocabulary),
        hidden,
        noise(keys, places, vocabulary, how),
        written,
        temperature,
    )
    return jax.tree.map(np.asarray, found)


def together(pieces: Sequence[Rollouts]) -> Rollouts:
    """All guesses as one."""
    return jax.tree.map(lambda *x: np.concatenate(x), *pieces)


@jax.jit
def judged(
    target: Array, draft: Array, hidden: Array, dice: Array, picks: Array, temperature: Array
) -> Rollouts:
    """What becomes of one guess at each place, by the code that drafts.

    Args:
      target, draft: `[B, T, V]` logits; hidden: `[B, T, D]` the draft's; dice: `[B, T, V]`.
      picks: `[B, T]` what the target wrote there.
    """
    # Every place is the root of a sequence.
    target, draft, hidden, dice = (
        x.reshape(-1, 1, x.shape[-1]) for x in (target, draft, hidden, dice)
    )
    how = _alike(len(dice), temperature)
    hot = jnp.where(temperature > 0, temperature, 1.0)
    p, q = target / hot, draft / hot
    children, _ = coupled.draw(dice, q, tree=Tree.chain(1), depth=0, nodes=np.array([0]))
    seen = Seen(coupled, dice, how, 0, hidden, q, children)
    drawn, one = children[:, 0], jnp.ones(len(dice))
    ours, theirs = (
        jnp.take_along_axis(jax.vmap(law, (0, None))(x[:, 0], temperature), drawn, axis=-1)[:, 0]
        for x in (p, q)
    )
    networks = HiddenNetwork(hidden_sizes(hidden.shape[-1])), LawNetwork()
    return Rollouts(
        inputs={
            kind: network.look(hidden, q)[:, 0].astype(jnp.float32)
            for kind, network in zip(LABELS, networks, strict=True)
        },
        kept={
            COUPLED: (drawn[:, 0] == picks.reshape(-1)).astype(jnp.float32),
            TOKEN_LEVEL: jnp.clip(ours / theirs, 0.0, 1.0),
        },
        chances={name: stop.judge((), (), one, seen) for name, stop in UNTAUGHT.items()},
    )


def written_out(prompts: Prompts, written: Array) -> Array:
    """`[B, P + T]` prompts, and right behind each what was written `[B, T]` after it."""
    text = jnp.pad(prompts.tokens, ((0, 0), (0, written.shape[1])))
    put = jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))
    return put(text, written, prompts.length, 0)


def before(prompts: Prompts, read: Array, tokens: int) -> Array:
    """Of what was read at every token `[B, M, ...]` that which stands before each of the `tokens`
    after the prompts: `[B, tokens, ...]`."""
    place = prompts.length[:, None] - 1 + jnp.arange(tokens)[None]
    return jnp.take_along_axis(read, place[..., None], axis=1)


def _alike(rows: int, temperature: Array) -> Sampling:
    """For all rows one temperature, which may be traced."""
    return sampling(rows).replace(temperature=jnp.full((rows,), temperature, jnp.float32))


@functools.partial(jax.jit, static_argnames=("target", "tokens"))
def _logits(params: Params, text: Array, prompts: Prompts, *, target: Model, tokens: int) -> Array:
    """The target's `[B, tokens, V]` before each of its own tokens."""
    length = text.shape[1]
    places = jnp.broadcast_to(jnp.arange(length)[None], text.shape)
    causal = jnp.tril(jnp.ones((length, length), bool))
    hidden = target.forward(params, text, places, causal).hidden
    return target.logits(params, before(prompts, hidden, tokens))
