"""`jspec verify`, the doctor: is the text the same, and is the draft well?"""

from dataclasses import dataclass

from jspec.bench import settings
from jspec.bench.checkup import STEPS, check_up
from jspec.bench.suite import Method, compatible, drafted, held_out_work
from jspec.cli.models import Dtype, draft_under, find_rule, load_target, warn_of_loss
from jspec.cli.verb import DONE, FAILED, Verb, emit, say, steps
from jspec.core.checks import check_counts, check_seed, check_temperatures
from jspec.core.tree_text import write_tree
from jspec.draft.draft import LOOKUP, Draft, load_draft
from jspec.tuning import find_tree


@dataclass(kw_only=True)
class Verify(Verb):
    """Compare speculative decoding with plain decoding, and say how well the draft drafts."""

    target: str = settings.TARGET  # zoo:target, a local Hugging Face folder, or a hub name.
    draft: str = settings.DRAFT  # A small model, a head that was made for the target, or lookup.
    tree: str = settings.AUTO
    """What to draft: chain:5, 4x2x2x1, fork:4x5, comb:3x2x2, dynamic:4x4x12, a file of JSON paths,
    or auto, as jspec generate has it."""
    rule: str = "coupled"  # Which draft tokens are accepted, as jspec generate has it.
    stop_drafting: str | None = None
    """What stops drafting early: confidence:0.3, entropy:0.2, margin:0.3, running:0.3, network
    (beside the draft), or a folder of jspec decide."""
    temperatures: tuple[float, ...] = (0.0, 0.5, 1.0)  # Temperatures to sample at.
    prompts: int = 4  # How many held-out prompts.
    prompt_length: int = settings.PROMPT_LENGTH  # Tokens of each.
    max_new_tokens: int = 128  # New tokens of each.
    dtype: Dtype = "float32"  # Of the weights and the computation.
    allow_token_mismatch: bool = False  # Take a draft model with other tokens, with a warning.
    seed: int = settings.SEED  # Of the noise.

    def run(self) -> int:
        """Compares and examines, and shows what was found."""
        counts = ("prompts", "prompt_length", "max_new_tokens")
        check_counts(**{name: getattr(self, name) for name in counts})
        check_seed(self.seed)
        check_temperatures(self.temperatures)
        target = load_target(self.target, self.dtype)
        draft = load_draft(
            self.draft, target,
            dtype=self.dtype, allow_token_mismatch=self.allow_token_mismatch,
        )  # fmt: skip
        work = held_out_work(
            target,
            prompts=self.prompts,
            prompt_length=self.prompt_length,
            batch=self.prompts,
            tokens=self.max_new_tokens,
            seed=self.seed,
        )
        method = self._method(draft)
        examined = None if draft.kind == LOOKUP else draft
        how = {"temperatures": self.temperatures, "seed": self.seed}
        with steps(STEPS + len(self.temperatures)) as tick:
            found = check_up(target, examined, method, work, **how, tick=tick)
        if self.json:
            emit({"rule": self.rule, **found.record()})
        else:
            say(f"{method.name}, rule {self.rule}", *found.lines())
        return DONE if found.passed else FAILED

    def _method(self, draft: Draft) -> Method:
        rule, draft = find_rule(self.rule), draft_under(self.rule, draft)
        hot, stop = max(self.temperatures), self.stop_drafting
        found = find_tree(self.tree, draft.target, draft, rule=rule, temperature=hot, stop=stop)
        tree, context = write_tree(found), draft.target.model.config.max_position_embeddings
        name = " ".join(filter(None, (self.draft, tree, stop)))
        (method,) = compatible([drafted(name, draft, tree, context, rule, stop)])
        warn_of_loss(self.rule)
        return method
