"""What studies measure with: training, held-out texts, decoding, and timing in turns."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jspec.bench.suite import Method, Program, Workload, workload
from jspec.bench.timing import MethodResult, Runner, interleave, summarise
from jspec.core.prompts import pad_prompts
from jspec.core.sampling import SamplingParams
from jspec.decode import GenerationOutput, autoregress, generate
from jspec.draft.draft import Draft, load_draft
from jspec.draft.protocol import Drafter
from jspec.formats.folder import read_json, write_json
from jspec.formats.huggingface import Checkpoint
from jspec.models.protocol import Params
from jspec.studies.common.recipe import DecodingStudy, Study
from jspec.studies.common.records import Measure, Record, Records, records_of
from jspec.training.data import Document
from jspec.training.generated_data import sample_prompts
from jspec.training.loading import load_student
from jspec.training.loop import progress
from jspec.training.recipe import Distillation, TeacherData
from jspec.training.run import TEACHER_DATA, TrainSetup, generate_teacher_data, run_distillation
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

    def student(self, run: Distillation, mesh: Mesh | None) -> Draft:
        """The draft that a run starts from."""
        target = self.setup.target
        return load_draft(load_student(run, target, mesh), target)

    def train(
        self, run: Distillation, setup: TrainSetup | None = None, **more: Any
    ) -> Draft | None:
        """The student of a setup once it is trained, from where its run stopped; None if the
        machine is taken away before. Takes what `run_distillation` takes."""
        setup = setup or self.setup
        drop_programs()
        done = run_distillation(run, setup, self.texts, self.held_out, **more)
        return setup.student.with_params(done.params) if done.step == run.steps else None


class Evaluation:
    """The same held-out prompts of each domain, and the same keys, for all drafts of a study.

    `rows` are prompts of one length by domain, the same in every run. Raises `ValueError` if the
    texts have none as long, or fewer.
    """

    def __init__(
        self, recipe: DecodingStudy, target: Checkpoint, domains: Mapping[str, Texts]
    ) -> None:
        self.recipe, self.target, self._texts = recipe, target, domains
        self.keys = jax.random.split(jax.random.key(SEED), recipe.prompts)
        self._context = target.model.config.max_position_embeddings
        self._how = {"target": target.model, "max_new_tokens": recipe.max_new_tokens}
        self.rows = {domain: self._rows(domain, recipe.prompts) for domain in domains}
        self._prompts = {
            domain: pad_prompts(
                rows, context_length=self._context, max_new_tokens=recipe.max_new_tokens
            )
            for domain, rows in self.rows.items()
        }

    def plain(self, domain: str, temperature: float) -> GenerationOutput:
        """Plain decoding of a domain's prompts."""
        return autoregress(self.target.params, *self._given(domain, temperature), **self._how)

    def acceptance(self, drafter: Drafter, params: Params, **place: Any) -> Iterator[Record]:
        """By speculative decoding the acceptance length, and the share of rounds that accepted a
        draft token at each position, below the first of which drafts read what they drafted.

        Args:
          place: fields of the records, among them domain, temperature and rule.
        """
        found = generate(
            self.target.params, params, *self._given(place["domain"], place["temperature"]),
            drafter=drafter, rule=place["rule"], **self._how,
        )  # fmt: skip
        yield from records_of({Measure.ACCEPTANCE_LENGTH: found.acceptance_length}, **place)
        rounds = np.asarray(found.num_rounds).sum()
        accepted = np.asarray(found.accepted_by_position).sum(axis=0)
        for position, count in enumerate(accepted[1:], start=1):
            share = {Measure.ACCEPTED_BY_POSITION: float(count / rounds)}
            yield from records_of(share, position=position, **place)

    def work(self, prompts: int, batch: int = 1) -> Workload:
        """Prompts to time on, `batch` of them at a time."""
        rows, tokens = self._rows(IN_DOMAIN, prompts), self.recipe.max_new_tokens
        return workload(rows, batch=batch, tokens=tokens, context=self._context, seed=SEED)

    def _given(self, domain: str, temperature: float) -> tuple:
        sampling = SamplingParams.create(len(self.keys), temperature=temperature)
        return self._prompts[domain], self.keys, sampling

    def _rows(self, domain: str, count: int) -> list[list[int]]:
        texts, length = self._texts[domain], self.recipe.prompt_length
        wanted = TeacherData(
            count=count, prompt_length=length, max_new_tokens=self.recipe.max_new_tokens
        )
        # Those of conversations have lengths of their own; an answer depends on their ends.
        prompts = sample_prompts(texts, wanted, context=self._context, seed=SEED)
        found = [row[-length:].tolist() for row in prompts]
        shortest = min(map(len, found))
        if shortest < length:
            raise ValueError(
                f"prompt_length={length}: a prompt has {shortest} tokens: ask for fewer"
            )
        if texts.prompt_lengths.any():
            available = int((texts.prompt_lengths >= length).sum())
        else:
            available = int((texts.lengths - length + 1).clip(0).sum())
        if count > available:
            raise ValueError(
                f"prompts={count}: the held-out texts hold {available} prompts of {length} tokens: "
                "ask for fewer"
            )
        return found


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
    runners: Sequence[Runner], work: Workload, recipe: DecodingStudy, *, name: str = "timing"
) -> list[MethodResult]:
    """Medians of all runners, interleaved, plain decoding among them; of those without text there
    is no result."""
    batches, temperatures = len(work.batches), recipe.temperatures
    total = recipe.repetitions * len(temperatures) * batches
    with progress(name, total) as show:
        done = iter(range(total))
        samples = interleave(
            runners,
            batches=batches,
            temperatures=temperatures,
            repetitions=recipe.repetitions,
            tick=lambda said: show(next(done), said),
        )
    return summarise([one for one in samples if one.run.tokens.size], coupled=())


