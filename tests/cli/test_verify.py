"""`jspec verify`: what the doctor finds, and what it puts it down to."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_zoo
from texts import near

from jspec import SmallModelDrafter, Tree
from jspec.bench import distribution, health
from jspec.bench.suite import Method
from jspec.cli.main import main
from jspec.draft.draft import ModelDraft
from jspec.formats.huggingface import load, save
from jspec.models.transformer import transformer
from jspec.verify import coupled, token_level

pytestmark = [pytest.mark.law, pytest.mark.usefixtures("small_zoo")]

SHORT = (
    "--prompts",
    "2",
    "--prompt-length",
    "24",
    "--max-new-tokens",
    "40",
    "--temperatures",
    "0",
    "1",
)


def verify(capsys, *arguments: str) -> tuple[int, dict, str]:
    capsys.readouterr()
    code = main(("verify", "--json", *SHORT, *arguments))
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


@pytest.mark.slow
def test_the_target_as_its_own_draft_is_in_perfect_health(capsys):
    code, found, _ = verify(capsys, "--draft", "zoo:target", "--tree", "chain:3")
    assert code == 0
    for row in found["temperatures"]:
        assert row["passed"] and not row["differences"]
        assert row["acceptance_length"] == pytest.approx(4)
    assert found["health"]["agreement"] == 1
    assert found["causes"] == []


@pytest.mark.slow
def test_an_untrained_draft_is_found_out(capsys):
    code, found, _ = verify(capsys, "--tree", "2", "--dtype", "bfloat16")
    assert code == 0
    assert found["health"]["draft_loss"] > found["health"]["uniform_loss"] - health.MARGIN
    causes = [cause.partition(":")[0] for cause in found["causes"]]
    assert causes == ["weights", "dtype", "training"]


@pytest.mark.parametrize("rule", ["token_level", "without_replacement"])
@pytest.mark.slow
def test_a_rejection_rule_is_held_to_the_distribution(capsys, rule):
    code, found, _ = verify(capsys, "--rule", rule, "--tree", "chain:2")
    cold, hot = found["temperatures"]
    assert code == 0
    assert cold["passed"] and cold["differences"] == []
    assert hot["passed"] and hot["distribution_p_value"] > 1e-4


@pytest.mark.slow
def test_a_rule_that_takes_the_drafts_word_fails(capsys, monkeypatch):
    right = type(coupled).verify

    def trusting(self, noise, candidates, logits, sampling, *, tree):
        verification = right(self, noise, candidates, logits, sampling, tree=tree)
        return replace(verification, bonus_token=candidates.tokens[:, 1])

    monkeypatch.setattr(type(coupled), "verify", trusting)
    jax.clear_caches()
    code, found, _ = verify(capsys, "--tree", "2")
    jax.clear_caches()
    assert code == 1
    assert not any(row["passed"] for row in found["temperatures"])


def test_what_a_draft_lacks_is_named_in_order(models, tmp_path):
    target = load(models / "target")
    model = transformer(tiny_zoo.config(vocab_size=300))
    save(tmp_path / "draft", model, model.init(jax.random.key(5)), dtype="float32")
    draft = ModelDraft(target, "draft", load(tmp_path / "draft"))
    tokens = np.random.default_rng(6).integers(0, 320, (2, 40)).astype(np.int32)
    found = health.examine(target, draft, tokens, 10)
    assert found.out_of_vocabulary == pytest.approx(np.mean(tokens[:, 10:] >= 300))
    causes = [c.partition(":")[0] for c in health.causes(target, draft, found, dtype="float32")]
    assert causes == ["tokenizer", "vocabulary", "target", "weights", "training"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--rule", "token_level", "--tree", "2x2"), "rule='token_level' verifies a chain"),
        (
            ("--rule", "without_replacement", "--draft", "lookup"),
            "rule='without_replacement' with candidates chosen",
        ),
        (("--temperatures", "-1"), "temperature=-1.0: must be"),
        (("--prompts", "0"), "prompts=0: must be at least 1"),
    ],
)
def test_bad_input_is_one_line(capsys, asked, said):
    assert main(("verify", *asked)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"jspec: {said}") and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [False, True])
def test_the_distribution_is_held_below_the_first_token_too(
    wrong, target, params, drafts, monkeypatch
):
    """A rule that accepts whatever follows an accepted draft token draws the first one rightly."""
    right = type(token_level).verify

    def trusting(self, noise, candidates, logits, sampling, *, tree):
        verification = right(self, noise, candidates, logits, sampling, tree=tree)
        count = jnp.where(verification.num_accepted > 1, tree.size, verification.num_accepted)
        path = jnp.minimum(jnp.arange(tree.size)[None], count[:, None] - 1)
        last = jnp.take_along_axis(logits, (count - 1)[:, None, None], axis=1)[:, 0]
        return replace(
            verification, accepted_path=path, num_accepted=count, bonus_token=last.argmax(axis=1)
        )

    if wrong:
        monkeypatch.setattr(type(token_level), "verify", trusting)
        jax.clear_caches()
    drafter = SmallModelDrafter(target, Tree.chain(3))
    cousin = jax.jit(near)(params, jax.random.key(12), 0.2)
    p = distribution.first_tokens_p_value(
        Method("chain", drafter, cousin, token_level), target, params, [3, 1, 4],
        temperature=1.0, seed=0,
    )  # fmt: skip
    jax.clear_caches()
    assert (p > distribution.SMALLEST_P) != wrong


def test_logits_that_are_not_finite_fail_by_name(capsys, models, tmp_path):
    """Neither the texts, which are empty on both sides, nor the draft's health count as well."""
    target = load(models / "target")
    broken = jax.tree.map(lambda x: x * jnp.nan, target.params)
    save(tmp_path / "broken", target.model, broken, tokenizer=models / "target")
    draft = "--draft", str(models / "wide")
    code, found, _ = verify(capsys, "--target", str(tmp_path / "broken"), *draft, "--tree", "2")
    assert code == 1
    assert [row["nonfinite_texts"] for row in found["temperatures"]] == [2, 2]
    assert found["health"]["target_nonfinite"] == 1 and found["health"]["draft_nonfinite"] == 0
    assert [cause.partition(":")[0] for cause in found["causes"]] == ["dtype"]
    main(("verify", *SHORT, "--target", str(tmp_path / "broken"), *draft, "--tree", "2"))
    out, err = capsys.readouterr()
    lines = " ".join((out + err).split())
    assert "T=0: FAILED: the target's logits are NaN or infinite in 2 of 2 texts" in lines
    assert "FAILED: target: its logits are NaN or infinite in 100% of places" in lines
