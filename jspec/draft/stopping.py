"""Stops: what decides, level by level, whether another one is drafted, and their text form."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jspec.core.candidates import Randomness, Rule
from jspec.core.sampling import SamplingParams
from jspec.formats.decision import ABOUT, has_decision, load_decision
from jspec.models.protocol import Params
from jspec.models.stop_networks import PUBLISHED_THRESHOLD, StopNetwork, entropy

StopState = Any


class StopInputs(NamedTuple):
    """A level of T nodes whose children were drawn, and the round that it belongs to.

    Attributes:
      noise: the round's, where draft and target share it; None under rejection.
      hidden: `[B, T, D]` and logits: `[B, T, V]`, the draft's, processed.
      children: `[B, T, W]` the tokens that were drawn.
    """

    rule: Rule
    noise: Randomness | None
    sampling: SamplingParams
    depth: int
    hidden: Array
    logits: Array
    children: Array


class Stop(Protocol):
    """What decides whether another level is drafted.

    Hashable, so that jit takes it as a static argument; its state is a pytree.

    >>> stop, params = read_stop("margin:0.3", folder=None, width=64)
    >>> stop
    Margin(threshold=0.3)
    """

    @property
    def threshold(self) -> float:
        """A row continues for as long as its `score` is more than this."""
        ...

    def check_compatible(self, rule: Rule) -> None:
        """Raises `ValueError` with the reason if it can decide nothing under the rule."""

    def check_params(self, params: Params) -> None:
        """Raises `ValueError` if these are not its parameters."""

    def start(self, batch: int) -> StopState:
        """Its state before the first round."""
        ...

    def score(
        self, params: Params, state: StopState, path_confidence: Array, inputs: StopInputs
    ) -> Array:
        """What drafting on below the children of a level is worth to each row, `[B]` in [0, 1].

        It may depend on all its inputs, and so on what was drawn, which is kept whatever it finds.

        Args:
          path_confidence: `[B]` the score one level above; 1 at the root.
        """
        ...

    def update(self, state: StopState, accepted: Array, levels: Array) -> StopState:
        """Its state after a round that accepted `accepted` `[B]` of `levels` `[B]` drafted
        levels."""
        ...


def check_threshold(threshold: float) -> None:
    """Raises `ValueError` outside [0, 1]."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: must be between 0 (never stop) and 1")


@dataclass(frozen=True)
class StatelessStop:
    """Decides by the round alone, under every rule, and has no parameters."""

    threshold: float

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def check_compatible(self, rule: Rule) -> None:
        """Under every rule."""

    def check_params(self, params: Params) -> None:
        """It has none."""

    def start(self, batch: int) -> tuple[()]:
        """As `Stop.start`."""
        return ()

    def update(self, state: tuple[()], accepted: Array, levels: Array) -> tuple[()]:
        """As `Stop.update`."""
        return state


@dataclass(frozen=True)
class Confidence(StatelessStop):
    """The draft's own top probability.

    >>> EarlyDrafter(SmallModelDrafter(draft.model, Tree.chain(8)), Confidence(0.3))

    The score of a path is the product of the top probabilities along it, where a level's is that of
    its most confident node, whatever that node's parent is.
    """

    def score(
        self, params: Params, state: tuple[()], path_confidence: Array, inputs: StopInputs
    ) -> Array:
        """As `Stop.score`."""
        total = jax.nn.logsumexp(inputs.logits, axis=-1)
        return path_confidence * jnp.exp(inputs.logits.max(axis=-1) - total).max(axis=-1)


@dataclass(frozen=True)
class Entropy(StatelessStop):
    """The entropy of the draft's distribution.

    >>> EarlyDrafter(SmallModelDrafter(draft.model, Tree.chain(8)), Entropy(0.2))

    The score of a path is `exp(-H)` for the sum H of the entropies along it, in nats, where a
    level's is that of its most certain node.
    """

    def score(
        self, params: Params, state: tuple[()], path_confidence: Array, inputs: StopInputs
    ) -> Array:
        """As `Stop.score`."""
        return path_confidence * jnp.exp(-entropy(inputs.logits).min(axis=-1))


@dataclass(frozen=True)
class Margin(StatelessStop):
    """How far the candidates are ahead of the rest under the noise that the target picks with.

    >>> EarlyDrafter(SmallModelDrafter(draft.model, Tree.chain(8)), Margin(0.3))

    The score of a path is the product of what the rule's score gives to the children of its nodes
    together: under the coupled rule a function of the margins between perturbed logits. A level has
    its best node's, and a node as many children as the widest of its level.
    """

    def check_compatible(self, rule: Rule) -> None:
        """As `Stop.check_compatible`."""
        if not rule.drafter_invariant:
            raise ValueError(
                "stop_drafting=margin reads noise that draft and target share, and rule="
                f"{rule.name!r} has none: use confidence or entropy, or rule=coupled"
            )

    def score(
        self, params: Params, state: tuple[()], path_confidence: Array, inputs: StopInputs
    ) -> Array:
        """As `Stop.score`."""
        scores = inputs.rule.score(
            inputs.noise, inputs.logits, inputs.children, inputs.sampling, depth=inputs.depth
        )
        together = jnp.exp(jax.nn.logsumexp(scores, axis=-1)).max(axis=-1)
        return path_confidence * jnp.minimum(together, 1.0)


