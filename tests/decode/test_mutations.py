"""The laws can fail: each mutation of the code breaks the one that is there to catch it."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from laws import SMALLEST_P, counts_of, joint_law, p_value, pair_law, pairs_of, plain_draws
from texts import Candidate, compiled_again, disagreements, speculative_text

from jspec import SmallModelDrafter, Tree, decode
from jspec.core.candidates import Candidates, Verification
from jspec.core.sampling import pick_token, sample_noise
from jspec.verify.coupling import Coupled

# Short: a wrong rule shows within a few rounds.
TOKENS = 32


def speculate_again(target, params, batch, draft):
    """Speculation by the code of now, not what was compiled for another test."""
    generate = compiled_again(decode.generate)
    return speculative_text(target, params, batch, draft, tokens=TOKENS, decode=generate)


def small_tree(target, drafts) -> Candidate:
    """Two candidates after each of two: the least in which a path is to be chosen."""
    drafter = SmallModelDrafter(target, Tree.branching((2, 2)))
    return Candidate(drafter, drafts["k-ary"].params)


def parted_rows(target, params, batch, plain, written) -> list[str]:
    short = replace(
        plain, tokens=plain.tokens[:, :TOKENS], length=jnp.minimum(plain.length, TOKENS)
    )
    return disagreements(target, params, batch, short, written)[1]


def test_noise_that_forgets_its_position_breaks_the_law(monkeypatch):
    def without_position(keys, positions, vocabulary, sampling):
        return sample_noise(keys, jnp.zeros_like(positions), vocabulary, sampling)

    monkeypatch.setattr(decode, "sample_noise", without_position)
    autoregress = compiled_again(decode.autoregress)
    written = plain_draws(42, autoregress, temperature=1.0)
    assert p_value(counts_of(written), joint_law(temperature=1.0)) < SMALLEST_P


def test_noise_that_rows_share_breaks_their_independence(monkeypatch):
    def shared(keys, positions, vocabulary, sampling):
        return sample_noise(jnp.repeat(keys[::2], 2), positions, vocabulary, sampling)

    monkeypatch.setattr(decode, "sample_noise", shared)
    autoregress = compiled_again(decode.autoregress)
    written = plain_draws(42, autoregress, temperature=1.0)
    np.testing.assert_array_equal(written.tokens[::2], written.tokens[1::2])
    assert p_value(pairs_of(written), pair_law(temperature=1.0)) < SMALLEST_P


def test_a_root_taken_from_the_draft_breaks_equality(
    monkeypatch, target, params, drafts, batch, plain
):
    verify = Coupled.verify

    def trusting(self, noise, candidates: Candidates, *target_side, tree) -> Verification:
        """Where the target picks none of the last kept node's children, takes the first."""
        verification = verify(self, noise, candidates, *target_side, tree=tree)
        last = verification.accepted_path[:, -1]
        children = candidates.parent == last[:, None]
        first = jnp.take_along_axis(
            candidates.tokens, jnp.argmax(children, axis=-1)[:, None], axis=1
        )[:, 0]
        return replace(
            verification,
            bonus_token=jnp.where(children.any(axis=-1), first, verification.bonus_token),
        )

    monkeypatch.setattr(Coupled, "verify", trusting)
    written = speculate_again(target, params, batch, small_tree(target, drafts))
    assert len(parted_rows(target, params, batch, plain, written)) > len(batch.keys) // 2


def test_the_longest_path_in_place_of_the_picked_one_breaks_equality(
    monkeypatch, target, params, drafts, batch, plain
):
    def longest(self, noise, candidates: Candidates, logits, sampling, *, tree) -> Verification:
        """Keeps the path with the most nodes that the target picks, wherever on it they lie."""
        picked = pick_token(logits, noise[:, tree.depths])
        parents = np.maximum(tree.parents, 0)
        agreed = (candidates.tokens == picked[:, parents]).at[:, 0].set(False)
        score = jnp.where(agreed, agreed.astype(jnp.int32) @ tree.mask.T.astype(np.int32), 0)
        node = jnp.argmax(score, axis=-1)
        ancestors = np.zeros((tree.size, tree.path_length), int)
        for index in range(tree.size):
            path = np.flatnonzero(tree.mask[index])
            ancestors[index] = np.pad(path, (0, tree.path_length - len(path)), mode="edge")
        following = jnp.take_along_axis(picked, node[:, None], axis=1)[:, 0]
        return Verification(
            jnp.asarray(ancestors)[node], jnp.asarray(tree.depths)[node] + 1, following
        )

    monkeypatch.setattr(Coupled, "verify", longest)
    written = speculate_again(target, params, batch, small_tree(target, drafts))
    assert len(parted_rows(target, params, batch, plain, written)) > len(batch.keys) // 2
