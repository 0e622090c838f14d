"""What studies measure with: their texts, decoding, and timing in turns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jspec.bench.suite import Method, Program, Workload, workload
from jspec.bench.timing import MethodResult, Runner, interleave, summarise
from jspec.core.prompts import pad_prompts
from jspec.core.sampling import SamplingParams
from jspec.decode import GenerationOutput, autoregress, generate
from jspec.draft.draft import Draft
from jspec.draft.protocol import Drafter
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import Params
from jspec.studies.common.recipe import COUPLED, TrainingStudy
from jspec.studies.common.records import Measure, Record
from jspec.training.data import Document
from jspec.training.generated_data import sample_prompts
from jspec.training.loop import progress
from jspec.training.recipe import Distillation, TeacherData
from jspec.training.run import TEACHER_DATA, TrainSetup, generate_teacher_data
from jspec.training.text_data import Texts

DOMAINS = IN_DOMAIN, OUT_OF_DOMAIN = "in domain", "out of domain"
SEED = 7

# The memory maps that a process has, and how many of them are many.
MAPS, MANY_MAPS = Path("/proc/self/maps"), 30_000


class Material(NamedTuple):
    """How drafts are trained, on which texts, and what they are measured on.

    `out_of_domain` are texts of another domain; `find` loads a draft by its name.
    """

    setup: TrainSetup
    texts: Texts
    held_out: Texts
    out_of_domain: Texts
    find: Callable[[str], Draft]

    @property
    def domains(self) -> dict[str, Texts]:
        """Texts to measure on."""
        return {IN_DOMAIN: self.held_out, OUT_OF_DOMAIN: self.out_of_domain}

    def teacher_data(self, training: Distillation, folder: Path) -> Sequence[Document]:
        """What the target generates once, for all drafts."""
        if not training.teacher_data.weight:
            return ()
        return generate_teacher_data(training, folder / TEACHER_DATA, self.setup, self.texts)


def evaluation_prompts(
    texts: Texts, count: int, *, length: int, max_new_tokens: int, context: int
) -> list[list[int]]:
    """Prompts of one length, the same in every run; raises `ValueError` if the texts have none as
    long, or fewer."""
    wanted = TeacherData(count=count, prompt_length=length, max_new_tokens=max_new_tokens)
    # Those of conversations have lengths of their own; an answer depends on their ends.
    found = [row[-length:] for row in sample_prompts(texts, wanted, context=context, seed=SEED)]
    shortest = min(map(len, found))
    if shortest < length:
        raise ValueError(f"prompt_length={length}: a prompt has {shortest} tokens: ask for fewer")
    if texts.prompt_lengths.any():
        available = int((texts.prompt_lengths >= length).sum())
    else:
        available = int((texts.lengths - length + 1).clip(0).sum())
    if count > available:
        raise ValueError(
            f"prompts={count}: the held-out texts hold {available} prompts of {length} tokens: "
            "ask for fewer"
        )
    return [row.tolist() for row in found]


class Evaluation:
    """The same held-out prompts of each domain, and the same keys, for all drafts of a study."""

    def __init__(
        self, recipe: TrainingStudy, target: Checkpoint, domains: Mapping[str, Texts]
    ) -> None:
        self.recipe, self.target, self._texts = recipe, target, domains
        self.keys = jax.random.split(jax.random.key(SEED), recipe.prompts)
        self._context = target.model.config.max_position_embeddings
        self.rows = {domain: self._rows(domain, recipe.prompts) for domain in domains}
        self._prompts = {
            domain: pad_prompts(
                rows, context_length=self._context, max_new_tokens=recipe.max_new_tokens
            )
            for domain, rows in self.rows.items()
        }

    def decode(
        self, domain: str, temperature: float, drafter: Drafter, draft: Params, rule: str = COUPLED
    ) -> GenerationOutput:
        """Speculative decoding of a domain's prompts."""
        return generate(
            self.target.params, draft, *self._given(domain, temperature),
            target=self.target.model, drafter=drafter, rule=rule,
            max_new_tokens=self.recipe.max_new_tokens,
        )  # fmt: skip

    def plain(self, domain: str, temperature: float) -> GenerationOutput:
        """Plain decoding of a domain's prompts."""
        return autoregress(
            self.target.params, *self._given(domain, temperature),
            target=self.target.model, max_new_tokens=self.recipe.max_new_tokens,
        )  # fmt: skip

    def timed_work(self) -> Workload:
        """Prompts to time on, one at a time."""
        rows, tokens = self._rows(IN_DOMAIN, self.recipe.timed_prompts), self.recipe.max_new_tokens
        return workload(rows, batch=1, tokens=tokens, context=self._context, seed=SEED)

    def _rows(self, domain: str, count: int) -> list[list[int]]:
        return evaluation_prompts(
            self._texts[domain], count, length=self.recipe.prompt_length,
            max_new_tokens=self.recipe.max_new_tokens, context=self._context,
        )  # fmt: skip

    def _given(self, domain: str, temperature: float) -> tuple:
        sampling = SamplingParams.create(len(self.keys), temperature=temperature)
        return self._prompts[domain], self.keys, sampling


