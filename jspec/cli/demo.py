"""`jspec demo`: the zoo's pair at work, in under 90 seconds on two cores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from jspec.bench import settings
from jspec.cli.models import load_target
from jspec.cli.screen import console, emit, steps
from jspec.cli.verb import DONE, FAILED, Verb

if TYPE_CHECKING:
    from jspec.bench.agreement import Difference
    from jspec.bench.suite import Program, Workload
    from jspec.bench.timing import MethodResult, Sample
    from jspec.draft.draft import Draft
    from jspec.formats.huggingface import Checkpoint

METHODS = ("chain", "tree", "head", "lookup")
# How tokens of the draft and of the target look.
DRAFTED, BONUS = "green", "bold black on yellow"


@dataclass(kw_only=True)
class Demo(Verb):
    """Decode held-out code with the zoo, plainly and speculatively, and compare."""

    def run(self) -> int:
        """Decodes, and shows what was found."""
        from jspec.bench.agreement import differences
        from jspec.bench.suite import workload
        from jspec.bench.timing import PLAIN, interleave, summarise
        from jspec.draft.draft import load_draft
        from jspec.zoo.prompts import held_out_prompts

        target = load_target(settings.TARGET, "float32")
        draft, head = (load_draft(name, target) for name in (settings.DRAFT, settings.HEAD))
        rows = held_out_prompts(target.tokenizer, settings.DEMO_PROMPTS, settings.PROMPT_LENGTH)
        context = target.model.config.max_position_embeddings
        work = workload(rows, batch=1, tokens=settings.TOKENS, context=context, seed=settings.SEED)
        repetitions, temperatures = settings.DEMO_REPETITIONS, settings.TEMPERATURES
        runs = repetitions * len(temperatures) * len(work.batches)
        with steps(1 + len(METHODS) + runs) as tick:
            programs = compile_methods(target, draft, head, work, tick)
            samples = interleave(
                programs,
                batches=len(work.batches),
                temperatures=temperatures,
                repetitions=repetitions,
                tick=tick,
                seconds=settings.DEMO_SECONDS,
            )
        found = differences(samples, target.model, target.params, work)
        summary = summarise(samples, coupled=(PLAIN, *METHODS))
        about = setting(work, samples, programs, context)
        if self.json:
            emit(record(summary, found, about))
        else:
            show(summary, found, about)
            show_generation(programs[1 + METHODS.index("head")], target.tokenizer)
        return DONE if all(difference.near_tie for difference in found) else FAILED


def setting(
    work: "Workload", samples: "Sequence[Sample]", programs: "Sequence[Program]", context: int
) -> dict[str, Any]:
    """What was measured, and on what."""
    from jspec.bench.timing import machine

    return {
        "draft": settings.DRAFT,
        "chain": settings.CHAIN,
        "tree": settings.TREE,
        "head": settings.HEAD,
        "head_tree": settings.HEAD_TREE,
        "lookup": settings.LOOKUP,
        "dtype": "float32",
        "batch": work.rows,
        "context": context,
        "prompts": work.rows * len(work.batches),
        "prompt_tokens": settings.PROMPT_LENGTH,
        "new_tokens": work.tokens,
        "repetitions": 1 + max(sample.repetition for sample in samples),
        "compile_seconds": round(sum(program.compile_seconds for program in programs), 1),
        **machine(),
    }


def compile_methods(
    target: "Checkpoint",
    draft: "Draft",
    head: "Draft",
    work: "Workload",
    tick: Callable[[str], None],
) -> "list[Program]":
    """Plain decoding and the ways to speculate, each compiled."""
    from jspec.bench.suite import Method, Program, drafted, lookup
    from jspec.bench.timing import PLAIN

    context = target.model.config.max_position_embeddings
    methods = (
        Method(PLAIN),
        drafted("chain", draft, settings.CHAIN, context),
        drafted("tree", draft, settings.TREE, context),
        drafted("head", head, settings.HEAD_TREE, context),
        lookup("lookup", settings.LOOKUP, context),
    )
    programs = []
    for method in methods:
        tick(f"compiling {method.name}")
        programs.append(Program(method, target.model, target.params, work))
    return programs


def record(
    rows: "Sequence[MethodResult]", found: "Sequence[Difference]", about: dict[str, Any]
) -> dict[str, Any]:
    """The JSON object: the best speculative method at each temperature."""
    from jspec.bench.timing import PLAIN, best

    results = []
    for temperature in settings.TEMPERATURES:
        plain, fastest = best(rows, temperature, (PLAIN,)), best(rows, temperature, METHODS)
        results.append(
            {
                "temperature": temperature,
                "method": fastest.method,
                "plain_tokens_per_second": plain.tokens_per_second,
                "speculative_tokens_per_second": fastest.tokens_per_second,
                "speedup": fastest.speedup,
                "acceptance_length": fastest.acceptance_length,
                "identical": fastest.identical,
            }
        )
    return {"results": results, "differences": [d.record() for d in found], "setting": about}


def show(
    rows: "Sequence[MethodResult]", found: "Sequence[Difference]", about: dict[str, Any]
) -> None:
    """The table, what it was measured on, and every difference of texts."""
    from jspec.bench.report import method_table

    screen = console()
    screen.print(
        method_table(rows, "Plain and speculative decoding of held-out code", spread=False)
    )
    screen.print(
        f"{about['device']}, {about['cores']} cores, jax {about['jax']}, {about['dtype']}, "
        f"batch {about['batch']}; {about['prompts']} prompts of {about['prompt_tokens']} tokens, "
        f"{about['new_tokens']} new ones; medians of {about['repetitions']}; "
        f"compiled in {about['compile_seconds']} s\n"
        f"chain {about['chain']} and tree {about['tree']} of {about['draft']}, "
        f"{about['head_tree']} of the head {about['head']}, prompt lookup {about['lookup']}",
        style="dim",
    )
    for difference in found:
        screen.print(str(difference))


def show_generation(program: "Program", tokenizer: Any) -> None:
    """One greedy generation, coloured by where each token is from."""
    import numpy as np

    output = program.write(0, 0.0)
    length = int(output.length[0])
    tokens = np.asarray(output.tokens)[0, :length]
    is_draft_token = np.asarray(output.is_draft_token)[0, :length]
    share = int(is_draft_token.sum())
    screen = console()
    screen.print(
        Text.assemble(
            "\n",
            ("accepted draft tokens", DRAFTED),
            f": {share} of {len(tokens)} tokens.  ",
            ("bonus tokens of the target", BONUS),
            f": {len(tokens) - share}, one for each of its {int(output.num_rounds[0])} forward "
            "passes.\n",
        )
    )
    screen.print(coloured(tokens.tolist(), is_draft_token.tolist(), tokenizer))


def coloured(tokens: Sequence[int], is_draft_token: Sequence[bool], tokenizer: Any) -> Text:
    """The text, run by run of tokens of the draft and of the target."""
    from jspec.serving import runs

    text = Text()
    for run, drafted in runs(tokens, is_draft_token, tokenizer):
        text.append(run, style=DRAFTED if drafted else BONUS)
    return text
