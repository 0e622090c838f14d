"""A draft's decision networks from the first rollout to the last figure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jspec.bench.calibration import Calibration, calibration
from jspec.bench.drafts import Draft
from jspec.bench.suite import Workload
from jspec.distill.decision import Examples, Taught, chances, teach, untaught
from jspec.distill.rollouts import LABELS, Rollouts, rollouts, together
from jspec.draft.stop_networks import Network
from jspec.formats.huggingface import Checkpoint

Tick = Callable[[str], None]
ByHeat = Mapping[float, Rollouts]
"""Rollouts by the temperature at which the target wrote."""


class Pupil(NamedTuple):
    """A network and what it was taught."""

    network: Network
    taught: Taught


def gather(
    target: Checkpoint, draft: Draft, work: Workload, temperatures: Sequence[float], tick: Tick
) -> dict[float, Rollouts]:
    """Has the target go on from all prompts at each temperature, and the draft guess along."""

    def at(temperature: float) -> Iterator[Rollouts]:
        for prompts, keys in zip(work.batches, work.keys, strict=True):
            tick(f"writing at T={temperature:g}")
            yield rollouts(
                target.params,
                prompts,
                keys,
                target=target.model,
                reader=draft.states,
                temperature=temperature,
                tokens=work.tokens,
            )

    return {temperature: together(list(at(temperature))) for temperature in temperatures}


def teach_both(
    seen: ByHeat,
    held_out: ByHeat,
    *,
    width: int,
    threshold: float,
    epochs: int,
    seed: int,
    tick: Tick,
) -> dict[str, Pupil]:
    """By its kind each of the published networks, taught on all temperatures together.

    Args:
      width: of the draft's hidden states.
    """

    def one(kind: str) -> Pupil:
        network = untaught(kind, width, threshold)
        lessons = [
            Examples(every.inputs[kind], every.kept[LABELS[kind]])
            for every in (together(list(part.values())) for part in (seen, held_out))
        ]
        taught = teach(
            network,
            *lessons,
            epochs=epochs,
            seed=seed,
            tick=lambda note: tick(f"{kind} network, {note}"),
        )
        return Pupil(network, taught)

    return {kind: one(kind) for kind in LABELS}


def calibrations(held_out: ByHeat, pupils: Mapping[str, Pupil]) -> Iterator[Calibration]:
    """Of all that gives a guess a chance, by temperature and by what keeps guesses."""
    for temperature, found in held_out.items():
        given = {
            f"{kind} network": chances(one.taught.params, found.inputs[kind], network=one.network)
            for kind, one in pupils.items()
        }
        for name, chance in {**given, **found.chances}.items():
            for rule, kept in found.kept.items():
                yield calibration(chance, kept, name=name, rule=rule, temperature=temperature)
