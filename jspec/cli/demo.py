"""`jspec demo`: the zoo's pair at work, in under 90 seconds on two cores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from jspec.bench import settings
from jspec.cli.pair import find_draft, read_target
from jspec.cli.screen import console, emit, steps
from jspec.cli.verb import DONE, FAILED, Verb

if TYPE_CHECKING:
    from jspec.bench.agreement import Difference
    from jspec.bench.drafts import Draft
    from jspec.bench.suite import Program, Workload
    from jspec.bench.summary import Row
    from jspec.bench.timing import Sample
    from jspec.formats.huggingface import Checkpoint

METHODS = ("chain", "tree", "head", "look-up")
GUESSED, SUPPLIED = "green", "bold black on yellow"


@dataclass(kw_only=True)
class Demo(Verb):
    """Decode held-out code with the zoo, plainly and speculatively, and compare."""

    def run(self) -> int:
        from jspec.bench.agreement import differences
        from jspec.bench.suite import PLAIN, workload
        from jspec.bench.summary import summarise
        from jspec.bench.timing import interleave
        from jspec.zoo.prompts import held_out_prompts

        target = read_target(settings.TARGET, "float32")
        draft, head = (
            find_draft(name, target, "float32") for name in (settings.DRAFT, settings.HEAD)
        )
        rows = held_out_prompts(target.tokenizer, settings.DEMO_PROMPTS, settings.PROMPT_LENGTH)
        context = target.model.config.context
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
    from jspec.bench.machine import machine

    return {
        "draft": settings.DRAFT,
        "chain": settings.CHAIN,
        "tree": settings.TREE,
        "head": settings.HEAD,
        "head_tree": settings.HEAD_TREE,
        "look-up": settings.LOOKUP,
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
    from jspec.bench.suite import PLAIN, Method, Program, drafted, lookup

    context = target.model.config.context
    methods = (
        Method(PLAIN),
        drafted("chain", draft, settings.CHAIN, context),
        drafted("tree", draft, settings.TREE, context),
        drafted("head", head, settings.HEAD_TREE, context),
        lookup("look-up", settings.LOOKUP, context),
    )
    programs = []
    for method in methods:
        tick(f"compiling {method.name}")
        programs.append(Program(method, target.model, target.params, work))
    return programs


def record(
    rows: "Sequence[Row]", found: "Sequence[Difference]", about: dict[str, Any]
) -> dict[str, Any]:
    """The JSON object: the best speculative method at each temperature."""
    from jspec.bench.suite import PLAIN
    from jspec.bench.summary import best

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
                "tokens_per_round": fastest.tokens_per_round,
                "identical": fastest.identical,
            }
        )
    return {"results": results, "differences": [d.record() for d in found], "setting": about}


def show(rows: "Sequence[Row]", found: "Sequence[Difference]", about: dict[str, Any]) -> None:
    """The table, what it was measured on, and every difference of texts."""
    from jspec.bench.table import table

    screen = console()
    screen.print(table(rows, "Plain and speculative decoding of held-out code", spread=False))
    screen.print(
        f"{about['device']}, {about['cores']} cores, jax {about['jax']}, {about['dtype']}, "
        f"batch {about['batch']}; {about['prompts']} prompts of {about['prompt_tokens']} tokens, "
        f"{about['new_tokens']} new ones; medians of {about['repetitions']}; "
        f"compiled in {about['compile_seconds']} s\n"
        f"chain {about['chain']} and tree {about['tree']} of {about['draft']}, "
        f"{about['head_tree']} of the head {about['head']}, look-up {about['look-up']}",
        style="dim",
    )
    for difference in found:
        screen.print(str(difference))


def show_generation(program: "Program", tokenizer: Any) -> None:
    """One greedy generation, coloured by who wrote each token."""
    import numpy as np

    generation = program.write(0, 0.0)
    tokens, guessed = np.asarray(generation.tokens)[0], np.asarray(generation.guessed)[0]
    share = int(guessed.sum())
    screen = console()
    screen.print(
        Text.assemble(
            "\n",
            ("guessed by the draft", GUESSED),
            f": {share} of {len(tokens)} tokens.  ",
            ("supplied by the target", SUPPLIED),
            f": {len(tokens) - share}, one for each of its {int(generation.rounds[0])} passes.\n",
        )
    )
    screen.print(coloured(tokens.tolist(), guessed.tolist(), tokenizer))


def coloured(tokens: Sequence[int], guessed: Sequence[bool], tokenizer: Any) -> Text:
    """The text, run by run of tokens from the same hand."""
    from jspec.serving import runs

    text = Text()
    for run, hit in runs(tokens, guessed, tokenizer):
        text.append(run, style=GUESSED if hit else SUPPLIED)
    return text
