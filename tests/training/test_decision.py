"""Decision networks: what they are taught, how well they know it, and how they are saved."""

import functools
import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from texts import Candidate, few_tokens, headed, near, rows_of

from jspec import SamplingParams, SmallModelDrafter, Tree, generate, load_decision, save_decision
from jspec.bench.calibration import BINS, calibration
from jspec.formats.decision import ABOUT, WEIGHTS, Decision
from jspec.models.stop_networks import HiddenStateNetwork
from jspec.models.teacher_forcing import head_pass, model_pass, target_hidden_states
from jspec.training.stop_network import (
    COUPLED,
    LABELS,
    TOKEN_LEVEL,
    Examples,
    label,
    label_draft_tokens,
    make_network,
    network_scores,
    train_network,
)

TOKENS, WIDTH, VOCABULARY = 24, 6, 13


def filtered_probs(logits: np.ndarray, temperature: float) -> np.ndarray:
    if temperature == 0:
        return np.eye(len(logits))[np.argmax(logits)]
    law = np.exp((logits - logits.max()) / temperature)
    return law / law.sum()


# What becomes of draft tokens


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_labels_and_inputs_are_those_of_the_definition(temperature):
    rng = np.random.default_rng(1)
    target, draft, noise = (3 * rng.normal(size=(2, 5, VOCABULARY)) for _ in range(3))
    hidden = rng.normal(size=(2, 5, WIDTH))
    noise *= temperature > 0
    hot = temperature or 1.0
    picks = np.argmax(target / hot + noise, axis=-1)
    found = label(*map(jnp.float32, (target, draft, hidden, noise)), picks, temperature)
    for place, at in enumerate(np.ndindex(2, 5)):
        p, q = filtered_probs(target[at], temperature), filtered_probs(draft[at], temperature)
        drawn = np.argmax(draft[at] / hot + noise[at])
        survives = min(1.0, p[drawn] / q[drawn])
        soft = found.accepted[TOKEN_LEVEL][place]
        np.testing.assert_allclose(soft, survives, rtol=1e-4, atol=1e-6)
        assert found.accepted[COUPLED][place] == (drawn == picks[at])
        told = filtered_probs(draft[at], hot)
        law = [-(told * np.log(told)).sum(), *np.sort(told)[::-1][:10]]
        np.testing.assert_allclose(found.inputs["distribution"][place], law, rtol=1e-4)
        np.testing.assert_array_equal(found.inputs["hidden"][place], np.float32(hidden[at]))
        np.testing.assert_allclose(found.scores["confidence"][place], told.max(), rtol=1e-4)


def test_the_soft_label_is_on_average_what_two_laws_share():
    rng = np.random.default_rng(2)
    target, draft = (1.5 * rng.normal(size=VOCABULARY).astype(np.float32) for _ in range(2))
    count, temperature = 20_000, 0.8
    noise = rng.gumbel(size=(count, 1, VOCABULARY)).astype(np.float32)
    alike = [np.broadcast_to(x, noise.shape) for x in (target, draft)]
    picks = np.argmax(target / temperature + noise, axis=-1)
    hidden = np.zeros((count, 1, WIDTH), np.float32)
    found = np.asarray(label(*alike, hidden, noise, picks, temperature).accepted[TOKEN_LEVEL])
    shared = np.minimum(*(filtered_probs(x, temperature) for x in (target, draft))).sum()
    assert 0.2 < shared < 0.9
    assert abs(found.mean() - shared) < 4 * found.std() / np.sqrt(count)


@pytest.fixture(scope="module")
def few(batch):
    """Ragged prompts, all at one temperature."""
    return rows_of(batch, slice(0, 6))


def labelled(target, params, few, reader, temperature):
    return label_draft_tokens(
        params,
        few.prompts,
        few.keys,
        target=target,
        states=reader,
        temperature=temperature,
        max_new_tokens=TOKENS,
    )


def test_a_draft_equal_to_the_target_is_always_accepted(target, params, few):
    for temperature in (0.0, 1.0):
        own = functools.partial(model_pass, params, model=target)
        accepted = labelled(target, params, few, own, temperature).accepted
        assert len(accepted[COUPLED]) == 6 * TOKENS
        assert np.all(accepted[COUPLED] == 1)
        np.testing.assert_allclose(accepted[TOKEN_LEVEL], 1, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["small model", "head"])
