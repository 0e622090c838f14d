"""At the edges of every parameter the distribution is float64's, or the value is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jspec import SamplingParams
from jspec.core.penalties import init_counts
from jspec.core.sampling import LEAST_TEMPERATURE, pick_token, process_logits, sample_noise

pytestmark = pytest.mark.law

LAWS, ROWS, VOCABULARY = 400, 50, 24
TINY = float(np.finfo(np.float32).tiny)
# Values at the edges of what is allowed, beside ordinary ones.
EDGES = {
    "temperature": (0.0, 1e-45, TINY, 3e-38, 5e-38, 1e-36, 9.9e-6, 1e-5, 1e-4, 0.7, 1.0, 50.0, 1e6),
    "top_k": (0, 0, 0, 1, 2, VOCABULARY, 2**31 - 1),
    "top_p": (1.0, 1.0, 1.0, TINY, 1.2e-38, 1e-7, 0.5, 0.99999, 1 - 2**-24),
    "min_p": (0.0, 0.0, 0.0, 1e-45, TINY, 1e-30, 0.3, 1.0),
    "repetition_penalty": (1.0, 1.0, 1e-6, 0.3, 1.5, 1e6),
    "presence_penalty": (0.0, 0.0, 1e-45, -1000.0, -0.4, 0.4, 1000.0),
    "frequency_penalty": (0.0, 0.0, 1e-45, -1000.0, -0.3, 0.3, 1000.0),
}
BIASES = (-np.inf, -3.4e38, -1e9, -1000.0, -2.0, 1e-45, 3.0, 999.0, 1000.0)
SCALES = (1e-3, 1.0, 10.0, 1e3)
EPSILON = 2.0**-23


def random_rows(rng: np.random.Generator) -> tuple[list[dict], np.ndarray, np.ndarray, np.ndarray]:
    """Of each row how it samples, its prompt, what was generated since, and its logits."""
    rows = []
    for _ in range(ROWS):
        row = {name: edges[rng.integers(len(edges))] for name, edges in EDGES.items()}
        biased = rng.choice(VOCABULARY, rng.integers(0, 4), replace=False)
        row["logit_bias"] = {int(t): float(rng.choice(BIASES)) for t in biased}
        rows.append(row)
    prompt = rng.integers(0, VOCABULARY, (ROWS, 4))
    generated = rng.integers(0, VOCABULARY, (ROWS, 5))
    logits = rng.normal(size=(ROWS, VOCABULARY)) * rng.choice(SCALES, (ROWS, 1))
    logits[rng.random(logits.shape) < 0.05] = -np.inf
    return rows, prompt, generated, logits.astype(np.float32)


def reference(
    logits: np.ndarray, prompt: np.ndarray, generated: np.ndarray, **how
) -> tuple[np.ndarray, float] | None:
    """`[V]` logits in float64, `-inf` where a token is filtered out, and by how much float32 may
    move them against each other; None where that decides what is filtered out."""
    z = logits.astype(np.float64)
    for token, bias in how["logit_bias"].items():
        z[token] += bias if bias > -1000 else -np.inf
    largest = np.abs(z[np.isfinite(z)]).max(initial=0)
    said = np.unique(np.concatenate([prompt, generated]))
    r = np.float64(np.float32(how["repetition_penalty"]))
    z[said] = np.where(z[said] > 0, z[said] / r, z[said] * r)
    count = np.bincount(generated, minlength=VOCABULARY)
    off = how["presence_penalty"] * (count > 0), how["frequency_penalty"] * count
    z -= off[0] + off[1]
    finite = np.isfinite(z)
    if not finite.any():
        return None
    largest = max(largest, np.abs(z[finite]).max(), np.abs(off[0]).max(), np.abs(off[1]).max())
    # Of repetition the error is relative: of what it multiplies, before it is multiplied.
    error = 4 * EPSILON * largest * max(1.0, r, 1 / r if r < 1 else 1.0)
    t = how["temperature"]
    if t < LEAST_TEMPERATURE:
        best = np.sort(z[finite])[-2:]
        if len(best) > 1 and best[1] - best[0] <= error:
            return None
        return np.where(z == z.max(), 0.0, -np.inf), 0.0
    z, error = z / np.float64(np.float32(t)), error / t
    for name in ("top_k", "top_p", "min_p"):
        order = np.argsort(-z, kind="stable")
        p = np.exp(z[order] - z.max())
        p /= p.sum()
        if name == "top_k":
            kept = min(how["top_k"] or VOCABULARY, VOCABULARY)
        elif name == "top_p":
            before, wanted = np.cumsum(p) - p, how["top_p"]
            slack = (np.expm1(min(2 * error, 50.0)) + 1e-5) * wanted
            # The last steps of the sum are lost in float32, and so may be tokens without a mass.
            near = (np.abs(before - wanted) <= slack) & (p > 1e-6)
            if wanted < 1 and near.any():
                return None
            kept = VOCABULARY if wanted >= 1 else int(np.sum(before < wanted))
        else:
            least = how["min_p"]
            if least >= TINY:
                gap = np.abs(z[order] - z.max() - np.log(least))
                if np.any(gap[1:] <= 2 * error + 1e-4):
                    return None
                kept = int(np.sum(z[order] - z.max() >= np.log(least)))
            else:
                kept = VOCABULARY
        if kept < VOCABULARY and z[order][kept - 1] - z[order][kept] <= error:
            return None
        z = np.where(np.isin(np.arange(VOCABULARY), order[:kept]), z, -np.inf)
    return z, error


def test_random_distributions_at_the_edges_are_those_of_float64():
    rng = np.random.default_rng(161)
    process = jax.jit(process_logits)
    compared, decided = 0, 0
    while compared < LAWS:
        rows, prompt, generated, logits = random_rows(rng)
        asked = {name: [row[name] for row in rows] for name in rows[0]}
        sampling = SamplingParams.create(ROWS, **asked, vocab_size=VOCABULARY)
        tokens = np.concatenate([prompt, generated], axis=1).astype(np.int32)
        lengths = np.full(ROWS, 4, np.int32), np.full(ROWS, 9, np.int32)
        counts = init_counts(tokens, *lengths, vocab_size=VOCABULARY)
        processed = process(jnp.asarray(logits)[:, None], sampling, counts)
        keys = jax.random.split(jax.random.key(162), ROWS)
        noise = sample_noise(keys, lengths[1][:, None], VOCABULARY, sampling)
        picked = np.asarray(pick_token(processed, noise))[:, 0]
        for row, how in enumerate(rows):
            found = reference(logits[row], prompt[row], generated[row], **how)
            if found is None:
                decided += 1
                continue
            z, error = found
            compared += 1
            said = f"{how}, {logits[row]}"
            ours = np.asarray(processed[row, 0], np.float64)
            # What is picked is possible, whatever the noise.
            assert z[picked[row]] > -np.inf, said
            if how["temperature"] < LEAST_TEMPERATURE:
                assert picked[row] == z.argmax() and not noise[row].any(), said
                continue
            expected, p = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (z, ours))
            # Each may be as much too likely or too unlikely as rounding makes it.
            allowed = 1e-5 + expected * np.expm1(min(2 * error, 50.0))
            assert np.all(np.abs(p - expected) <= allowed), said
    print(f"{compared} compared, {decided} decided by rounding")
    assert decided < compared


@pytest.mark.parametrize("temperature", [1e-45, TINY, 1.2e-38, 3e-38, 5e-38, 1e-30, 9e-6])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_next_to_zero_is_greedy(temperature, scale):
    sampling = SamplingParams.create(2, temperature=[temperature, 1.0])
    np.testing.assert_array_equal(sampling.temperature, [0, 1])
    logits = np.array([1.0, 3.0, -np.inf, 4.0, 2.0], np.float32) * scale
    none = np.zeros(2, np.int32)
    counts = init_counts(np.zeros((2, 1), np.int32), none, none, vocab_size=5)
    processed = process_logits(jnp.asarray(logits)[None, None].repeat(2, 0), sampling, counts)
    noise = sample_noise(jax.random.split(jax.random.key(3), 2), none[:, None], 5, sampling)
    assert pick_token(processed, noise)[0, 0] == 3


def test_top_p_next_to_zero_keeps_the_best_alone():
    for top_p in (TINY, 1.2e-38, 1e-37, 1e-20):
        sampling = SamplingParams.create(1, temperature=1.0, top_p=top_p)
        none = np.zeros(1, np.int32)
        counts = init_counts(np.zeros((1, 1), np.int32), none, none, vocab_size=4)
        logits = jnp.array([[[0.0, 2.0, 1.0, -jnp.inf]]])
        kept = np.isfinite(process_logits(logits, sampling, counts))
        np.testing.assert_array_equal(kept[0, 0], [False, True, False, False])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"top_p": 1e-38}, "top_p=1e-38: must be in"),
        ({"temperature": 1.1e6}, "temperature=1100000.0: must be 0 .* at most 1e.06"),
        ({"repetition_penalty": 9e-7}, "repetition_penalty=9e-07: must be a positive number in"),
        ({"repetition_penalty": 1e38}, "repetition_penalty=1e.38: must be a positive number in"),
        ({"presence_penalty": 1e38}, "presence_penalty=1e.38: must be a number in -1000"),
        ({"frequency_penalty": -1001.0}, "frequency_penalty=-1001.0: must be a number in"),
        ({"logit_bias": {3: 1e38}}, "logit_bias of 1e.38 for token 3: must be -inf"),
        ({"logit_bias": {3: 1001.0}}, "logit_bias of 1001.0 for token 3: must be -inf"),
        ({"logit_bias": dict.fromkeys(range(5), -1e9)}, "logit_bias forbids all 5 tokens"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_one_line(given, says):
    with pytest.raises(ValueError, match=f"^{says}") as refused:
        SamplingParams.create(1, **given, vocab_size=5)
    assert "\n" not in str(refused.value)
