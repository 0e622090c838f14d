"""Text in, text out: a target, its draft and how they decode together, as one frozen object.

It holds no algorithm: `generate` encodes, calls `jspec.decode.generate` and decodes.
"""

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jspec import tuning, verify
from jspec.core.candidates import Rule
from jspec.core.prompts import PaddedPrompts, pad_prompts
from jspec.core.sampling import SamplingParams, make_keys
from jspec.core.tree import DynamicTree, Tree
from jspec.decode import (
    FINISH_REASONS,
    NONFINITE,
    RUNNING,
    STOP,
    WHY_NONFINITE,
    GenerationOutput,
    autoregress,
    generate,
)
from jspec.draft.draft import Draft, load_draft
from jspec.draft.early_stopping import check_drafter
from jspec.draft.protocol import Drafter
from jspec.draft.stopping import read_stop
from jspec.formats.encoding import check_tokens, encode_texts, encode_written
from jspec.formats.heads import HeadCheckpoint
from jspec.formats.huggingface import Checkpoint, load
from jspec.models.protocol import Params
from jspec.models.transformer import TransformerModel
from jspec.parallel.sharding import REPLICATED, RULES, on_mesh, read_mesh
from jspec.serving import (
    TextReader,
    generate_many,
    read_stop_strings,
    stream,
    stream_plain,
    stream_text,
    take_rows,
)

MAX_NEW_TOKENS = 256
AUTO = "auto"
Prompt = str | Sequence[int]
Message = Mapping[str, Any]
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class TextOutput:
    """One generated text, and what its rounds did.

    >>> out = engine.generate("import os\\n", max_new_tokens=16)
    >>> out.finish_reason, len(out.token_ids)
    ('length', 16)

    Attributes:
      text: up to a stop string or a stop token.
      token_ids: its tokens, with the stop string's or the stop token that ended it.
      is_draft_token: for each of `token_ids`, whether it is an accepted draft token.
      finish_reason: `stop` (a stop token or a stop string), `length` (`max_new_tokens`), or
        `nonfinite` where the target's logits for the next token are NaN or infinite.
      num_prompt_tokens: tokens of the prompt.
      output: one row of the functional `generate`'s output, as numpy arrays; it may go on past a
        stop string, and the counts below are of all of it.
    """

    text: str
    token_ids: list[int]
    is_draft_token: list[bool]
    finish_reason: str
    num_prompt_tokens: int
    output: GenerationOutput = field(repr=False)

    @property
    def num_rounds(self) -> int:
        """Forward passes of the target."""
        return int(self.output.num_rounds[0])

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per forward pass of the target, the bonus token included."""
        return self.output.acceptance_length

    @property
    def accepted_by_position(self) -> list[int]:
        """Rounds that accepted a draft token at each position after the root."""
        return np.asarray(self.output.accepted_by_position)[0, 1:].tolist()


class SamplingOptions(TypedDict, total=False):
    """How to sample, in vLLM's words: what `SamplingParams.create` takes, but for stop tokens.

    In a batch each is one value for all prompts, or one for each.
    """

    temperature: float | Sequence[float]
    top_k: int | Sequence[int]
    top_p: float | Sequence[float]
    min_p: float | Sequence[float]
    repetition_penalty: float | Sequence[float]
    presence_penalty: float | Sequence[float]
    frequency_penalty: float | Sequence[float]
    min_new_tokens: int | Sequence[int]
    logit_bias: Mapping[int, float] | Sequence[Mapping[int, float]] | None


def suggesting(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose error for an unknown keyword names the nearest one that it has."""
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]
    if "sampling" in names:
        names[names.index("sampling") :] = list(SamplingOptions.__annotations__)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}=?" if near else f"it has {', '.join(names)}"
                raise TypeError(f"{name}= is no argument of {function.__name__}: {hint}")
        return function(*args, **kwargs)

    return call


