"""The published improved multi-candidate loop (arXiv 2409.10644), slow and in the open."""

import functools
import itertools

import jax
import numpy as np
from laws import PROMPT, enumerable, enumerable_params
from texts import teach

from jspec import Tree
from jspec.core.sampling import SamplingParams
from jspec.studies.multi_candidate import LOSSY

VOCABULARY = enumerable.config.vocab_size
TOKENS, LONGEST, MOST = 12, 20, 16


def published(key, tree: Tree, temperature: float, draft) -> tuple[list[int], int]:
    """The loop of the published code, a node at a time, and its rounds; node 0 is none of its."""
    fork = all(tree.children(depth) == 1 for depth in range(1, tree.depth))
    how = SamplingParams.create(1, temperature=temperature)
    text, rounds, probs = [*PROMPT], 0, softmax(after([PROMPT], enumerable_params())[0])
    while len(text) - len(PROMPT) < TOKENS:
        noise = sample(key[None], np.array([len(text)]), how, tree=tree)
        drafted, test = np.asarray(noise.draft)[0, :, 0], np.asarray(noise.uniforms)[0]
        paths, q = draft_paths(text, probs, drafted, tree, temperature, draft)
        logits = after([text + path for path in paths.values()], enumerable_params())
        logits = dict(zip(paths, logits, strict=True))
        p = {node: law_at(row, temperature) for node, row in logits.items()}
        longest, kept = -1, []
        for leaf in [node for node in paths if len(paths[node]) == tree.depth]:
            line = [node for node in paths if over(node, leaf, tree)]
            length = 0
            for above, node in itertools.pairwise(line):
                token = paths[node][-1]
                if test[node] > p[above][token] / q[above][token] or p[above][token] == 0:
                    break
                length += 1
            if length > longest:
                longest, kept = length, line[: length + 1]
        last, rounds = kept[-1], rounds + 1
        text += paths[last]
        probs = p[last]
        if temperature == 0 and fork:
            probs = softmax(logits[last])
        elif temperature and 0 < longest < tree.depth - 1:
            probs = np.maximum(p[last] - q[kept[-2] if fork else last], 0)
            probs /= probs.sum()
    return text[len(PROMPT) :][:TOKENS], rounds


def draft_paths(text, probs, drafted, tree: Tree, temperature: float, draft) -> tuple[dict, dict]:
    """Tokens from its root to every node, and the draft's distribution where there are children."""
    roots = drawn(probs, drafted[0], tree.children(0))
    paths, q = {1 + rank: [token] for rank, token in enumerate(roots)}, {}
    for depth in range(1, tree.depth):
        level = [node for node in paths if len(paths[node]) == depth]
        logits = after([text + paths[node] for node in level], draft)
        for node, row in zip(level, logits, strict=True):
            q[node] = softmax(row / (temperature or 1))
            children = [child for child, above in enumerate(tree.parents) if above == node]
            tokens = drawn(q[node], drafted[node], len(children))
            paths |= {c: [*paths[node], t] for c, t in zip(children, tokens, strict=False)}
    return paths, q


def law_at(logits: np.ndarray, temperature: float) -> np.ndarray:
    return softmax(logits / temperature) if temperature else np.eye(VOCABULARY)[logits.argmax()]


def over(node: int, leaf: int, tree: Tree) -> bool:
    while leaf > node:
        leaf = tree.parents[leaf]
    return leaf == node


def drawn(probs: np.ndarray, noise: np.ndarray, count: int) -> list[int]:
    """So many tokens without replacement, none of which has probability 0."""
    with np.errstate(divide="ignore"):
        order = np.argsort(-(np.log(probs) + noise), kind="stable")[:count]
    return [int(token) for token in order if probs[token] > 0]


def after(contexts: list[list[int]], params) -> np.ndarray:
    """The logits `[n, V]` of what follows each of some contexts."""
    padded = np.zeros((MOST, LONGEST), np.int32)
    for row, context in zip(padded, contexts, strict=False):
        row[: len(context)] = context
    logits = np.asarray(teach(params, padded, model=enumerable), np.float64)
    return logits[np.arange(len(contexts)), [len(context) - 1 for context in contexts]]


def softmax(logits: np.ndarray) -> np.ndarray:
    probs = np.exp(logits - logits.max())
    return probs / probs.sum()


@functools.partial(jax.jit, static_argnames=("tree",))
def sample(keys, length, how, *, tree: Tree):
    return LOSSY.sample_noise(keys, length, how, tree=tree, vocab_size=VOCABULARY)
