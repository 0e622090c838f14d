"""`tree="auto"`: the tree that was the fastest when a pair was measured on this machine, and the
usual one where nothing was measured; and the measuring."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jspec.bench import settings
from jspec.bench.suite import Program, Workload, held_out_work, plain_program
from jspec.bench.timing import interleave, machine, summarise
from jspec.core.candidates import SAMPLED, Rule
from jspec.core.tree import DynamicTree, Tree
from jspec.core.tree_text import read_tree
from jspec.draft.draft import Draft
from jspec.formats.decision import WEIGHTS
from jspec.formats.folder import read_json, write_json
from jspec.formats.huggingface import Checkpoint
from jspec.tuning.acceptance import compatible_trees, count_accepted, method_of, shares_of
from jspec.tuning.costs import PROBES, Costs, measure_costs
from jspec.tuning.search import acceptance_length, fastest_tree
from jspec.tuning.usual import EARLY_STOPPING_TREE, FALLBACKS, LOOKUP, usual_tree
from jspec.verify import coupled

# How deep and wide acceptance is measured, and the largest tree that is considered.
DEPTH, WIDTH, NODES = 8, 6, 48
# Trees of each kind that are timed in the end, and how often.
FINALISTS, REPETITIONS = 2, 3
LEAD = 1.03  # of a tree over the best chain
# Trees are remembered for the nearest of these temperatures.
GRID = 0.5
# The text that is measured on.
PROMPTS, PROMPT_LENGTH, TOKENS = 8, 64, 96


@dataclass(frozen=True, eq=False)
class TuningResult:
    """A tree and why it was chosen.

    Attributes:
      tree: the fastest that was timed, or the fastest chain where that is practically as fast.
      chain: the fastest chain.
      timed: the speed-up over plain decoding of all that were timed, by tree.
      acceptance: `[D, W]`; costs: of a round; both measured.
    """

    tree: Tree
    chain: Tree
    timed: dict[Tree, float]
    acceptance: np.ndarray
    costs: Costs

    def record(self) -> dict[str, Any]:
        """For JSON."""
        timed = [{"parents": list(t.parents), "speedup": x} for t, x in self.timed.items()]
        measured = {"acceptance": self.acceptance.tolist(), "costs": self.costs.record()}
        return {"timed": timed, **measured}


def find_tree(
    text: str,
    target: Checkpoint,
    draft: Draft,
    *,
    rule: Rule = coupled,
    temperature: float = 0.0,
    mesh: Mesh | None = None,
    stop: str | None = None,
) -> Tree | DynamicTree:
    """The tree that `text` describes. `auto` is what was remembered for the pair on this machine,
    else the usual one; nothing is measured.

    Args:
      mesh: on which both are.
      stop: what stops drafting early, which takes a chain of its own.

    Raises `ValueError` for a text that is no tree.
    """
    context = target.model.config.max_position_embeddings
    if text != settings.AUTO:
        return read_tree(text, context)
    # Processes of one launch must agree, and each machine remembers for itself.
    if draft.kind != LOOKUP and stop is None and jax.process_count() == 1:
        found = remembered_tree(target, draft, rule=rule, temperature=temperature, mesh=mesh)
        if found is not None:
            return found
    usual = usual_tree(draft.kind, jax.local_devices()[0].platform, temperature)
    texts = (usual, *FALLBACKS) if stop is None else (EARLY_STOPPING_TREE,)
    return _first_compatible(texts, draft, rule, context)


def remembered_tree(
    target: Checkpoint,
    draft: Draft,
    *,
    rule: Rule = coupled,
    temperature: float = 0.0,
    mesh: Mesh | None = None,
) -> Tree | None:
    """The tree that `tune` found for the pair, the rule and the nearest temperature on this
    machine; None where it never ran."""
    return load_tree(_identity(target, draft, rule, temperature, mesh))


def tune(
    target: Checkpoint,
    draft: Draft,
    *,
    rule: Rule = coupled,
    temperature: float = 0.0,
    mesh: Mesh | None = None,
    work: Workload | None = None,
    tick: Callable[[str], None] = lambda _: None,
) -> TuningResult:
    """Measures which tree is the fastest for a pair on this machine, and remembers it for
    `tree="auto"`. It takes a minute for a small pair.

    Args:
      work: what is measured on; None for held-out code, one text at a time.
      tick: hears what is done, at most `count_steps` times.

    Raises `ValueError` for prompt lookup, and for a rule that takes no static tree whose candidates
    it draws.
    """
    if draft.kind == LOOKUP:
        raise ValueError(
            "draft='lookup': prompt lookup takes its usual tree; tune a model or a head"
        )
    temperature = _nearest(temperature)
    work = work or tuning_work(target)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        found = find_fastest(draft, target, work, rule=rule, temperature=temperature, tick=tick)
    save_tree(_identity(target, draft, rule, temperature, mesh), found.tree, found.record())
    return found


def tuning_work(target: Checkpoint) -> Workload:
    """What `tune` measures on where nothing else is given."""
    return held_out_work(
        target,
        prompts=PROMPTS,
        prompt_length=PROMPT_LENGTH,
        batch=1,
        tokens=min(TOKENS, target.model.config.max_position_embeddings - PROMPT_LENGTH),
        seed=settings.SEED,
    )


def count_steps(work: Workload) -> int:
    """How often `tune` says what it does, at most."""
    return 2 + len(PROBES) + 2 * FINALISTS + REPETITIONS * len(work.batches)


def find_fastest(
    draft: Draft,
    target: Checkpoint,
    work: Workload,
    *,
    rule: Rule,
    temperature: float,
    tick: Callable[[str], None],
    spent: Costs | None = None,
) -> TuningResult:
    """Measures acceptance and the costs of a round, finds the trees and the chains that should be
    fastest, and times these side by side.

    Args:
      work: batches of the size that is served; acceptance is that of its prompts.
      spent: the costs of a round, where they are known.
    """
    rule.check_compatible(Tree.chain(1), SAMPLED)
    how = {"rule": rule, "temperature": temperature}
    tick("measuring acceptance")
    counts = count_accepted(draft, target, work, depth=DEPTH, width=WIDTH, **how)
    accepted = shares_of(counts.sum(axis=0))
    if spent is None:
        spent = measure_costs(draft, target, work, **how, repetitions=REPETITIONS, tick=tick)
    finalists = list(
        dict.fromkeys(
            _finalists(accepted, spent, rule, target.model.config.max_position_embeddings)
        )
    )
    timed = _timed(finalists, draft, target, work, **how, tick=tick)
    tree = max(finalists, key=timed.__getitem__)
    chain = max((one for one in finalists if one.width == 1), key=timed.__getitem__)
    # A lead that small is noise, and the chain the safer choice.
    tree = chain if timed[tree] < LEAD * timed[chain] else tree
    return TuningResult(tree, chain, timed, accepted, spent)


def cache_folder() -> Path:
    """Where trees are remembered: below `XDG_CACHE_HOME`, or `.cache` of the home."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "jspec" / "trees"