def test_a_draft_token_counts_as_accepted_where_decoding_accepts_it(target, params, few, kind):
    if kind == "head":
        draft = headed(few_tokens(target), target, params, Tree.chain(1))
        head, shown = draft.drafter.head, draft.drafter.target

        def reader(text):
            seen = target_hidden_states(params, text, head=head, model=shown)
            return head_pass(draft.params, text, seen, head=head, target=shown)

    else:
        cousin = jax.jit(near)(params, jax.random.key(12), 0.2)
        draft = Candidate(SmallModelDrafter(target, Tree.chain(1)), cousin)
        shown, reader = target, functools.partial(model_pass, draft.params, model=target)
    accepted = labelled(target, params, few, reader, 1.0).accepted[COUPLED].reshape(6, TOKENS)
    how = SamplingParams.create(6, temperature=1.0)
    written = generate(
        params, draft.params, few.prompts, few.keys, how,
        target=shown, drafter=draft.drafter, max_new_tokens=TOKENS,
    )  # fmt: skip
    expected = np.zeros((6, TOKENS), bool)
    for row in range(6):
        place = 0
        while place < TOKENS:
            expected[row, place] = accepted[row, place]
            # After an accepted draft token comes the target's own, which nobody drafted.
            place += 2 if accepted[row, place] else 1
    np.testing.assert_array_equal(written.is_draft_token[:, :TOKENS], expected)
    assert 0.02 < accepted.mean() < 0.98


# Teaching


# Wide enough that no unlucky start leaves all of a layer's units at zero.
network = HiddenStateNetwork((WIDTH, 24, 12, 1))


@functools.cache
def separable(count: int, seed: int, turned: float = 1.0) -> Examples:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(count, WIDTH)).astype(np.float32)
    return Examples(inputs, (turned * (inputs[:, 0] - inputs[:, 1]) > 0).astype(np.float32))


def test_a_network_learns_what_can_be_told_apart():
    seen, held_out = separable(2000, 3), separable(500, 4)
    taught = train_network(network, seen, held_out, epochs=12)
    chance = np.asarray(network_scores(taught.params, held_out.inputs, network=network))
    assert np.mean((chance > 0.5) == held_out.labels) > 0.93
    assert taught.losses[taught.best_epoch - 1] == min(taught.losses) < 0.3


def test_the_network_that_is_best_on_held_out_draft_tokens_is_saved():
    seen, against = separable(2000, 3), separable(500, 4, -1.0)
    taught = train_network(network, seen, against, epochs=4)
    assert taught.best_epoch == 1 and taught.losses == sorted(taught.losses)
    once = train_network(network, seen, against, epochs=1)
    jax.tree.map(np.testing.assert_array_equal, taught.params, once.params)


def test_nan_is_not_learned():
    seen = separable(100, 3)
    broken = Examples(np.full_like(seen.inputs, np.nan), seen.labels)
    with pytest.raises(ValueError, match="^loss=nan after epoch 1"):
        train_network(network, broken, seen)


# Calibration


def test_errors_are_those_of_the_definition():
    rng = np.random.default_rng(5)
    chance, accepted = rng.uniform(size=400), rng.integers(0, 2, 400).astype(float)
    chance[0], chance[1] = 0.0, 1.0
    found = calibration(chance, accepted, name="x", rule=COUPLED, temperature=1.0)
    error = 0.0
    for number in range(BINS):
        last = number == BINS - 1
        here = (chance >= number / BINS) & ((chance < (number + 1) / BINS) | last)
        error += here.sum() * abs(chance[here].mean() - accepted[here].mean()) / 400
    assert found.error == pytest.approx(error)
    assert found.accuracy == pytest.approx(np.mean((chance > 0.5) == accepted))
    assert sum(one.count for one in found.bins) == 400
    right = calibration(accepted, accepted, name="x", rule=COUPLED, temperature=1.0)
    assert (right.error, right.accuracy, len(right.bins)) == (0, 1, 2)


# Files


@pytest.fixture(scope="module", params=list(LABELS))
def saved(request, tmp_path_factory):
    """A network of each kind with its parameters, and the folder where it was saved."""
    network = make_network(request.param, WIDTH)
    decision = Decision(network, network.init(jax.random.key(5)), WIDTH, (0.0, 0.7), 0.25)
    folder = tmp_path_factory.mktemp("saved")
    (folder / "config.json").write_text("{}")
    save_decision(folder, decision)
    return decision, folder


def test_what_is_saved_reads_back_the_same(saved):
    decision, folder = saved
    read = load_decision(folder, width=WIDTH)
    assert (read.network, read.threshold) == (decision.network, 0.25)
    assert (read.width, read.temperatures) == (WIDTH, (0.0, 0.7))
    jax.tree.map(np.testing.assert_array_equal, read.params, decision.params)
    assert {file.name for file in folder.iterdir()} == {"config.json", ABOUT, WEIGHTS}
    other = jax.tree.map(lambda x: x + 1, decision.params)
    save_decision(folder, replace(decision, params=other))
    jax.tree.map(np.testing.assert_array_equal, load_decision(folder).params, other)
    save_decision(folder, decision)