def acceptance(generation: GenerationOutput, record: Callable[..., Record]) -> Iterator[Record]:
    """The acceptance length, and the share of rounds that accepted a draft token at each position,
    below the first of which drafts read what they drafted."""
    yield record(measure=Measure.ACCEPTANCE_LENGTH, value=generation.acceptance_length)
    accepted = np.asarray(generation.accepted_by_position).sum(axis=0)
    for position, count in enumerate(accepted[1:], start=1):
        share = float(count / np.asarray(generation.num_rounds).sum())
        yield record(measure=Measure.ACCEPTED_BY_POSITION, position=position, value=share)


def compile_programs(
    methods: Sequence[Method], target: Checkpoint, work: Workload, name: str = "compiling"
) -> list[Program]:
    """One program for each method, all of which do the same work."""
    found = []
    with progress(name, len(methods)) as show:
        for method in methods:
            found.append(Program(method, target.model, target.params, work))
            show(len(found), method.name)
    return found


def time_in_turns(
    runners: Sequence[Runner],
    work: Workload,
    temperatures: Sequence[float],
    repetitions: int,
    *,
    name: str = "timing",
    left_out: Sequence[str] = (),
) -> list[MethodResult]:
    """Medians of all runners, interleaved, plain decoding among them, but for those `left_out`."""
    batches = len(work.batches)
    total = repetitions * len(temperatures) * batches
    with progress(name, total) as show:
        done = iter(range(total))
        samples = interleave(
            runners,
            batches=batches,
            temperatures=temperatures,
            repetitions=repetitions,
            tick=lambda said: show(next(done), said),
        )
    return summarise([one for one in samples if one.method not in left_out], coupled=())


def timings(row: MethodResult, *measures: str) -> Iterator[tuple[str, float]]:
    """Those measures of a row that it has; all of them where none is named."""
    found: dict[str, float | None] = {
        Measure.TOKENS_PER_SECOND: row.tokens_per_second,
        Measure.TOKENS_PER_SECOND_SPREAD: (row.fastest - row.slowest) / 2,
        Measure.SPEEDUP: row.speedup,
        Measure.ACCEPTANCE_LENGTH: row.acceptance_length,
        Measure.ACCEPTANCE_RATE: row.acceptance_rate,
        Measure.ACCEPTANCE_RATE_DRAFTED: row.acceptance_rate_drafted,
    }
    for measure in measures or found:
        if (value := found[measure]) is not None:
            yield measure, value


def drop_programs() -> None:
    """Forgets compiled programs where the process has used much of the 65,530 memory maps that
    Linux allows it: a program takes a thousand, and XLA dies of the last. They are compiled again
    when called."""
    if MAPS.is_file() and len(MAPS.read_bytes().splitlines()) > MANY_MAPS:
        jax.clear_caches()
