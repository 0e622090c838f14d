"""What texts are compared with: a mixed batch, drafters of every kind, and where two texts part."""

import functools
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jspec import (
    Drafter,
    DynamicTree,
    GenerationOutput,
    LookupDrafter,
    Model,
    ModelConfig,
    PaddedPrompts,
    SamplingParams,
    SmallModelDrafter,
    Tree,
    autoregress,
    generate,
    pad_prompts,
    transformer,
    verify,
)
from jspec.core.penalties import init_counts
from jspec.core.sampling import process_logits, sample_noise
from jspec.decode import autoregress_program, budget, generate_program
from jspec.draft.feature_head import FeatureDrafter
from jspec.models.eagle3 import Eagle3, eagle3
from jspec.models.heads import Head, HeadParams, fspad
from jspec.models.protocol import Params
from jspec.models.transformer import with_hidden_states

TOKENS = 128
CONTEXT = 512
VOCABULARY = 61
NEAR_TIE = 1e-3
TEMPERATURES = (0.0, 0.3, 0.7, 1.0, 1.5, 2.0)
CUTS = (
    {},
    {"top_k": 5},
    {"top_p": 0.8},
    {"min_p": 0.1, "logit_bias": {7: 1.5, 11: -np.inf}},
    {
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.2,
        "min_new_tokens": 40,
    },
)
# Of long texts: machine code that is compiled in twice the time runs in a fifth.
OPTIMISED = {"xla_backend_optimization_level": 1}


def compiled_again(decode: Callable, **options: Any) -> Callable:
    """`generate` or `autoregress` under a jit of its own, which traces what was replaced in it."""
    program = {generate: generate_program, autoregress: autoregress_program}[decode].__wrapped__

    def again(*args: Any, **kwargs: Any) -> GenerationOutput:
        return program(*args, **kwargs)

    compiled = jax.jit(again, static_argnames=("target", "drafter", "rule", "room"), **options)

    def run(*arrays: Any, target: Model, max_new_tokens: int, **models: Any) -> GenerationOutput:
        most, room = budget(max_new_tokens, arrays[-3], target)
        if "drafter" in models:
            models["rule"] = verify.get(models.get("rule", "coupled"))
        return compiled(*arrays, most, target=target, **models, room=room)

    return run


write = compiled_again(generate, compiler_options=OPTIMISED)
write_plain = compiled_again(autoregress, compiler_options=OPTIMISED)
NO_STOPS = ()


class Batch(NamedTuple):
    prompts: PaddedPrompts
    keys: Array
    sampling: SamplingParams


class Candidate(NamedTuple):
    drafter: Drafter
    params: Params


def sharp(params: Params, factor: float = 3.0) -> Params:
    """Random parameters whose next-token law is far from uniform, as a trained model's is."""
    return {**params, "head": jax.tree.map(lambda x: factor * x, params["head"])}


def near(params: Params, key: Array, distance: float) -> Params:
    """Parameters that agree with `params` more often than not."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [
        leaf * (1 + distance * jax.random.normal(key, leaf.shape))
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def candidates(target: Model, params: Params) -> dict[str, Candidate]:
    other = transformer(
        ModelConfig(
            vocab_size=67,  # the target's, filled up
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=CONTEXT,
        )
    )
    cousin = jax.jit(near)(params, jax.random.key(12), 0.2)
    paths = [(0, 0, 0), (0, 1), (1, 0), (2,)]
    return {
        "chain": Candidate(SmallModelDrafter(target, Tree.chain(4)), params),
        "k-ary": Candidate(SmallModelDrafter(target, Tree.branching((3, 2, 1))), cousin),
        "fork": Candidate(
            SmallModelDrafter(other, Tree.fork(3, 2)), jax.jit(other.init)(jax.random.key(13))
        ),
        "paths": Candidate(SmallModelDrafter(target, Tree.from_paths(paths)), cousin),
        "head": headed(fspad(one_layer(target)), target, params, Tree.branching((2, 2, 1))),
        "eagle-3": headed(few_tokens(target), target, params, Tree.branching((2, 2, 1))),
        "grown small": Candidate(SmallModelDrafter(target, DynamicTree(3, 3, 8)), cousin),
        "grown head": headed(fspad(one_layer(target)), target, params, DynamicTree(4, 3, 16)),
        "lookup chain": Candidate(LookupDrafter(Tree.chain(4)), ()),
        "lookup fork": Candidate(LookupDrafter(Tree.fork(2, 3)), ()),
    }


def one_layer(target: Model) -> ModelConfig:
    return replace(target.config, num_hidden_layers=1)


def few_tokens(target: Model) -> Eagle3:
    """EAGLE-3's head that reads the ends and the middle of the target, and has two of three of its
    tokens."""
    layers = 0, target.config.num_hidden_layers // 2, target.config.num_hidden_layers
    kept = target.config.vocab_size * 2 // 3
    return eagle3(one_layer(target), layers=layers, draft_vocab_size=kept)


def headed(head: Head, target: Model, params: Params, tree: Tree | DynamicTree) -> Candidate:
    """A fresh head, whose tokens, where it has fewer, lie here and there among the target's."""
    own = jax.jit(head.init)(jax.random.key(14))
    target = with_hidden_states(target, head.layers)
    return Candidate(FeatureDrafter(head, target, tree), HeadParams(own, params, _offsets(head)))