def timings(row: MethodResult, *measures: Measure) -> dict[Measure, float]:
    """Those measures of a row that it has; all of them where none is named."""
    found = {
        Measure.TOKENS_PER_SECOND: row.tokens_per_second,
        Measure.TOKENS_PER_SECOND_SPREAD: (row.fastest - row.slowest) / 2,
        Measure.SPEEDUP: row.speedup,
        Measure.ACCEPTANCE_LENGTH: row.acceptance_length,
        Measure.ACCEPTANCE_RATE: row.acceptance_rate,
        Measure.ACCEPTANCE_RATE_DRAFTED: row.acceptance_rate_drafted,
    }
    return {one: value for one in measures or found if (value := found[one]) is not None}


class RecordStore:
    """The records of a study on disk: what is there is not measured again.

    Raises `ValueError` if the folder holds a study whose recipe is another.
    """

    def __init__(self, recipe: Study) -> None:
        recipe.claim_folder()
        self._folder = recipe.folder / "records"
        self._found: list[Record] = []

    def once(
        self, name: str, measure: Callable[..., Iterable[Record]], *given: Any
    ) -> list[Record]:
        """The records under that name, measured now if there are none."""
        file = self._folder / f"{name}.json"
        if not file.is_file():
            drop_programs()
            found = [one.record() for one in measure(*given)]
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"records": found})
        try:
            read = [Record(**one) for one in read_json(file)["records"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file} does not hold a study's records ({error!r}): delete it, and they are "
                "measured again"
            ) from error
        self._found += read
        return read

    @property
    def records(self) -> Records:
        """All that was asked for so far."""
        return Records(self._found)


def drop_programs() -> None:
    """Forgets compiled programs where the process has used much of the 65,530 memory maps that
    Linux allows it: a program takes a thousand, and XLA dies of the last. They are compiled again
    when called."""
    if MAPS.is_file() and len(MAPS.read_bytes().splitlines()) > MANY_MAPS:
        jax.clear_caches()