@dataclass(frozen=True, eq=False)
class Speculator:
    """A target and its draft, ready to generate text.

    >>> engine = Speculator.load("zoo:target", draft="zoo:distilled")
    >>> out = engine.generate("import os\\n", max_new_tokens=32, seed=7)
    >>> plain = engine.generate("import os\\n", max_new_tokens=32, seed=7, speculative=False)
    >>> out.text == plain.text
    True

    Attributes:
      draft: None for plain decoding.
      rule: which candidates are accepted; under `coupled` the text is plain decoding's.
      tree: what is drafted: a tree, its text form, or `auto` for the tree that `jspec tune`
        remembered, and the usual one where it never ran.
      stop_drafting: what stops drafting early, such as `confidence:0.3`.
      mesh: the devices that both are on.
    """

    target: Checkpoint
    draft: Draft | None = None
    rule: Rule = verify.coupled
    tree: str | Tree | DynamicTree = AUTO
    stop_drafting: str | None = None
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.target, Checkpoint):
            raise TypeError(f"target={self.target!r}: Speculator.load reads one by its name")
        if self.target.tokenizer is None:
            raise ValueError(
                f"target={str(self.target.folder)!r} has no tokenizer: put its tokenizer.json "
                "beside config.json"
            )
        if self.draft is None and (self.tree != AUTO or self.stop_drafting is not None):
            raise ValueError(
                "tree and stop_drafting are for a draft, and draft=None: leave them out"
            )
        if self.draft is not None and self.stop_drafting is not None:
            stop, _ = read_stop(
                self.stop_drafting, folder=self.draft.folder, width=self.draft.hidden_size
            )
            stop.check_compatible(self.rule)
        if not isinstance(self.tree, str | Tree | DynamicTree):
            raise TypeError(f"tree={self.tree!r}: give a Tree, or its text form such as 'chain:5'")
        if self.draft is not None and self.tree != AUTO:
            check_drafter(self.rule, self.drafter_for(0.0)[1])

    @classmethod
    @suggesting
    def load(
        cls,
        target: str | Path | Checkpoint,
        draft: str | Path | Draft | Checkpoint | HeadCheckpoint | None = None,
        *,
        rule: str | Rule = "coupled",
        tree: str | Tree | DynamicTree = AUTO,
        stop_drafting: str | None = None,
        dtype: Any = "float32",
        mesh: Mesh | Mapping[str, int] | str | None = None,
        replicate_draft: bool = False,
        allow_token_mismatch: bool = False,
    ) -> "Speculator":
        """Loads a target and its draft from `zoo:NAME`, local folders or hub names.

        Args:
          draft: a small model, a head, `lookup`, or None for plain decoding; also one that was
            loaded before, or what `jspec.distill` returns as `draft`.
          dtype: of the weights and the computation: float32, bfloat16 or float16.
          mesh: such as `{"tensor": 4}` or `tensor=4`; replicate_draft: puts all of the draft on
            every device.
          allow_token_mismatch: takes a draft model with other tokens, as `load_draft` does.

        Raises `ValueError` for a draft that does not fit the target, an unknown rule, tree or stop.
        """
        if isinstance(mesh, Mapping):
            mesh = ",".join(f"{axis}={size}" for axis, size in mesh.items())
        if isinstance(mesh, str):
            mesh = read_mesh(mesh)
        if not isinstance(target, Checkpoint):
            target = load(target, dtype=dtype, mesh=mesh)
        rules = REPLICATED if replicate_draft else RULES
        if draft is not None and not isinstance(draft, Draft):
            draft = load_draft(
                draft, target,
                dtype=dtype, mesh=mesh, rules=rules, allow_token_mismatch=allow_token_mismatch,
            )  # fmt: skip
        return cls(target, draft, verify.get(rule), tree, stop_drafting, mesh)

    @suggesting
    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int | Sequence[int] = MAX_NEW_TOKENS,
        stop_token_ids: Sequence[int] | None = None,
        stop: Sequence[str] = (),
        seed: int | Sequence[int] = 0,
        batch_size: int | None = None,
        speculative: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> Any:
        """Continues one prompt, or each of many: a `TextOutput`, or a list of them.

        Every option is one value for all prompts, or one for each, but for the stops. The same seed
        gives the same text, whatever shares the batch and whatever drafts.

        Args:
          prompts: a text or its tokens, or a list of either.
          stop_token_ids: tokens that end a text; None for the model's own.
          stop: strings before which a text ends.
          seed: of the noise that decides among tokens.
          batch_size: how many prompts are decoded at a time; None for all at once.
          speculative: False decodes plainly, which is for comparison.
          sampling: `SamplingOptions`: temperature, top_k, top_p, penalties and so on.

        Raises `ValueError` for an option outside its range, and `TypeError` for an unknown one.
        """
        if not isinstance(prompts, Sequence | np.ndarray):
            raise TypeError(f"prompts={prompts!r}: give a text, its tokens, or a list of either")
        single = isinstance(prompts, str) or all(isinstance(x, Integral) for x in prompts)
        given: Sequence[Any] = [prompts] if single else prompts
        rows = [self.encode(prompt) for prompt in given]
        stop = read_stop_strings(stop)
        params = self.sampling_params(len(rows), stop_token_ids, **sampling)
        padded, most = self._pad(rows, max_new_tokens)
        keys = make_keys(seed, len(rows))
        with on_mesh(self.mesh):
            if stop and batch_size is None:
                outputs = self._decode_until(padded, keys, params, most, speculative, rows, stop)
            else:
                outputs = self._decode(padded, keys, params, most, batch_size, speculative)
            found = [
                self._read(output, row, stop) for output, row in zip(outputs, rows, strict=True)
            ]
        return found[0] if single else found

    @suggesting
    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        stop_token_ids: Sequence[int] | None = None,
        stop: Sequence[str] = (),
        seed: int = 0,
        speculative: bool = True,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Yields the text that `generate` returns, piece by piece as it is generated.

        Warns where it ends for `nonfinite`.
        """
        ids = self.encode(prompt)
        stop = read_stop_strings(stop)
        pieces = self.stream_outputs(
            ids,
            max_new_tokens=max_new_tokens,
            seed=seed,
            speculative=speculative,
            sampling=self.sampling_params(1, stop_token_ids, **sampling),
        )
        return stream_text(_warned(pieces), self.target.tokenizer, stop=stop, prompt_tokens=ids)

    def stream_outputs(
        self,
        ids: Sequence[int],
        *,
        sampling: SamplingParams,
        max_new_tokens: int,
        seed: int = 0,
        speculative: bool = True,
    ) -> Iterator[GenerationOutput]:
        """The pieces that `stream` reads its text from, for callers that show more than text."""
        padded, most = self._pad([list(ids)], max_new_tokens)
        return self._each_on_mesh(
            self._pieces(padded, make_keys(seed, 1), sampling, most, speculative)
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        **options: Any,
    ) -> TextOutput:
        """The assistant's answer to a conversation, written by the tokenizer's chat template.

        >>> engine.chat([{"role": "user", "content": "Hello"}]).text  # doctest: +SKIP

        Args:
          messages: turns with `role` and `content`, as transformers has them.
          options: `generate`'s.
        """
        return self.generate(self.encode_chat(messages, tools=tools), **options)

    def encode(self, prompt: Prompt) -> list[int]:
        """The tokens of a prompt; tokens are handed back."""
        if isinstance(prompt, str):
            return self._known(encode_texts(self.target.tokenizer, [prompt])[0])
        if not all(isinstance(token, Integral) for token in prompt):
            raise TypeError(f"prompt={prompt!r}: here it is one text, or its tokens")
        return [int(token) for token in prompt]

    def encode_chat(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None
    ) -> list[int]:
        """The tokens of a conversation, up to where the assistant's answer begins."""
        tokenizer = self.target.tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                f"messages: the tokenizer of target={str(self.target.folder)!r} has no chat "
                "template: give generate a prompt that you write yourself"
            )
        extra = {} if tools is None else {"tools": list(tools)}
        try:
            written = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                tokenize=False,
                **extra,
            )
        # A template is a program: it may raise anything.
        except Exception as error:
            raise ValueError(
                f"messages: the chat template of target={str(self.target.folder)!r} cannot write "
                f"them ({type(error).__name__}: {' '.join(str(error).split())})"
            ) from error
        return self._known(encode_written(tokenizer, [written])[0])

    def _known(self, tokens: list[int]) -> list[int]:
        """The tokens, all of which the target has."""
        try:
            check_tokens(tokens, self.target.tokenizer, self.target.model.config.vocab_size)
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from error
        return tokens

    def drafter_for(self, temperature: float) -> tuple[TransformerModel, Drafter, Params]:
        """What the functional `generate` takes: the target to run, the drafter, and its parameters.

        Args:
          temperature: what `tree="auto"` chooses by.
        """
        if self.draft is None:
            raise ValueError("draft=None: there is no drafter; give Speculator.load a draft")
        tree = self.tree
        if isinstance(tree, str):
            tree = tuning.find_tree(
                tree, self.target, self.draft,
                rule=self.rule, temperature=temperature, mesh=self.mesh, stop=self.stop_drafting,
            )  # fmt: skip
        drafter, params = self.draft.stopping_drafter(tree, self.stop_drafting)
        return self.draft.target_model, drafter, params

    def sampling_params(
        self,
        count: int,
        stop_token_ids: Sequence[int] | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> SamplingParams:
        """Parameters for `count` texts, with the model's own stop tokens where none are given."""
        stops = self.target.stop_token_ids if stop_token_ids is None else stop_token_ids
        vocab_size = self.target.model.config.vocab_size
        return SamplingParams.create(count, stop_token_ids=stops, vocab_size=vocab_size, **sampling)

    def _pad(
        self, rows: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int]
    ) -> tuple[PaddedPrompts, np.ndarray]:
        config = self.target.model.config
        most = np.asarray(max_new_tokens)
        if most.ndim and most.shape != (len(rows),):
            raise ValueError(
                f"max_new_tokens={max_new_tokens}: one number, or {len(rows)}, one a prompt"
            )
        padded = pad_prompts(
            rows,
            context_length=config.max_position_embeddings,
            max_new_tokens=int(most.max()),
            vocab_size=config.vocab_size,
        )
        return padded, np.broadcast_to(most, (len(rows),))

    def _decode(
        self,
        prompts: PaddedPrompts,
        keys: Array,
        sampling: SamplingParams,
        max_new_tokens: np.ndarray,
        batch_size: int | None,
        speculative: bool,
    ) -> list[GenerationOutput]:
        """An output of one row for each prompt, as numpy arrays."""
        count = len(prompts.length)
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: at least one prompt is decoded at a time")
        if self.draft is None or not speculative:
            size = batch_size or count
            found = []
            for start in range(0, count, size):
                part = slice(start, start + size)
                padded, some_keys, some, most = take_rows(
                    (prompts, keys, sampling, max_new_tokens), part
                )
                output = autoregress(
                    self.target.params, padded, some_keys, some,
                    target=self.target.model, max_new_tokens=most,
                )  # fmt: skip
                found += _split(output)
            return found
        model, drafter, params = self.drafter_for(_hottest(sampling))
        how = {"target": model, "drafter": drafter, "rule": self.rule}
        given = self.target.params, params, prompts, keys, sampling
        if batch_size is None or batch_size >= count:
            return _split(generate(*given, **how, max_new_tokens=max_new_tokens))
        done = generate_many(*given, **how, max_new_tokens=max_new_tokens, batch_size=batch_size)
        outputs = {index: jax.tree.map(np.asarray, output) for index, output in done}
        return [outputs[index] for index in range(count)]

    def _decode_until(
        self,
        prompts: PaddedPrompts,
        keys: Array,
        sampling: SamplingParams,
        max_new_tokens: np.ndarray,
        speculative: bool,
        rows: Sequence[Sequence[int]],
        stop: Sequence[str],
    ) -> list[GenerationOutput]:
        """The same, in pieces, until each text has a stop string or is finished."""
        readers = [TextReader(self.target.tokenizer, stop, row) for row in rows]
        outputs: list[GenerationOutput] = []
        for piece in self._pieces(prompts, keys, sampling, max_new_tokens, speculative):
            outputs = _split(piece)
            texts = [r.read(output) for r, output in zip(readers, outputs, strict=True)]
            ends = np.asarray(piece.finish_reason) != RUNNING
            if all(text.stopped or end for text, end in zip(texts, ends, strict=True)):
                break
        return outputs

    def _pieces(
        self,
        prompts: PaddedPrompts,
        keys: Array,
        sampling: SamplingParams,
        max_new_tokens: np.ndarray,
        speculative: bool,
    ) -> Iterator[GenerationOutput]:
        given = prompts, keys, sampling
        if self.draft is None or not speculative:
            how = {"target": self.target.model, "max_new_tokens": max_new_tokens}
            return stream_plain(self.target.params, *given, **how)
        model, drafter, params = self.drafter_for(_hottest(sampling))
        how = {"drafter": drafter, "rule": self.rule, "max_new_tokens": max_new_tokens}
        return stream(self.target.params, params, *given, target=model, **how)

    def _read(
        self, output: GenerationOutput, prompt: Sequence[int], stop: Sequence[str]
    ) -> TextOutput:
        piece = TextReader(self.target.tokenizer, stop, prompt).read(output, ended=True)
        reason = STOP if piece.stopped else int(output.finish_reason[0])
        return TextOutput(
            text=piece.text,
            token_ids=output.tokens[0, : piece.tokens].tolist(),
            is_draft_token=output.is_draft_token[0, : piece.tokens].tolist(),
            finish_reason=FINISH_REASONS.get(reason, "length"),
            num_prompt_tokens=len(prompt),
            output=output,
        )

    def _each_on_mesh(self, pieces: Iterator[GenerationOutput]) -> Iterator[GenerationOutput]:
        """The mesh is in context while a piece is computed, and not in the caller's code."""
        while True:
            with on_mesh(self.mesh):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


def _warned(pieces: Iterator[GenerationOutput]) -> Iterator[GenerationOutput]:
    """The same, with a warning where a text cannot go on: a stream of text has no finish reason."""
    for piece in pieces:
        yield piece
        if np.any(np.asarray(piece.finish_reason) == NONFINITE):
            warnings.warn(WHY_NONFINITE, RuntimeWarning, stacklevel=2)


def _hottest(sampling: SamplingParams) -> float:
    """The highest temperature of a batch."""
    return float(np.asarray(sampling.temperature).max())


def _split(output: GenerationOutput) -> list[GenerationOutput]:
    """One output for each row, as numpy arrays."""
    whole = jax.tree.map(np.asarray, output)
    return [take_rows(whole, slice(row, row + 1)) for row in range(len(whole.length))]
