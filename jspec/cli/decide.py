"""`jspec decide`: teaches a network when a draft should stop, and says how well it knows."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jspec.bench import settings
from jspec.cli.held_out import check_counts, check_seed, check_temperatures
from jspec.cli.pair import Dtype, find_draft, read_target
from jspec.cli.screen import console, emit, steps
from jspec.cli.verb import DONE, Verb

if TYPE_CHECKING:
    from rich.table import Table

    from jspec.bench.calibration import Calibration
    from jspec.bench.suite import Workload
    from jspec.distill.decision import Taught
    from jspec.draft.stop_networks import Network
    from jspec.formats.huggingface import Checkpoint

RESULTS = "calibration.json"


@dataclass(kw_only=True)
class Decide(Verb):
    """Teach a network when drafting further is worth it, on what the target writes itself."""

    target: str = settings.TARGET
    """zoo:target, a local Hugging Face folder, or a hub name."""
    draft: str = settings.DRAFT
    """The small model, or the head made for the target, that is to stop."""
    kind: Literal["hidden", "law"] = "hidden"
    """What is kept: the network that reads the draft's hidden state, or the one that reads its law.
    """
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    """Those that will be served: the target writes at each."""
    prompts: int = 64
    """How many, of code that the zoo learned from; one in eight as many is for validation."""
    prompt_length: int = 64
    """Tokens of each."""
    tokens: int = 128
    """New tokens of each, at each temperature: as many guesses to learn from."""
    batch: int = 8
    """Prompts gone on with together."""
    epochs: int = 10
    """Passes over all guesses; the best by validation is kept."""
    threshold: float = 0.4
    """Drafting goes on for as long as the network gives a guess more than this."""
    output: Path = Path("runs/decision")
    """Where to: a folder of its own, or the draft's, where --stop network finds it."""
    dtype: Dtype = "float32"
    """Of the models' weights and computation."""
    seed: int = settings.SEED
    """Of the noise, the network's first weights, and the order of the guesses."""

    def run(self) -> int:
        from jspec.formats.decision import Decision, save_decision
        from jspec.studies import decision, decision_figures

        self._check()
        target = read_target(self.target, self.dtype)
        draft = find_draft(self.draft, target, self.dtype)
        parts = self._workloads(target)
        pieces = len(self.temperatures) * sum(len(work.batches) for work in parts)
        with steps(pieces + 2 * self.epochs) as tick:
            seen, held_out = (
                decision.gather(target, draft, work, self.temperatures, tick) for work in parts
            )
            pupils = decision.teach_both(
                seen,
                held_out,
                width=draft.width,
                threshold=self.threshold,
                epochs=self.epochs,
                seed=self.seed,
                tick=tick,
            )
        found = list(decision.calibrations(held_out, pupils))
        network, taught = pupils[self.kind]
        save_decision(self.output, Decision(network, taught.params, draft.width, self.temperatures))
        pictures = [file for file, _ in decision_figures.draw(found, self.output)]
        self._report(network, taught, parts, found, pictures)
        return DONE

    def _check(self) -> None:
        from jspec.draft.stopping import check_threshold

        check_counts(prompts=self.prompts, tokens=self.tokens, batch=self.batch, epochs=self.epochs)
        if self.prompt_length < 2:
            raise ValueError(f"prompt_length={self.prompt_length}: must be at least 2")
        check_seed(self.seed)
        check_threshold(self.threshold)
        check_temperatures(self.temperatures)
        if len(set(self.temperatures)) < len(self.temperatures):
            twice = " ".join(map(str, self.temperatures))
            raise ValueError(f"temperatures={twice} names one twice: give each once")
        # Before the work, and not after it.
        self.output = Path(os.path.expanduser(self.output))
        if self.output.exists() and not self.output.is_dir():
            raise FileExistsError(f"output={str(self.output)!r} is a file: name a folder")

    def _workloads(self, target: "Checkpoint") -> "list[Workload]":
        """Prompts to learn from, and those of other texts to validate by."""
        from jspec.bench.suite import workload
        from jspec.zoo.prompts import training_prompts

        told, kept = training_prompts(target.tokenizer, self.prompts, self.prompt_length)
        sizes = self.batch, math.gcd(self.batch, len(kept))
        return [
            workload(
                rows,
                batch=batch,
                tokens=self.tokens,
                context=target.model.config.context,
                seed=(self.seed + place) % 2**32,
            )
            for place, (rows, batch) in enumerate(zip((told, kept), sizes, strict=True))
        ]

    def _report(
        self,
        network: "Network",
        taught: "Taught",
        parts: "list[Workload]",
        found: "list[Calibration]",
        pictures: list[str],
    ) -> None:
        """A table on stderr or one object on stdout, and the numbers beside the network."""
        from jspec.bench.machine import machine
        from jspec.formats.folder import write_json

        guesses, validated = (
            len(work.batches) * work.rows * work.tokens * len(self.temperatures) for work in parts
        )
        record = {
            "target": self.target,
            "draft": self.draft,
            "kind": self.kind,
            "sizes": list(network.sizes),
            "threshold": self.threshold,
            "temperatures": list(self.temperatures),
            "guesses": guesses,
            "validated": validated,
            "losses": taught.losses,
            "best_epoch": taught.best,
            "calibration": [one.record() for one in found],
            "seed": self.seed,
            "machine": machine(),
        }
        write_json(self.output / RESULTS, record)
        if self.json:
            emit({**record, "folder": str(self.output), "pictures": pictures})
            return
        screen = console()
        screen.print(_table(found))
        screen.print(
            f"{self.kind} network of {len(network.sizes) - 1} layers, {guesses:,} guesses to learn "
            f"from and {validated:,} to validate by; {taught.losses[taught.best - 1]:.3f} nats a "
            f"guess after epoch {taught.best}, kept in {self.output} with {RESULTS}, "
            f"{' and '.join(pictures)}",
            soft_wrap=True,
        )


def _table(found: "list[Calibration]") -> "Table":
    """Errors and accuracies on texts for validation, a line for each that foretells."""
    from rich.table import Table

    grid = Table(title="Guesses foretold, on texts for validation", title_justify="left")
    grid.title_style = "bold"
    for name in ("foretold by", "kept by"):
        grid.add_column(name)
    for name in ("T", "kept", "calibration error", "accuracy"):
        grid.add_column(name, justify="right")
    for one in found:
        numbers = (f"{x:.3f}" for x in (one.kept, one.error, one.accuracy))
        grid.add_row(one.name, one.rule, f"{one.temperature:g}", *numbers)
    return grid
