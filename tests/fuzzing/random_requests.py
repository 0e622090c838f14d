"""Random requests: what is written is what a slow program writes, or one line refuses it."""

import functools
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from outcome import attempt

import jspec
from jspec import decode
from jspec.api import Speculator, TextOutput
from jspec.core.sampling import make_keys, sample_noise
from jspec.formats.huggingface import load

DRAFTS = ("zoo:wide", "zoo:distilled", "zoo:eagle", "zoo:fspad", "lookup")
TREES = {
    "chain": ("chain:1", "chain:3"),
    "tree": ("chain:2", "2", "3x2", "comb:2x2", "[[0, 0], [1]]", "2x1x2"),
    "dynamic": ("dynamic:2x2x5",),
}
RULES = {
    "coupled": ("tree", "dynamic"),
    "one_sample": ("tree", "dynamic"),
    "token_level": ("chain",),
    "block": ("chain",),
    "with_replacement": ("tree",),
    "without_replacement": ("tree",),
    "traversal": ("tree",),
}
SETTINGS = 24
TOKENS, WIDTH = 8, 160  # new ones, and all that the slow program reads
WORDS = ("def", "add", "left", "right", "return", "+", "\n", ":", "(", "é", "  ")
# Values that are right, and values that are not; those at the edges are the likelier ones.
RIGHT: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.0, 1e-45, 1e-38, 1e-9, 1e-5, 1e-3, 0.3, 0.7, 1, 1.0, 2.5, 100.0, 1e6),
    "top_k": (0, 1, 2, 5, 319, 320, 321, 2**31 - 1),
    "top_p": (2e-38, 1e-9, 0.1, 0.5, 0.9, 1 - 1e-7, 1, 1.0),
    "min_p": (0, 1e-45, 1e-38, 1e-9, 0.01, 0.5, 1 - 1e-7, 1.0),
    "repetition_penalty": (1, 1e-6, 0.5, 1.0 + 1e-7, 1.3, 50.0, 1e6),
    "presence_penalty": (0, 1e-45, -1.5, 0.7, 1000, -1000),
    "frequency_penalty": (0, 1e-45, -1.5, 0.7, 1000, -1000),
    "min_new_tokens": (0, 1, 5, 8, 2**31 - 1),
    "logit_bias": (None, {}, {5: 2.0}, {5: -np.inf, 7: 1000}, {319: -1e9}),
}
WRONG: dict[str, tuple[Any, ...]] = {
    "temperature": (-1, -1e-45, np.nan, np.inf, 1e39, "warm", [0.5, -1], [], None),
    "top_k": (-1, 2.5, 2**31, np.nan, "all"),
    "top_p": (0, 1e-45, 1e-38, -0.1, 1.1, np.nan, np.inf),
    "min_p": (-0.1, 1.1, np.nan),
    "repetition_penalty": (0, -1, np.nan, np.inf, 1e39),
    "presence_penalty": (np.nan, np.inf, 1e39),
    "frequency_penalty": (np.nan, -np.inf),
    "min_new_tokens": (-1, 1.5, 2**31),
    "logit_bias": ({320: 1.0}, {-1: 1.0}, {5: np.nan}, {5: np.inf}, {2.5: 1.0}),
    "seed": (-1, 2**32, 1.5, [1, 2, 3, 4, 5, 6, 7]),
    "max_new_tokens": (0, -1, 100_000, 2.5, [1] * 7),
    "stop": ("", [""]),
    "batch_size": (0, -1),
    "tokens": ([320], [-1], [], [2**40]),
}


