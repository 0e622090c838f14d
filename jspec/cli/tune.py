"""`jspec tune`: measures which tree is the fastest for a pair on this machine, and remembers it."""

from dataclasses import dataclass

from jspec import tuning
from jspec.bench import settings
from jspec.bench.timing import machine
from jspec.cli.models import Dtype, find_rule, load_target
from jspec.cli.verb import DONE, Verb, emit, say, steps
from jspec.core.checks import check_distinct, check_temperatures
from jspec.core.tree_text import write_tree
from jspec.draft.draft import load_draft
from jspec.parallel.sharding import REPLICATED, RULES, read_mesh
from jspec.tuning.automatic import TuningResult, count_steps, tuning_work


@dataclass(kw_only=True)
class Tune(Verb):
    """Find the fastest tree of a draft on this machine, which --tree auto then takes."""

    target: str = settings.TARGET  # zoo:target, a local Hugging Face folder, or a hub name.
    draft: str = settings.DRAFT  # A small model, or a head that was made for the target.
    rule: str = "coupled"  # Which draft tokens are accepted, as jspec generate has it.
    temperatures: tuple[float, ...] = settings.TEMPERATURES
    """Temperatures to measure at. A tree is remembered for the nearest of 0, 0.5, 1 and so on."""
    dtype: Dtype = "float32"  # Of the weights and the computation.
    mesh: tuple[str, ...] = ()  # Shard the models over all devices: data=2 tensor=4, or fsdp=8.
    replicate_draft: bool = False  # Put the whole draft on every device of the mesh.

    def run(self) -> int:
        """Measures, remembers, and shows what was chosen."""
        check_temperatures(self.temperatures)
        check_distinct(temperatures=self.temperatures)
        rule, mesh = find_rule(self.rule), read_mesh(",".join(self.mesh))
        if self.replicate_draft and mesh is None:
            raise ValueError("replicate_draft: there is no mesh, so leave it out")
        target = load_target(self.target, self.dtype, mesh)
        rules = REPLICATED if self.replicate_draft else RULES
        draft = load_draft(self.draft, target, dtype=self.dtype, mesh=mesh, rules=rules)
        work, found = tuning_work(target), {}
        with steps(count_steps(work) * len(self.temperatures)) as tick:
            for temperature in self.temperatures:
                how = {"rule": rule, "temperature": temperature, "mesh": mesh, "work": work}
                found[temperature] = tuning.tune(target, draft, **how, tick=tick)
        if self.json:
            self._emit(found)
        else:
            lines = [_line(temperature, one) for temperature, one in found.items()]
            say(*lines, "remembered for --tree auto")
        return DONE

    def _emit(self, found: dict[float, TuningResult]) -> None:
        """`acceptance`, which `jspec plan --acceptance` reads, is of the first temperature."""
        results = [
            {"temperature": temperature, "tree": write_tree(one.tree), **one.record()}
            for temperature, one in found.items()
        ]
        about = {"target": self.target, "draft": self.draft, "rule": self.rule}
        acceptance = results[0]["acceptance"]
        emit({**about, "acceptance": acceptance, "results": results, "machine": machine()})


def _line(temperature: float, found: TuningResult) -> str:
    """What was chosen, and what was timed beside it, the fastest first."""
    timed = sorted(found.timed.items(), key=lambda one: one[1], reverse=True)
    others = ", ".join(f"{write_tree(tree)} {speedup:.2f}" for tree, speedup in timed)
    return f"T={temperature:g}: tree {write_tree(found.tree)}; times plain decoding: {others}"
