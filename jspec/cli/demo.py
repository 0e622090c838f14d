"""`jspec demo`: the zoo's pair at work, in under 90 seconds on two cores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.text import Text

from jspec.bench import settings
from jspec.bench.agreement import Difference, differences
from jspec.bench.suite import Method, Program, drafted, held_out_work, lookup
from jspec.bench.timing import PLAIN, MethodResult, best, interleave, machine, summarise
from jspec.cli.models import load_target
from jspec.cli.verb import DONE, FAILED, Verb, console, emit, steps
from jspec.draft.draft import load_draft
from jspec.formats.huggingface import Checkpoint
from jspec.serving import runs

DTYPE = "float32"
# How tokens of the draft and of the target look.
DRAFTED, BONUS = "green", "bold black on yellow"


@dataclass(kw_only=True)
class Demo(Verb):
    """Decode held-out code with the zoo, plainly and speculatively, and compare."""

    def run(self) -> int:
        """Decodes, and shows what was found."""
        target = load_target(settings.TARGET, DTYPE)
        work = held_out_work(
            target,
            prompts=settings.DEMO_PROMPTS,
            prompt_length=settings.PROMPT_LENGTH,
            batch=1,
            tokens=settings.TOKENS,
            seed=settings.SEED,
        )
        methods, programs = _methods(target), {}
        repetitions, temperatures = settings.DEMO_REPETITIONS, settings.TEMPERATURES
        timed = repetitions * len(temperatures) * len(work.batches)
        with steps(len(methods) + timed) as tick:
            for method in methods:
                tick(f"compiling {method.name}")
                programs[method.name] = Program(method, target.model, target.params, work)
            samples = interleave(
                list(programs.values()),
                batches=len(work.batches),
                temperatures=temperatures,
                repetitions=repetitions,
                tick=tick,
                seconds=settings.DEMO_SECONDS,
            )
        found = differences(samples, target.model, target.params, work)
        results = summarise(samples, coupled=list(programs))
        compiling = sum(program.compile_seconds for program in programs.values())
        setting = {
            "draft": settings.DRAFT,
            "chain": settings.CHAIN,
            "tree": settings.TREE,
            "head": settings.HEAD,
            "head_tree": settings.HEAD_TREE,
            "lookup": settings.LOOKUP,
            "dtype": DTYPE,
            "batch": work.rows,
            "context": target.model.config.max_position_embeddings,
            "prompts": work.rows * len(work.batches),
            "prompt_tokens": settings.PROMPT_LENGTH,
            "new_tokens": work.tokens,
            "repetitions": 1 + max(sample.repetition for sample in samples),
            "compile_seconds": round(compiling, 1),
            **machine(),
        }
        if self.json:
            fastest = [_fastest(results, temperature) for temperature in temperatures]
            differing = [difference.record() for difference in found]
            emit({"results": fastest, "differences": differing, "setting": setting})
        else:
            _show(results, found, setting)
            _show_generation(programs["head"], target.tokenizer)
        return DONE if all(difference.near_tie for difference in found) else FAILED


def _methods(target: Checkpoint) -> list[Method]:
    """Plain decoding and the ways to speculate."""
    draft, head = (load_draft(name, target) for name in (settings.DRAFT, settings.HEAD))
    context = target.model.config.max_position_embeddings
    return [
        Method(PLAIN),
        drafted("chain", draft, settings.CHAIN, context),
        drafted("tree", draft, settings.TREE, context),
        drafted("head", head, settings.HEAD_TREE, context),
        lookup("lookup", settings.LOOKUP, context),
    ]


def _fastest(results: Sequence[MethodResult], temperature: float) -> dict[str, Any]:
    """The best speculative method at a temperature, for JSON."""
    plain = best(results, temperature, [PLAIN])
    speculative = {one.method for one in results} - {PLAIN}
    fastest = best(results, temperature, list(speculative))
    return {
        "temperature": temperature,
        "method": fastest.method,
        "plain_tokens_per_second": plain.tokens_per_second,
        "speculative_tokens_per_second": fastest.tokens_per_second,
        "speedup": fastest.speedup,
        "acceptance_length": fastest.acceptance_length,
        "identical": fastest.identical,
    }


def _show(
    results: Sequence[MethodResult], found: Sequence[Difference], about: dict[str, Any]
) -> None:
    """The table, what it was measured on, and every difference of texts."""
    from jspec.bench.report import method_table

    screen = console()
    title = "Plain and speculative decoding of held-out code"
    screen.print(method_table(results, title, spread=False))
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


def _show_generation(program: Program, tokenizer: Any) -> None:
    """One greedy generation, coloured by where each token is from."""
    output = program.write(0, 0.0)
    rows = np.asarray(output.tokens)[0], np.asarray(output.is_draft_token)[0]
    tokens, is_draft_token = (row[: int(output.length[0])].tolist() for row in rows)
    accepted = sum(is_draft_token)
    about = Text.assemble(
        "\n",
        ("accepted draft tokens", DRAFTED),
        f": {accepted} of {len(tokens)} tokens.  ",
        ("bonus tokens of the target", BONUS),
        f": {len(tokens) - accepted}, one for each of its {int(output.num_rounds[0])} forward "
        "passes.\n",
    )
    console().print(about)
    console().print(coloured(tokens, is_draft_token, tokenizer))


def coloured(tokens: Sequence[int], is_draft_token: Sequence[bool], tokenizer: Any) -> Text:
    """The text, run by run of tokens of the draft and of the target."""
    text = Text()
    for run, is_draft in runs(tokens, is_draft_token, tokenizer):
        text.append(run, style=DRAFTED if is_draft else BONUS)
    return text
