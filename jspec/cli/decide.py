"""`jspec decide`: trains a network that stops drafting early, and measures its calibration."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.table import Table

from jspec.bench import settings
from jspec.bench.suite import Workload, workload
from jspec.bench.timing import machine
from jspec.cli.models import Dtype, load_target
from jspec.cli.verb import DONE, Verb, console, emit, say, steps
from jspec.core.checks import check_counts, check_distinct, check_seed, check_temperatures
from jspec.draft.draft import load_draft
from jspec.draft.stopping import check_threshold
from jspec.formats.decision import Decision, save_decision
from jspec.formats.folder import write_json
from jspec.formats.huggingface import Checkpoint
from jspec.training.stop_network import TrainedNetwork, gather, train_both
from jspec.zoo.prompts import training_prompts

if TYPE_CHECKING:
    from jspec.bench.calibration import Calibration

RESULTS = "calibration.json"


@dataclass(kw_only=True)
class Decide(Verb):
    """Train a network that says when to stop drafting, on text that the target generates."""

    target: str = settings.TARGET  # zoo:target, a local Hugging Face folder, or a hub name.
    draft: str = settings.DRAFT
    """The small model, or the head made for the target, that is to stop."""
    kind: Literal["hidden", "distribution"] = "hidden"
    """Which network to keep: the one that reads the draft's hidden state, or the one that reads its
    distribution."""
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    """Those of later use: the target generates at each."""
    prompts: int = 64
    """How many, of code that the zoo was trained on; one eighth as many more are for validation."""
    prompt_length: int = 64  # Tokens of each.
    max_new_tokens: int = 128
    """New tokens of each, at each temperature: as many draft tokens to learn from."""
    batch_size: int = 8  # Prompts that are continued together.
    epochs: int = 10  # Passes over all draft tokens; the best by validation is kept.
    threshold: float = 0.4
    """Drafting continues for as long as the network gives a draft token more than this."""
    output: Path = Path("runs/decision")
    """Where to: a new folder, or the draft's, where --stop-drafting network finds it."""
    dtype: Dtype = "float32"  # Of the models' weights and computation.
    seed: int = settings.SEED
    """Of the noise, the network's first weights, and the order of the draft tokens."""

    def run(self) -> int:
        """Trains both networks, and writes one of them."""
        from jspec.studies.multi_candidate import decision  # scipy takes a while to import

        self._check()
        target = load_target(self.target, self.dtype)
        draft = load_draft(self.draft, target, dtype=self.dtype)
        if draft.checkpoint is None:
            raise ValueError(
                f"draft={self.draft!r}: it has no logits to learn from, so name a model or a head"
            )
        parts = self._workloads(target)
        pieces = len(self.temperatures) * sum(len(work.batches) for work in parts)
        with steps(pieces + 2 * self.epochs) as tick:
            training, held_out = (
                gather(
                    target.params,
                    zip(work.batches, work.keys, strict=True),
                    self.temperatures,
                    target=target.model,
                    states=draft.hidden_and_logits,
                    max_new_tokens=work.tokens,
                    tick=tick,
                )
                for work in parts
            )
            how = {"width": draft.hidden_size, "epochs": self.epochs, "seed": self.seed}
            networks = train_both(training, held_out, **how, tick=tick)
        best = networks[self.kind]
        found = list(decision.calibrations(held_out, networks))
        width, temperatures = draft.hidden_size, self.temperatures
        kept = Decision(best.network, best.params, width, temperatures, self.threshold)
        save_decision(self.output, kept)
        pictures = [file for file, _ in decision.draw(found, self.output)]
        self._report(best, parts, found, pictures)
        return DONE

    def _check(self) -> None:
        """What is refused before the work, and not after it."""
        counts = ("prompts", "max_new_tokens", "batch_size", "epochs")
        check_counts(**{name: getattr(self, name) for name in counts})
        if self.prompt_length < 2:
            raise ValueError(f"prompt_length={self.prompt_length}: must be at least 2")
        check_seed(self.seed)
        check_threshold(self.threshold)
        check_temperatures(self.temperatures)
        check_distinct(temperatures=self.temperatures)
        self.output = Path(os.path.expanduser(self.output))
        if self.output.exists() and not self.output.is_dir():
            raise FileExistsError(f"output={str(self.output)!r} is a file: name a folder")

    def _workloads(self, target: Checkpoint) -> list[Workload]:
        """Prompts for training, and those of other texts for validation."""
        training, held_out = training_prompts(target.tokenizer, self.prompts, self.prompt_length)
        if len(training) % self.batch_size:
            raise ValueError(
                f"batch_size={self.batch_size}: it must divide the number of prompts, "
                f"{len(training)}"
            )
        sizes = self.batch_size, math.gcd(self.batch_size, len(held_out))
        return [
            workload(
                rows,
                batch=size,
                tokens=self.max_new_tokens,
                context=target.model.config.max_position_embeddings,
                seed=(self.seed + place) % 2**32,
            )
            for place, (rows, size) in enumerate(zip((training, held_out), sizes, strict=True))
        ]

    def _report(
        self,
        best: TrainedNetwork,
        parts: Sequence[Workload],
        found: Sequence["Calibration"],
        pictures: Sequence[str],
    ) -> None:
        """A table on stderr or one object on stdout, and the numbers beside the network."""
        learned, validated = (
            len(work.batches) * work.rows * work.tokens * len(self.temperatures) for work in parts
        )
        record = {
            "target": self.target,
            "draft": self.draft,
            "kind": self.kind,
            "sizes": list(best.network.sizes),
            "threshold": self.threshold,
            "temperatures": list(self.temperatures),
            "draft_tokens": learned,
            "held_out_draft_tokens": validated,
            "losses": best.losses,
            "best_epoch": best.best_epoch,
            "calibration": [one.record() for one in found],
            "seed": self.seed,
            "machine": machine(),
        }
        write_json(self.output / RESULTS, record)
        if self.json:
            emit({**record, "folder": str(self.output), "pictures": pictures})
            return
        console().print(_table(found))
        say(
            f"{self.kind} network of {len(best.network.sizes) - 1} layers, {learned:,} draft "
            f"tokens to learn from and {validated:,} for validation; cross-entropy "
            f"{best.losses[best.best_epoch - 1]:.3f} nats per draft token after epoch "
            f"{best.best_epoch}; written to {self.output} with {RESULTS}, {' and '.join(pictures)}"
        )


def _table(found: Sequence["Calibration"]) -> Table:
    """Errors and accuracies on texts for validation, a line for each predictor."""
    from jspec.bench.report import grid

    title = "Accepted draft tokens, predicted on held-out text"
    numbers = "T", "acceptance rate", "calibration error", "accuracy"
    table = grid(title, ["predicted by", "accepted by"], numbers)
    for one in found:
        figures = (f"{x:.3f}" for x in (one.accepted, one.error, one.accuracy))
        table.add_row(one.name, one.rule, f"{one.temperature:g}", *figures)
    return table
