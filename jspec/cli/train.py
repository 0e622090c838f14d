"""`jspec train`: pretrains a model, as one of `configs/` says."""

from dataclasses import dataclass

from jspec.cli.training import Training


@dataclass(kw_only=True)
class Train(Training):
    """Train a model from a recipe; resumes from the newest checkpoint of its run."""

    def run(self) -> int:
        """Follows the recipe."""
        from jspec.training.pretraining import pretrain
        from jspec.training.recipe import Pretraining

        return self.train(Pretraining, pretrain)
