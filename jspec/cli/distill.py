"""`jspec distill`: trains a draft on its target's distribution, as one of `configs/` says."""

from dataclasses import dataclass

from jspec.cli.training import Training


@dataclass(kw_only=True)
class Distill(Training):
    """Train a draft on its target's distribution; resumes from the newest checkpoint of its run."""

    def run(self) -> int:
        """Follows the recipe."""
        from jspec.training.recipe import Distillation
        from jspec.training.run import distill

        return self.train(Distillation, distill)