def attempts(seeds: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
    """Of each seed the rule and the draft, and its fault if it has one."""
    decode.NEW_TOKENS_BUCKET = TOKENS
    seeds = list(seeds)
    target = load(folder / "zoo" / "target")
    # A setting is compiled once, so its requests come together.
    for setting in range(SETTINGS):
        mine = [seed for seed in seeds if seed % SETTINGS == setting]
        if not mine:
            continue
        rng = random.Random(setting)
        rule = list(RULES)[setting % len(RULES)]
        draft = rng.choice(DRAFTS if rule in ("coupled", "one_sample") else DRAFTS[:4])
        shapes = [x for x in RULES[rule] if x != "dynamic" or draft != "lookup"]
        tree = rng.choice(TREES[rng.choice(shapes)])
        engine = attempt(lambda: Speculator.load(target, draft=draft, rule=rule, tree=tree))  # noqa: B023
        name = f"{rule} {draft} {tree}"
        if engine.result is None:
            yield mine[0], name, f"does not load: {engine.refusal or engine.fault}"
            continue
        for seed in mine:
            yield seed, name, _fault(random.Random(seed), engine.result)
        jax.clear_caches()


def _fault(rng: random.Random, engine: Speculator) -> str:
    count = rng.choice((1, 3))
    prompts: list[Any] = [_prompt(rng) for _ in range(count)]
    options: dict[str, Any] = {
        "max_new_tokens": rng.randint(1, TOKENS),
        "seed": rng.choice((0, 7, 2**32 - 1, list(range(count)))),
    }
    for name in rng.sample(list(RIGHT), rng.choice((0, 1, 2, 3, 9))):
        value = rng.choice(RIGHT[name])
        spread = name != "logit_bias" and count > 1 and rng.random() < 0.4
        options[name] = [rng.choice(RIGHT[name]) for _ in range(count)] if spread else value
    if rng.random() < 0.3:
        options["stop"] = rng.sample(("left", "\n", ")", "é"), rng.randint(1, 2))
    if rng.random() < 0.4:
        options["stop_token_ids"] = rng.sample(range(320), rng.randint(0, 3))
    if rng.random() < 0.2:
        options["batch_size"] = 2
    wrong = rng.random() < 0.2
    if wrong:
        name = rng.choice(list(WRONG))
        if name == "tokens":
            prompts[0] = rng.choice(WRONG[name])
        else:
            options[name] = rng.choice(WRONG[name])
    done = attempt(lambda: engine.generate(prompts, **options))
    if done.fault:
        return f"{options}: {done.fault}"
    if wrong != bool(done.refusal):
        return f"{options}, prompts {prompts}: " + (done.refusal or "is taken")
    if wrong:
        return ""
    plain = engine.generate(prompts, speculative=False, **options)
    for row, (one, other) in enumerate(zip(done.result, plain, strict=True)):
        exact = engine.rule.drafter_invariant or _of(options, "temperature", row) == 0
        if exact and not _same(one, other):
            if _near_tie(engine, prompts[row], options, row, one, other):
                continue
            return f"{options}, {prompts}: row {row} is {one.token_ids}, plain {other.token_ids}"
        most = _of(options, "max_new_tokens", row)
        if not 0 < len(one.token_ids) <= most or len(one.is_draft_token) != len(one.token_ids):
            return f"{options}: row {row} has {len(one.token_ids)} tokens"
    if rng.random() < 0.1:
        row = rng.randrange(count)
        if said := _parts_from_reference(engine, prompts[row], options, row, plain[row]):
            return f"{options}, prompt {prompts[row]!r}: {said}"
    if rng.random() < 0.1 and count == 1 and not isinstance(options["seed"], list):
        options.pop("batch_size", None)
        pieces = "".join(engine.stream(prompts[0], **options))
        if engine.rule.drafter_invariant and pieces != plain[0].text:
            return f"{options}, prompt {prompts[0]!r}: streamed {pieces!r}, not {plain[0].text!r}"
    return ""


def _same(one: TextOutput, other: TextOutput) -> bool:
    return (one.token_ids, one.text, one.finish_reason) == (
        other.token_ids,
        other.text,
        other.finish_reason,
    )


def _of(options: dict[str, Any], name: str, row: int) -> Any:
    default = {"temperature": 0.0, "top_p": 1.0, "repetition_penalty": 1.0}.get(name, 0)
    value = options.get(name, default)
    return value[row] if isinstance(value, list) else value


def _prompt(rng: random.Random) -> str:
    return "x" + " ".join(rng.choices(WORDS, k=rng.randint(0, 20)))


def _parts_from_reference(
    engine: Speculator, prompt: str, options: dict[str, Any], row: int, found: TextOutput
) -> str:
    """Where the text parts from that of a slow program in float64; empty if nowhere.

    The comparison ends where the two best tokens are nearly as good, and where a filter's threshold
    lies between tokens that are nearly as likely.
    """
    ids = engine.encode(prompt)
    start = len(ids)
    for token in found.token_ids:
        scores, close = _scores(engine, ids, start, options, row)
        best = np.sort(scores)[::-1]
        if close or _near(best[0], best[1], 1e-3):
            return ""
        if int(scores.argmax()) != token:
            return (
                f"token {len(ids) - start} is {token}, by the slow program {int(scores.argmax())}"
            )
        ids.append(token)
    return ""


def _near_tie(
    engine: Speculator,
    prompt: str,
    options: dict[str, Any],
    row: int,
    one: TextOutput,
    other: TextOutput,
) -> bool:
    """Whether two texts part where two tokens are nearly as good: passes of another number of rows
    round differently."""
    pairs = zip(one.token_ids, other.token_ids, strict=False)
    place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if place is None:
        return False
    ids = engine.encode(prompt)
    start = len(ids)
    scores, close = _scores(engine, ids + list(one.token_ids[:place]), start, options, row)
    return close or _near(scores[one.token_ids[place]], scores[other.token_ids[place]], 1e-3)


def _scores(
    engine: Speculator, ids: list[int], start: int, options: dict[str, Any], row: int
) -> tuple[np.ndarray, bool]:
    """Of every token after `ids`, noise included, by a slow program in float64; and whether a
    filter's threshold is too close to call.

    Args:
      start: tokens of the prompt.
    """
    seed = options["seed"]
    key = make_keys(seed[row] if isinstance(seed, list) else seed, 1)
    stops = options.get("stop_token_ids", engine.target.stop_token_ids)
    logits = np.asarray(_logits(engine, ids), np.float64)
    logits, close = _processed(logits, ids, start, options, row, stops)
    greedy = _of(options, "temperature", row) < 1e-5
    sampling = jspec.SamplingParams.create(1, temperature=0.0 if greedy else 1.0)
    noise = sample_noise(key, np.array([[len(ids)]], np.int32), len(logits), sampling)
    return logits + np.asarray(noise, np.float64)[0, 0], close


def _logits(engine: Speculator, ids: list[int]) -> Any:
    """Of a pass over the whole text, at its end."""
    tokens = np.zeros((1, WIDTH), np.int32)
    tokens[0, : len(ids)] = ids
    return _all_logits(engine.target.params, tokens, model=engine.target.model)[0, len(ids) - 1]


@functools.partial(jax.jit, static_argnames=("model",))
def _all_logits(params: Any, tokens: Any, *, model: Any) -> Any:
    at = np.arange(WIDTH, dtype=np.int32)
    output = model.forward(params, tokens, at[None], at[:, None] >= at[None])
    return model.logits(params, output.hidden)


def _processed(
    logits: np.ndarray,
    ids: list[int],
    start: int,
    options: dict[str, Any],
    row: int,
    stops: Any,
) -> tuple[np.ndarray, bool]:
    """Bias, penalties, temperature and filters, one after the other as the documentation says; and
    whether a threshold is too close to call."""
    bias = options.get("logit_bias") or {}
    for token, value in bias.items():
        logits[token] += -np.inf if value <= -1000 else value
    generated = np.bincount(np.array(ids[start:], int), minlength=len(logits))
    seen = np.bincount(np.array(ids, int), minlength=len(logits)) > 0
    penalty = _of(options, "repetition_penalty", row)
    scaled = np.where(logits > 0, logits / penalty, logits * penalty)
    logits = np.where(seen, scaled, logits)
    logits = logits - _of(options, "presence_penalty", row) * (generated > 0)
    logits = logits - _of(options, "frequency_penalty", row) * generated
    if len(ids) - start < _of(options, "min_new_tokens", row):
        logits[list(stops)] = -np.inf
    temperature = np.float64(_of(options, "temperature", row))
    if temperature >= 1e-5:
        logits = logits / temperature
    close = False
    top_k = _of(options, "top_k", row)
    if 0 < top_k < len(logits):
        ordered = np.sort(logits)[::-1]
        close |= bool(_near(ordered[top_k - 1], ordered[top_k]))
        logits = np.where(logits >= ordered[top_k - 1], logits, -np.inf)
    top_p = _of(options, "top_p", row)
    if top_p < 1:
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        ordered = np.sort(probs)[::-1]
        mass = np.cumsum(ordered)
        place = int(np.searchsorted(mass, top_p))
        place = min(place, len(mass) - 1)
        close |= bool(np.any(np.abs(mass - top_p) < 1e-4)) and top_p > 1e-6
        logits = np.where(probs >= ordered[place], logits, -np.inf)
    min_p = _of(options, "min_p", row)
    if min_p > 0:
        floor = logits.max() + np.log(min_p)
        finite = logits[np.isfinite(logits)]
        close |= bool(np.any(np.abs(finite - floor) < 1e-3)) and min_p < 1 - 1e-6
        logits = np.where(logits >= floor, logits, -np.inf)
    return logits, close


def _near(one: float, other: float, tolerance: float = 1e-4) -> bool:
    return one == other or abs(one - other) < tolerance * max(1.0, abs(one))
