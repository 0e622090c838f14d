"""The gate before a launch: all of its programs, compiled from shapes."""

from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jspec.distill.checkpoints import Note
from jspec.formats.folder import claim, read_json, write_json
from jspec.models.heads import Head
from jspec.models.protocol import LinenModel
from jspec.models.transformer import transformer
from jspec.parallel.sharding import check, divides, read_sizes
from jspec.plan.gate import Passed, gate
from jspec.plan.published import SHAPES
from jspec.plan.sources import Work
from jspec.plan.topologies import devices_of, mesh_on, slice_of
from jspec.studies.gate_recipe import Cell, CompileGate


class Verdict(NamedTuple):
    """A launch at the gate: its programs as far as they compiled, what XLA refused, and the
    `versions` and the date of what compiled them."""

    cell: Cell
    programs: tuple[Passed, ...]
    refused: str
    versions: str
    date: str

    @property
    def passed(self) -> bool:
        """Whether all is as it should be."""
        return not self.refused and not any(one.wrong for one in self.programs)


def compile_gate(
    recipe: CompileGate, parts: Any, *, mesh: Mesh | None = None, note: Note
) -> list[Verdict]:
    """Takes every launch through the gate; what is done is kept below `output/name`.

    Args:
      parts: makes the draft of a name for a target's shape.
    """
    claim(recipe.folder / "study.json", recipe.record(), fixed=recipe.record(), what="study")
    found = []
    for number, cell in enumerate(recipe.launches(), start=1):
        file = recipe.folder / "cells" / f"{cell.name.replace('/', ' ').replace(':', '_')}.json"
        if not file.is_file():
            note(f"{number} of {len(recipe.cells)}: {cell.name}")
            target = transformer(SHAPES[cell.target])
            verdict = _through(recipe, cell, target, parts(cell.draft, target), note)
            file.parent.mkdir(parents=True, exist_ok=True)
            programs = [asdict(one) for one in verdict.programs]
            write_json(file, {**verdict._asdict(), "cell": cell.name, "programs": programs})
            # Launches share no program, and what one leaves in memory adds up to gigabytes.
            jax.clear_caches()
        told = read_json(file)
        programs = tuple(Passed(**one) for one in told["programs"])
        found.append(Verdict(**{**told, "cell": cell, "programs": programs}))
    return found


def compilers() -> str:
    """The versions of what compiles here."""
    try:
        libtpu = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        libtpu = "none"
    return f"jax {jax.__version__}, libtpu {libtpu}"


def _through(
    recipe: CompileGate, cell: Cell, target: LinenModel, part: LinenModel | Head, note: Note
) -> Verdict:
    sizes = read_sizes(cell.mesh)
    chip, _ = slice_of(cell.hardware)
    mesh = mesh_on(devices_of(cell.hardware), sizes)
    check(mesh, target.config)
    # Texts are cut over `data` alone: where `fsdp` cuts them too, every round gathers the weights.
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    programs: list[Passed] = []
    made = compilers(), datetime.now(UTC).date().isoformat()
    try:
        for one in gate(
            target, part, mesh, chip, Work(recipe.prompt, recipe.tokens),
            batch=recipe.batch * data, lesson=(recipe.length, recipe.rows * data * fsdp),
            replicated=not divides(mesh.shape, part.config),
            tick=lambda said: None,
        ):  # fmt: skip
            programs.append(one)
            note(f"  {one.program}: {one.wrong or 'passes'} ({one.seconds:.0f} s)")
    except RuntimeError as error:
        # What XLA refuses, above all what does not fit.
        refused = " ".join(str(error).split())[:400]
        note(f"  refused: {refused}")
        return Verdict(cell, tuple(programs), refused, *made)
    return Verdict(cell, tuple(programs), "", *made)