# The rate of a level before anything is known of the sequence, and as how many levels that counts.
PRIOR_RATE, PRIOR_LEVELS = 0.7, 4.0


@struct.dataclass
class AcceptanceCounts:
    """Levels accepted and levels tested, `[B]` each; older rounds count less."""

    accepted: Array
    tested: Array


@dataclass(frozen=True)
class RunningAcceptance:
    """How much of what was drafted in earlier rounds of the same sequence was accepted.

    >>> stop = RunningAcceptance(0.3)
    >>> state = stop.update(stop.start(batch=1), jnp.array([4]), jnp.array([4]))
    >>> bool(state.accepted[0] / state.tested[0] > 0.8)
    True

    The score of a level is the running acceptance rate, to the power of its depth.

    Attributes:
      decay: what a round counts once the next one is over.
    """

    threshold: float
    decay: float = 0.9

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay={self.decay}: must be between 0 and 1")

    def check_compatible(self, rule: Rule) -> None:
        """Under every rule."""

    def check_params(self, params: Params) -> None:
        """It has none."""

    def start(self, batch: int) -> AcceptanceCounts:
        """As `Stop.start`."""
        return AcceptanceCounts(
            *(
                jnp.full((batch,), levels, jnp.float32)
                for levels in (PRIOR_RATE * PRIOR_LEVELS, PRIOR_LEVELS)
            )
        )

    def score(
        self, params: Params, state: AcceptanceCounts, path_confidence: Array, inputs: StopInputs
    ) -> Array:
        """As `Stop.score`."""
        return path_confidence * state.accepted / state.tested

    def update(self, state: AcceptanceCounts, accepted: Array, levels: Array) -> AcceptanceCounts:
        # The level after the last accepted one was tested too, if it was drafted.
        """As `Stop.update`."""
        tested = jnp.minimum(accepted + 1, levels).astype(jnp.float32)
        return AcceptanceCounts(
            self.decay * state.accepted + accepted.astype(jnp.float32),
            self.decay * state.tested + tested,
        )


@dataclass(frozen=True)
class NetworkStop:
    """A trained network's prediction (arXiv 2409.10644).

    >>> from jspec.models.stop_networks import HiddenStateNetwork, hidden_sizes
    >>> NetworkStop(HiddenStateNetwork(hidden_sizes(64))).threshold
    0.4

    After each level it reads the nodes whose children were drawn. Another level is drafted if it
    gives any of them more than the threshold, whatever it gave to those above.
    """

    network: StopNetwork
    threshold: float = PUBLISHED_THRESHOLD

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def check_compatible(self, rule: Rule) -> None:
        """Under every rule."""

    def check_params(self, params: Params) -> None:
        """As `Stop.check_params`."""
        self.network.check_params(params)

    def start(self, batch: int) -> tuple[()]:
        """As `Stop.start`."""
        return ()

    def score(
        self, params: Params, state: tuple[()], path_confidence: Array, inputs: StopInputs
    ) -> Array:
        """As `Stop.score`."""
        read = self.network.inputs(inputs.hidden, inputs.logits)
        return jax.nn.sigmoid(self.network.logits(params, read)).max(axis=-1)

    def update(self, state: tuple[()], accepted: Array, levels: Array) -> tuple[()]:
        """As `Stop.update`."""
        return state


STOPS: Mapping[str, Callable[[float], Stop]] = {
    "confidence": Confidence,
    "entropy": Entropy,
    "margin": Margin,
    "running": RunningAcceptance,
}
NETWORK = "network"
FORMS = (
    "write confidence:0.3, entropy:0.2, margin:0.3 or running:0.3 (with a threshold from 0, never "
    "stop, to 1), network (what jspec decide wrote beside the draft), or a folder that it wrote; "
    "network:0.4 and FOLDER:0.4 take another threshold"
)


def read_stop(text: str, *, folder: Path | None, width: int) -> tuple[Stop, Params]:
    """A stop and its parameters, from what people write: `confidence:0.3`, `network`, a folder.

    Args:
      folder: the draft's, which `network` is read from.
      width: of the draft's hidden states; a network for another width is refused.

    Raises `ValueError` for what is no stop of such a draft.
    """
    name, threshold = _parts(text)
    try:
        if name in STOPS:
            if threshold is None:
                raise ValueError(f"it has no threshold: write {name}:0.3")
            return STOPS[name](threshold), ()
        place = folder if name == NETWORK else Path(name).expanduser()
        if place is None or (name != NETWORK and not has_decision(place)):
            raise ValueError(f"no stop, and no folder with a {ABOUT}: {FORMS}")
        found = load_decision(place, width=width)
        threshold = found.threshold if threshold is None else threshold
        return NetworkStop(found.network, threshold), found.params
    except (ValueError, OSError) as error:
        raise ValueError(f"stop_drafting={text!r}: {error}") from None


def _parts(text: str) -> tuple[str, float | None]:
    """Name and threshold; a folder's name may have colons of its own."""
    name, colon, number = text.rpartition(":")
    try:
        return (name, float(number)) if colon else (text, None)
    except ValueError:
        if name in (*STOPS, NETWORK):
            raise ValueError(
                f"stop_drafting={text!r}: {number!r} is no threshold: {FORMS}"
            ) from None
        return text, None
