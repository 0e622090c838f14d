"""`jspec train`: one of `configs/`, with changes from the command line."""

from dataclasses import dataclass

from jspec.cli.training import Training


@dataclass(kw_only=True)
class Train(Training):
    """Train a model from a recipe; goes on from the newest checkpoint of its run."""

    def run(self) -> int:
        from jspec.distill.recipe import Pretraining
        from jspec.zoo.training import make

        return self.train(Pretraining, make)
