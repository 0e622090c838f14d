"""The target's own text: what it would write alone, made once, whatever stops it."""

import jax
import numpy as np
import pytest

from jspec import LookupDrafter, SamplingParams, SmallModelDrafter, Tree, autoregress, pad_prompts
from jspec.training import generated_data
from jspec.training.generated_data import generate_samples

PROMPTS = [[3, 1, 4], [1, 5, 9, 2], [6], [5, 3, 5], [8, 9], [7, 9, 3, 2], [3, 8], [4, 6, 2]]
TEMPERATURES = np.array([0.0, 0.5, 1.0, 1.5] * 2, np.float32)
TOKENS = 12
STOPS = (17, 23, 40)


@pytest.fixture
def make(target, params, tmp_path, monkeypatch):
    monkeypatch.setattr(generated_data, "PART", 3)
    shown = []

    def made(drafter=None, draft=(), rows=PROMPTS, params=params, **changes):
        shown.clear()
        return generate_samples(
            tmp_path / "answers",
            params,
            draft,
            rows,
            TEMPERATURES[: len(rows)],
            target=target,
            drafter=drafter or LookupDrafter(Tree.chain(2)),
            show=lambda done, note="": shown.append(done),
            **{
                "max_new_tokens": TOKENS,
                "stop_token_ids": STOPS,
                "batch_size": 3,
                "seed": 5,
                "made_by": {},
                **changes,
            },
        )

    made.folder, made.shown = tmp_path / "answers", shown
    return made


def test_an_answer_is_what_the_target_writes_alone(make, target, params):
    text = autoregress(
        params,
        pad_prompts(PROMPTS, context_length=512, max_new_tokens=TOKENS),
        jax.random.split(jax.random.key(5), len(PROMPTS)),
        SamplingParams.create(
            len(PROMPTS), temperature=TEMPERATURES.tolist(), stop_token_ids=STOPS
        ),
        target=target,
        max_new_tokens=TOKENS,
    )
    made = make(SmallModelDrafter(target, Tree.branching((2, 1))), params)
    for index, one in enumerate(made):
        length = int(text.length[index])
        assert one.tokens == text.tokens[index, :length].tolist()
        assert (one.index, one.prompt) == (index, PROMPTS[index])
        assert one.temperature == pytest.approx(float(TEMPERATURES[index]))
    assert min(len(one.tokens) for one in made) < TOKENS  # an end of text is learned, too


def test_what_is_written_is_not_written_again(make):
    first = make()
    parts = list(make.folder.glob("part-*.jsonl"))
    sizes = {part: len(part.read_text().splitlines()) for part in parts}
    assert sorted(sizes.values()) == [2, 3, 3]
    assert make() == first and make.shown == [8]
    max(parts, key=sizes.get).unlink()
    assert make() == first and make.shown == [5, 6, 7, 8]


def test_what_is_there_is_never_written_over(make):
    """A part that is deleted, as advised where it is broken, is made again beside the others."""
    first = make()
    for place in (0, 1, 0):
        parts = sorted(make.folder.glob("part-*.jsonl"))
        kept = {file: file.read_text() for file in parts if file != parts[place]}
        parts[place].unlink()
        assert make() == first
        assert {file: file.read_text() for file in kept} == kept
        assert make() == first and make.shown == [8]


def test_what_is_not_finite_is_not_kept(make, params):
    spoilt = jax.tree.map(lambda x: x.at[..., 0].set(np.nan), params)
    with pytest.raises(FloatingPointError, match="logits after prompt . are not finite"):
        make(params=spoilt)
    assert not list(make.folder.glob("part-*"))


def test_a_file_is_there_whole_or_not_at_all(make, monkeypatch):
    def full(self, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.replace", full)
        with pytest.raises(OSError, match="No space"):
            make()
    assert not list(make.folder.glob("part-*"))
    assert len(make()) == 8


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 6}, "seed"),
        ({"max_new_tokens": 11}, "max_new_tokens"),
        ({"made_by": {"target": "another"}}, "target"),
        ({"rows": PROMPTS[:4]}, "prompts"),
    ],
)
def test_answers_of_another_making_are_refused(make, changes, named):
    make()
    with pytest.raises(ValueError, match=rf"another set of samples \({named}="):
        make(**changes)


def test_a_documents_prompt_is_only_read(make):
    document = make()[0].document()
    np.testing.assert_array_equal(document.weight[:3], 0)
    assert np.all(document.weight[3:] == 1) and len(document.tokens) == len(document.weight)