def fingerprint(folder: Path) -> str:
    """Of a model's files: their names, sizes and times, and its configuration. A stopping network
    beside them may change."""
    weights = (file for file in folder.glob("*.safetensors") if file.name != WEIGHTS)
    files = [(x.name, x.stat().st_size, x.stat().st_mtime_ns) for x in weights]
    config = folder / "config.json"
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    return hashlib.sha256(json.dumps([sorted(files), text]).encode()).hexdigest()[:16]


def load_tree(identity: Mapping[str, Any]) -> Tree | None:
    """The tree that was saved under an identity; None where there is none. Raises `ValueError` for
    a damaged file."""
    key = json.loads(json.dumps(dict(identity)))
    file = _file(key)
    if not os.access(file, os.R_OK):
        return None
    try:
        found = read_json(file)
        if found["of"] != key:
            return None
        parents = found["parents"]
        if len(parents) < 2 or any(type(parent) is not int for parent in parents):
            raise TypeError(f"parents={parents!r}")
        return Tree(tuple(parents))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} does not hold a tree ({error!r}): delete it, and run jspec tune again"
        ) from error


def save_tree(identity: Mapping[str, Any], tree: Tree, details: Mapping[str, Any]) -> None:
    """Saves a tree and what was measured of it under an identity; nothing where the cache cannot be
    written."""
    key = json.loads(json.dumps(dict(identity)))
    file = _file(key)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"of": key, "parents": list(tree.parents), **details})


def _file(identity: Mapping[str, Any]) -> Path:
    return cache_folder() / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]}.json"


def _identity(
    target: Checkpoint, draft: Draft, rule: Rule, temperature: float, mesh: Mesh | None
) -> dict[str, Any]:
    """What a remembered tree depends on."""
    return {
        "machine": machine(),
        "target": fingerprint(target.folder),
        "draft": fingerprint(draft.folder or Path()),
        "rule": rule.name,
        "temperature": _nearest(temperature),
        "dtype": jax.tree.leaves(target.params)[0].dtype.name,
        "mesh": dict(mesh.shape) if mesh else None,
    }


def _nearest(temperature: float) -> float:
    return round(temperature / GRID) * GRID


def _first_compatible(
    texts: tuple[str, ...], draft: Draft, rule: Rule, context: int
) -> Tree | DynamicTree:
    """The first tree that a rule takes from the draft; raises what the rule says of the first."""
    refusal: ValueError | None = None
    for text in texts:
        try:
            tree = read_tree(text, context)
            rule.check_compatible(tree, draft.drafter(tree).source)
        except ValueError as error:
            refusal = refusal or error
        else:
            return tree
    assert refusal is not None  # there is at least one text
    raise refusal


def _finalists(accepted: np.ndarray, spent: Costs, rule: Rule, context: int) -> Iterator[Tree]:
    """The chains and the trees that should be fastest."""
    chains = [Tree.chain(depth) for depth in range(1, len(accepted) + 1)]
    rate = {one: acceptance_length(one, accepted) / spent.round(one) for one in chains}
    fits = compatible_trees(sorted(chains, key=rate.__getitem__, reverse=True), rule, context)
    yield from islice(fits, FINALISTS)
    for depth in (len(accepted), 2):
        tree, _ = fastest_tree(accepted[:depth], spent.round, nodes=min(NODES, context))
        yield from compatible_trees([tree], rule, context)


def _timed(
    trees: list[Tree],
    draft: Draft,
    target: Checkpoint,
    work: Workload,
    *,
    rule: Rule,
    temperature: float,
    tick: Callable[[str], None],
) -> dict[Tree, float]:
    """The speed-up over plain decoding, by decoding."""
    programs = [plain_program(target, work)]
    for number, tree in enumerate(trees):
        tick(f"compiling a tree of {tree.size} nodes")
        method = method_of(draft, tree, rule, str(number))
        programs.append(Program(method, target.model, target.params, work))
    samples = interleave(
        programs,
        batches=len(work.batches),
        temperatures=(temperature,),
        repetitions=REPETITIONS,
        tick=tick,
    )
    speed = {one.method: one.speedup for one in summarise(samples, coupled=())}
    return {tree: speed[str(number)] for number, tree in enumerate(trees)}
