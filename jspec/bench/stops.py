"""What stops drafting early, as people write it: `confidence:0.3`, `network`, a folder."""

from dataclasses import replace
from pathlib import Path

from jspec.bench.drafts import Draft, target_started
from jspec.core.candidates import Rule
from jspec.draft.early_stopping import EarlyDrafter, EarlyParams
from jspec.draft.protocol import Drafter
from jspec.draft.stopping import Confidence, Entropy, Margin, Running, Stop
from jspec.draft.target_started import TargetStartedDrafter, TargetStartedParams
from jspec.formats.decision import ABOUT, load_decision
from jspec.models.protocol import Params

DECIDERS = {"confidence": Confidence, "entropy": Entropy, "margin": Margin, "running": Running}
NETWORK = "network"
FORMS = (
    "write confidence:0.3, entropy:0.2, margin:0.3 or running:0.3 (with a threshold from 0, never "
    "stop, to 1), network (what jspec decide wrote beside the draft), or a folder that it wrote; "
    "network:0.4 and FOLDER:0.4 take another threshold"
)


def read_stop(text: str, draft: Draft) -> tuple[Stop, Params]:
    """What decides, and its parameters; raises `ValueError` for what cannot decide for `draft`."""
    name, threshold = _parts(text)
    if name in DECIDERS and threshold is None:
        raise ValueError(f"stop={text!r} has no threshold: write {name}:0.3")
    try:
        if name in DECIDERS:
            return DECIDERS[name](threshold), ()
        folder = draft.checkpoint.folder if name == NETWORK else Path(name).expanduser()
        if name != NETWORK and not (folder / ABOUT).is_file():
            raise ValueError(f"no rule, and no folder with a {ABOUT}: {FORMS}")
        found = load_decision(folder, width=draft.width)
        taught = found.network
        return taught if threshold is None else replace(taught, threshold=threshold), found.params
    except (ValueError, OSError) as error:
        raise ValueError(f"stop={text!r}: {error}") from None


def stopping(draft: Draft, drafter: Drafter, stop: str | None) -> tuple[Drafter, Params]:
    """A drafter of the draft that stops early where that is asked for, and its parameters."""
    if stop is None:
        return drafter, draft.params
    decides, weights = read_stop(stop, draft)
    try:
        if isinstance(drafter, TargetStartedDrafter):
            early = target_started(EarlyDrafter(drafter.drafter, decides), drafter.target)
            own, roots = draft.params
            return early, TargetStartedParams(EarlyParams(own, weights), roots)
        return EarlyDrafter(drafter, decides), EarlyParams(draft.params, weights)
    except ValueError as error:
        raise ValueError(f"stop={stop!r}: {error}") from None


def admit(rule: Rule, drafter: Drafter) -> None:
    """Raises `ValueError` if the rule is not exact for what is guessed, or if what decides can
    decide nothing under it."""
    rule.admit(drafter.tree, drafter.draws)
    if (early := stops_early(drafter)) is not None:
        early.stop.admit(rule)


def stops_early(drafter: Drafter) -> EarlyDrafter | None:
    """What of it stops early, if anything does."""
    inner = getattr(drafter, "drafter", None)
    return next((one for one in (drafter, inner) if isinstance(one, EarlyDrafter)), None)


def _parts(text: str) -> tuple[str, float | None]:
    """Name and threshold; a folder's name may have colons of its own."""
    name, colon, number = text.rpartition(":")
    try:
        return (name, float(number)) if colon else (text, None)
    except ValueError:
        if name in (*DECIDERS, NETWORK):
            raise ValueError(f"stop={text!r}: {number!r} is no threshold: {FORMS}") from None
        return text, None