def _offsets(head: Head) -> Array | None:
    vocabulary = head.config.vocab_size
    kept = getattr(head.module, "draft_vocab_size", vocabulary)
    if kept == vocabulary:
        return None
    tokens = np.random.default_rng(15).permutation(vocabulary)[:kept]
    return jnp.asarray(np.sort(tokens) - np.arange(kept), jnp.int32)


def mixed_batch(seed: int = 21) -> Batch:
    """All temperatures with all cuts and penalties; prompts of 1 to 60 tokens."""
    rng = np.random.default_rng(seed)
    combinations = list(itertools.product(TEMPERATURES, CUTS))
    lengths = rng.integers(2, 60, len(combinations))
    lengths[0] = 1  # nothing to commit before the first round
    rows = [rng.integers(0, VOCABULARY, length).tolist() for length in lengths]
    return Batch(
        pad_prompts(rows, context_length=CONTEXT, max_new_tokens=TOKENS),
        jax.random.split(jax.random.key(seed), len(rows)),
        settings(
            [{"temperature": temperature, **cut} for temperature, cut in combinations],
            stop_token_ids=NO_STOPS,
        ),
    )


def settings(rows: Sequence[dict[str, Any]], **shared: Any) -> SamplingParams:
    """`SamplingParams` of rows that each say what they want, and have the default for the rest."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(SamplingParams.create).parameters.items()
        if name not in ("batch", "vocab_size", *shared)
    }
    asked = {name: [row.get(name, rest) for row in rows] for name, rest in defaults.items()}
    asked["logit_bias"] = [row or {} for row in asked["logit_bias"]]
    return SamplingParams.create(len(rows), **asked, **shared, vocab_size=VOCABULARY)


def rows_of(tree: Any, index: Any) -> Any:
    """The rows of everything that has a batch."""
    return jax.tree.map(lambda x: x[index], tree)


def plain_text(
    target: Model,
    params: Params,
    batch: Batch,
    tokens: int = TOKENS,
    decode: Callable = write_plain,
) -> GenerationOutput:
    return decode(params, *batch, target=target, max_new_tokens=tokens)


def stopping(batch: Batch, stops: Any) -> Batch:
    """The same with the same stop tokens for every row."""
    stops = SamplingParams.create(len(batch.keys), stop_token_ids=stops).stop_token_ids
    return batch._replace(sampling=replace(batch.sampling, stop_token_ids=stops))


def speculative_text(
    target: Model,
    params: Params,
    batch: Batch,
    draft: Candidate,
    tokens: int = TOKENS,
    decode: Callable = write,
) -> GenerationOutput:
    return decode(
        params,
        draft.params,
        *batch,
        target=getattr(draft.drafter, "target", target),  # which shows what it reads
        drafter=draft.drafter,
        max_new_tokens=tokens,
    )


@functools.partial(jax.jit, static_argnames=("model",))
def teach(params: Params, tokens: Array, *, model: Model) -> Array:
    """The logits `[B, T, V]` after every token of `[B, T]`: one causal pass, no cache."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
    causal = jnp.tril(jnp.ones((tokens.shape[1], tokens.shape[1]), bool))
    return model.logits(params, model.forward(params, tokens, positions, causal).hidden)


@functools.partial(jax.jit, static_argnames=("model",))
def scores(
    params: Params,
    tokens: Array,
    prompt: Array,
    length: Array,
    keys: Array,
    sampling: SamplingParams,
    *,
    model: Model,
) -> Array:
    """What plain decoding takes the argmax of, `[B, V]`, after `length` `[B]` of `tokens`, of which
    the first `prompt` `[B]` were given."""
    last = jnp.take_along_axis(
        teach(params, tokens, model=model), length[:, None, None] - 1, axis=1
    )
    noise = sample_noise(keys, length[:, None], last.shape[-1], sampling)
    history = init_counts(tokens, prompt, length, vocab_size=last.shape[-1])
    return (process_logits(last, sampling, history) + noise)[:, 0]


def disagreements(
    target: Model, params: Params, batch: Batch, left: GenerationOutput, right: GenerationOutput
) -> tuple[int, list[str]]:
    """How many rows part at a near-tie, and a line for each that parts anywhere else.

    At the first token that differs both texts had the same context, so both tokens have a score
    there: the processed logits of a pass of its own, and the noise.
    """
    ties, parted = 0, []
    for row in range(len(left.length)):
        texts = [np.asarray(text.tokens[row])[: text.length[row]] for text in (left, right)]
        common = min(map(len, texts))
        differing = np.flatnonzero(texts[0][:common] != texts[1][:common])
        if not len(differing):
            if len(texts[0]) != len(texts[1]):
                parted.append(f"row {row}: {len(texts[0])} tokens and {len(texts[1])}")
            continue
        at = differing[0]
        alone = rows_of(batch, slice(row, row + 1))
        prompt = np.asarray(alone.prompts.tokens[0, : alone.prompts.length[0]])
        context = np.concatenate([prompt, texts[0][:at]])
        padded = np.pad(context, (0, CONTEXT - len(context)))[None]
        length = np.array([len(prompt)]), np.array([len(context)])
        score = scores(params, padded, *length, alone.keys, alone.sampling, model=target)[0]
        apart = abs(float(score[texts[0][at]]) - float(score[texts[1][at]]))
        if apart < NEAR_TIE:
            ties += 1
        else:
            parted.append(f"row {row}: parted at token {at} by {apart}")
    return ties, parted