def test_the_earlier_name_of_a_kind_is_read(tmp_path):
    network = make_network("distribution", WIDTH)
    decision = Decision(network, network.init(jax.random.key(5)), WIDTH, (0.0,))
    save_decision(tmp_path, decision)
    about = json.loads((tmp_path / ABOUT).read_text())
    assert about["kind"] == "distribution"
    (tmp_path / ABOUT).write_text(json.dumps({**about, "kind": "law"}))
    assert load_decision(tmp_path).network == network


def test_a_write_that_fails_leaves_what_was_there_or_what_is_new(saved, tmp_path, monkeypatch):
    decision, folder = saved
    copy = shutil.copytree(folder, tmp_path / "copy")

    def full(*args, **how):
        raise OSError("no room")

    monkeypatch.setattr("jspec.formats.decision.write_tensors", full)
    with pytest.raises(OSError, match="no room"):
        save_decision(copy, replace(decision, width=WIDTH))
    jax.tree.map(np.testing.assert_array_equal, load_decision(copy).params, decision.params)
    monkeypatch.undo()
    monkeypatch.setattr("jspec.formats.decision.write_json", full)
    new = replace(decision, threshold=0.75, temperatures=(0.5,))
    with pytest.raises(OSError, match="no room"):
        save_decision(copy, new)
    # Its weights describe themselves.
    assert [file.name for file in copy.iterdir() if ABOUT in file.name] == []
    found = load_decision(copy)
    assert (found.threshold, found.temperatures) == (0.75, (0.5,))
    jax.tree.map(np.testing.assert_array_equal, found.params, new.params)
    weights = load_file(copy / WEIGHTS)
    save_file(weights, copy / WEIGHTS)
    with pytest.raises(FileNotFoundError, match=f"has no {ABOUT}"):
        load_decision(copy)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": None}, "kind is missing"),
        ({"extra": 1}, "extra is not known"),
        ({"kind": "soft"}, "kind='soft' is not known: hidden or distribution is"),
        ({"kind": ["law"]}, "kind="),
        ({"sizes": [11, 1.5, 1]}, "sizes="),
        ({"sizes": [11, True, 1]}, "sizes="),
        ({"sizes": [7, 4, 1]}, "sizes="),
        ({"sizes": []}, "sizes="),
        ({"sizes": "11"}, "sizes="),
        ({"threshold": 1.5}, "threshold=1.5: must be between 0"),
        ({"threshold": float("nan")}, "threshold=nan: must be between 0"),
        ({"threshold": "0.4"}, "threshold='0.4': must be between 0"),
        ({"threshold": True}, "threshold=True"),
        ({"width": 0}, "width=0 must be a positive int"),
        ({"width": 2.0}, "width=2.0 must be a positive int"),
        ({"temperatures": []}, "temperatures="),
        ({"temperatures": [-1]}, "temperatures="),
        ({"temperatures": [float("nan")]}, "temperatures="),
        ({"temperatures": 1}, "temperatures=1"),
    ],
    ids=str,
)
def test_a_file_that_says_what_cannot_be_is_refused(saved, tmp_path, changes, said):
    folder = shutil.copytree(saved[1], tmp_path / "copy")
    about = {**json.loads((folder / ABOUT).read_text()), **changes}
    (folder / ABOUT).write_text(json.dumps({k: v for k, v in about.items() if v is not None}))
    with pytest.raises(ValueError) as error:
        load_decision(folder)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith(f"{folder / ABOUT}: ")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda t: t | {"layers.9.bias": t["layers.0.bias"]}, "layers.9.bias is missing or not"),
        (lambda t: {k: x for k, x in t.items() if k != "layers.0.bias"}, "layers.0.bias is miss"),
        (lambda t: t | {"layers.0.bias": t["layers.0.bias"][1:]}, "layers.0.bias is F32 ["),
        (lambda t: t | {"layers.0.bias": np.float16(t["layers.0.bias"])}, "is F16 ["),
        (lambda t: t | {"layers.0.weight": t["layers.0.weight"] * np.nan}, "are not finite"),
    ],
)
def test_weights_that_are_not_the_networks_are_refused(saved, tmp_path, damage, said):
    folder = shutil.copytree(saved[1], tmp_path / "copy")
    save_file(damage(load_file(folder / WEIGHTS)), folder / WEIGHTS)
    with pytest.raises(ValueError) as error:
        load_decision(folder)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_file_of_its_kind_or_for_another_draft_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved[1], tmp_path / "copy")
    with pytest.raises(ValueError, match=f"width={WIDTH}, and the draft's hidden states have 32"):
        load_decision(folder, width=32)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        load_decision(folder)
    (folder / ABOUT).write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_decision(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {WEIGHTS}"):
        load_decision(folder)
    with pytest.raises(ValueError, match="these are not parameters"):
        save_decision(folder, replace(saved[0], params=()))
