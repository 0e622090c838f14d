"""The gate before a launch: all of its programs, compiled from shapes."""

from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import jax
from jax.sharding import Mesh

from jspec.formats.folder import read_json, write_json
from jspec.models.heads import Head
from jspec.models.transformer import TransformerModel, transformer
from jspec.parallel.sharding import check, divides, read_sizes
from jspec.plan.gate import check_launch
from jspec.plan.hardware import devices_of, mesh_on, slice_of
from jspec.plan.shapes import SHAPES
from jspec.plan.sources import TextLengths
from jspec.studies.compile_gate.recipe import CompileGateStudy, Launch
from jspec.training.checkpoints import Note

FindDraft = Callable[[str, TransformerModel], TransformerModel | Head]
"""Makes the draft of a name for a target's shape."""


# A launch at the gate: the fields of `Launch`, whether it `passed`, its `programs` as far as they
# compiled, what XLA `refused`, and the `versions` and the `date` of what compiled them.
Compiled = dict[str, Any]


def measure(
    recipe: CompileGateStudy, find_draft: FindDraft, *, mesh: Mesh | None = None, note: Note
) -> list[Compiled]:
    """Takes every launch through the gate. `mesh` is not used: each launch has its own."""
    del mesh
    recipe.claim_folder()
    found, launches = [], recipe.read_launches()
    for number, launch in enumerate(launches, start=1):
        name = launch.name.replace("/", " ").replace(":", "_")
        file = recipe.folder / "launches" / f"{name}.json"
        if not file.is_file():
            note(f"{number} of {len(launches)}: {launch.name}")
            compiled = _through(recipe, launch, find_draft, note)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"launch": launch.name, **compiled})
            # Launches share no program, and what one leaves in memory adds up to gigabytes.
            jax.clear_caches()
        kept = read_json(file)
        del kept["launch"]
        passed = not kept["refused"] and not any(one["problem"] for one in kept["programs"])
        found.append({**launch._asdict(), "passed": passed, **kept})
    return found


def compilers() -> str:
    """The versions of what compiles here."""
    try:
        libtpu = metadata.version("libtpu")
    except metadata.PackageNotFoundError:
        libtpu = "none"
    return f"jax {jax.__version__}, libtpu {libtpu}"


def _through(
    recipe: CompileGateStudy, launch: Launch, find_draft: FindDraft, note: Note
) -> dict[str, Any]:
    target = transformer(SHAPES[launch.target])
    part, found = find_draft(launch.draft, target), slice_of(launch.hardware)
    assert found is not None  # the recipe refuses other names
    mesh = mesh_on(devices_of(launch.hardware), read_sizes(launch.mesh))
    check(mesh, target.config)
    # Texts are cut over `data` alone: where `fsdp` cuts them too, every round gathers the weights.
    data, fsdp = mesh.shape["data"], mesh.shape["fsdp"]
    programs, refused = [], ""
    made = {"versions": compilers(), "date": datetime.now(UTC).date().isoformat()}
    try:
        for one in check_launch(
            target, part, mesh, found[0], TextLengths(recipe.prompt_length, recipe.max_new_tokens),
            batch=recipe.batch * data, training=(recipe.length, recipe.rows * data * fsdp),
            replicated=not divides(mesh.shape, part.config),
            tick=lambda _: None,
        ):  # fmt: skip
            programs.append(one.record())
            note(f"  {one.program}: {one.problem or 'passes'} ({one.seconds:.0f} s)")
    except RuntimeError as error:
        # What XLA refuses, above all what does not fit.
        refused = " ".join(str(error).split())[:400]
        note(f"  refused: {refused}")
    return {"programs": programs, "refused": refused, **made}
