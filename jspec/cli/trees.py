"""The tree that a command guesses: as it is named, or the fastest on this machine."""

from typing import TYPE_CHECKING, Any

from jspec.bench import settings
from jspec.cli.held_out import held_out_work
from jspec.cli.pair import LOSSY
from jspec.cli.placement import placed
from jspec.cli.screen import console, steps

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jspec.bench.drafts import Draft
    from jspec.core.candidates import Rule
    from jspec.core.tree import Growth, Tree
    from jspec.formats.huggingface import Checkpoint

AUTO = "auto"
# What is measured, at the nearest of these temperatures.
GRID = 0.5
PROMPTS, PROMPT_LENGTH, TOKENS = 8, 64, 96


def find_tree(
    text: str,
    target: "Checkpoint",
    draft: "Draft",
    *,
    rule: "Rule",
    temperature: float,
    dtype: str,
    mesh: "Mesh | None" = None,
    stop: str | None = None,
) -> "Tree | Growth":
    """The tree that `text` describes; `auto` is the fastest for the pair and one text at a time,
    which is found once on each machine, by measuring, and kept.

    Args:
      mesh: where the two lie.
      stop: what is to stop drafting early, refused before a tree is sought.
    """
    from jspec.bench.stops import read_stop
    from jspec.core.tree_text import read_tree, write_tree

    if stop is not None:
        read_stop(stop, draft)[0].admit(rule)
    if text == AUTO:
        if rule.__name__.endswith(LOSSY):
            raise ValueError(
                "tree='auto' is sought among trees of exact rules, and rule='lossy' is none: give "
                "fork:2x4, say"
            )
        found = _fastest(target, draft, rule, round(temperature / GRID) * GRID, dtype, mesh)
        console().print(f"tree=auto: {write_tree(found)}", soft_wrap=True)
        return found
    return read_tree(text, target.model.config.context)


def _fastest(
    target: "Checkpoint",
    draft: "Draft",
    rule: "Rule",
    temperature: float,
    dtype: str,
    mesh: "Mesh | None",
) -> "Tree":
    from jspec.bench.machine import machine
    from jspec.plan.automatic import choose, most_steps
    from jspec.plan.remembered import fingerprint, remembered

    def find() -> "tuple[Tree, dict[str, Any]]":
        console().print(
            "tree=auto: measuring which tree pays for this pair on this machine, once; "
            "--tree chain:3, say, leaves it out",
            soft_wrap=True,
        )
        tokens = min(TOKENS, target.model.config.context - PROMPT_LENGTH)
        work = held_out_work(
            target,
            prompts=PROMPTS,
            prompt_length=PROMPT_LENGTH,
            batch=1,
            tokens=tokens,
            seed=settings.SEED,
        )
        with placed(mesh), steps(most_steps(work)) as tick:
            found = choose(draft, target, work, rule=rule, temperature=temperature, tick=tick)
        return found.tree, found.record()

    of = {
        "machine": machine(),
        "target": fingerprint(target.folder),
        "draft": fingerprint(draft.checkpoint.folder),
        "rule": rule.__name__,
        "temperature": temperature,
        "dtype": dtype,
        "mesh": dict(mesh.shape) if mesh else None,
    }
    return remembered(of, find)
