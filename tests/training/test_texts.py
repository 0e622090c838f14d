"""Texts of every kind, and what of them is learned."""

import json
import re

import datasets
import numpy as np
import pytest
import tiny_zoo

from jspec.formats.tokenizer import read_tokenizer
from jspec.training import generated_data
from jspec.training.conversations import tokenize
from jspec.training.recipe import TeacherData, Text
from jspec.training.text_data import Texts, load_texts, read_dataset

END = 0
ROWS = [{"text": f"def f{i}():\n    return {i}\n", "n": i} for i in range(6)]
TALK = [
    {"role": "user", "content": "left"},
    {"role": "assistant", "content": "return right"},
    {"role": "user", "content": "add"},
    {"role": "assistant", "content": "def add"},
]
PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# What some models' templates do: thoughts of earlier turns are taken out.
REWRITING = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' and loop.last %}hm {% endif %}{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(models):
    return read_tokenizer(models / "target")


@pytest.fixture
def talking(models):
    tokenizer = read_tokenizer(models / "target")
    tokenizer.chat_template = PLAIN
    return tokenizer


def write(folder, kind):
    table, file = datasets.Dataset.from_list(ROWS), folder / f"rows.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == "json":
        file.write_text(json.dumps(ROWS))
    elif kind == "parquet":
        table.to_parquet(file)
    elif kind == "txt":
        file.write_text("".join(row["text"] for row in ROWS))
    else:
        table.save_to_disk(folder / "saved")
        return folder / "saved" if kind == "folder" else next((folder / "saved").glob("*.arrow"))
    return file


@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet", "arrow", "folder"])
def test_local_files_are_read(tmp_path, kind):
    table = read_dataset(str(write(tmp_path, kind)), cache=tmp_path / "cache")
    assert table["text"][:] == [row["text"] for row in ROWS]


def test_a_text_file_is_one_text(tmp_path):
    table = read_dataset(str(write(tmp_path, "txt")), cache=tmp_path / "cache")
    assert table["text"][:] == ["".join(row["text"] for row in ROWS)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.csv", "a,b", "a file ends in .arrow, .json"),
        ("rows.json", "{", "cannot be read"),
        ("some/data", None, "or, with network, a data set's name on the hub"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
        name = str(tmp_path / name)
    with pytest.raises(ValueError, match=f"^text.source='{name}'.*{said}") as error:
        read_dataset(name, cache=tmp_path / "cache")
    assert "\n" not in str(error.value)


def test_all_of_a_text_is_learned_and_it_is_closed(tokenizer):
    table, shortened = tokenize(datasets.Dataset.from_list(ROWS), tokenizer, END)
    texts = Texts(table)
    assert shortened == 0 and len(texts) == 6
    for row, text in zip(ROWS, texts, strict=True):
        assert tokenizer.decode(text.tokens[:-1]) == row["text"] and text.tokens[-1] == END
        assert np.all(text.weight == 1)
    np.testing.assert_array_equal(texts.lengths, [len(text.tokens) for text in texts])
    assert not texts.prompt_lengths.any()
    assert texts.at(np.arange(6))[3].temperature == 3


def learned(text, tokenizer) -> str:
    return tokenizer.decode(text.tokens[np.asarray(text.weight) > 0])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TALK},
        {"conversations": [{"from": {"user": "human", "assistant": "gpt"}[turn["role"]],
                            "value": turn["content"]} for turn in TALK]},
    ],
)  # fmt: skip
def test_of_a_conversation_the_assistants_turns_are_learned(talking, row):
    table, shortened = tokenize(datasets.Dataset.from_list([row]), talking, END)
    (text,) = Texts(table)
    assert shortened == 0
    assert learned(text, talking) == "return right</s>def add</s>"
    assert (
        talking.decode(text.tokens[: Texts(table).prompt_lengths[0]]) == "<user>left</s><assistant>"
    )


def test_a_pair_is_a_prompt_and_its_answer(talking):
    row = {"instruction": "add", "input": "left", "output": "right", "text": "all of it"}
    (text,) = Texts(tokenize(datasets.Dataset.from_list([row]), talking, END)[0])
    assert learned(text, talking) == "right</s>"
    assert "<user>add\n\nleft</s>" in talking.decode(text.tokens)


def test_where_a_template_rewrites_earlier_turns_the_last_is_learned(talking):
    talking.chat_template = REWRITING
    table, shortened = tokenize(datasets.Dataset.from_list([{"messages": TALK}]), talking, END)
    assert shortened == 1
    assert learned(Texts(table)[0], talking) == "hm def add</s>"


@pytest.mark.parametrize(
    ("row", "column", "said"),
    [
        ({"a": 1, "b": "x"}, "", "no usable column among a, b: one of messages, conversations"),
        ({"a": 1, "b": "x"}, "c", "text.column='c' does not exist: there are a, b"),
        ({"messages": [{"role": "user"}]}, "", "it needs role and content"),
    ],
)
def test_columns_that_cannot_be_used_are_named(talking, row, column, said):
    with pytest.raises(ValueError, match=said):
        tokenize(datasets.Dataset.from_list([row]), talking, END, column=column)


def test_conversations_need_a_chat_template(tokenizer):
    with pytest.raises(ValueError, match="need a tokenizer with a chat template"):
        tokenize(datasets.Dataset.from_list([{"messages": TALK}]), tokenizer, END)


def test_some_texts_are_kept_for_measuring(tokenizer, tmp_path):
    source = str(write(tmp_path, "jsonl"))
    wanted = Text(source=source, held_out=0.34)
    texts, held_out = load_texts(wanted, tokenizer, END, cache=tmp_path, note=pytest.fail)
    said = [{tokenizer.decode(text.tokens[:-1]) for text in part} for part in (texts, held_out)]
    assert len(said[1]) == 2 and not said[0] & said[1]
    assert said[0] | said[1] == {row["text"] for row in ROWS}


def prompts(texts, **wanted):
    return generated_data.sample_prompts(
        texts, TeacherData(**wanted), context=tiny_zoo.CONTEXT, seed=3
    )


def test_prompts_are_windows_of_texts_or_what_comes_before_an_answer(tokenizer, talking):
    texts = Texts(tokenize(datasets.Dataset.from_list(ROWS), tokenizer, END)[0])
    windows = prompts(texts, count=40, prompt_length=5, max_new_tokens=100)
    every = {tuple(text.tokens[i : i + 5]) for text in texts for i in range(len(text.tokens) - 4)}
    assert len(windows) == 40 and {tuple(window) for window in windows} <= every
    assert len({tuple(window) for window in windows}) > 10
    with pytest.raises(ValueError, match="prompt_length=500, max_new_tokens=100: texts have up to"):
        prompts(texts, count=1, prompt_length=500, max_new_tokens=100)

    talks = Texts(tokenize(datasets.Dataset.from_list([{"messages": TALK}]), talking, END)[0])
    (first, second) = prompts(talks, count=2, max_new_tokens=100)
    assert talking.decode(first) == talking.decode(second) == "<user>left</s><assistant>"
    with pytest.raises(ValueError, match="no prompt leaves that much of the context of 320"):
        prompts(talks, count=1, max_new_tokens=319)


def test_one_long_text_is_learned_but_for_its_end(tokenizer, tmp_path):
    (tmp_path / "book.txt").write_text("def add(left, right):\n    return left + right\n" * 20)
    wanted = Text(source=str(tmp_path / "book.txt"), held_out=0.25)
    seen, kept = load_texts(wanted, tokenizer, 0, cache=tmp_path / "data", note=print)
    assert len(seen) == len(kept) == 1 and 2 < seen.lengths[0] / kept.lengths[0] < 4


def test_files_of_a_folder_are_a_text_each(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\nof two lines\n")
    found = read_dataset(str(tmp_path), cache=tmp_path / "data")
    assert sorted(found["text"]) == [f"{name}\nof two lines\n" for name in "abc"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "one"}, {"text": None}], "a row has text=None, where text belongs"),
        ([{"messages": []}], "a conversation is [], where a list of turns belongs"),
        ([{"messages": None}, {"messages": [{"role": "user", "content": "hi"}]}], "is None, where"),
        ([{"messages": [{"role": "user", "content": None}]}], "it needs role and content"),
        ([{"messages": [{"role": "user", "content": "hi"}]}], "turns of the assistant"),
        ([{"text": [1, 2]}], "a turn is 1, where role and content belong"),
    ],
)
def test_rows_that_hold_something_else_are_shown(talking, rows, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        tokenize(datasets.Dataset.from_list(rows), talking, 0)


def test_a_pair_may_be_pieces_of_a_conversation(talking):
    asked, answered = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "add"}
    one = tokenize(datasets.Dataset.from_list([{"messages": [asked, answered]}]), talking, 0)[0]
    two = tokenize(
        datasets.Dataset.from_list([{"prompt": [asked], "completion": [answered]}]), talking, 0
    )[0]
    assert one[0]["tokens"].tolist() == two[0]["tokens"].tolist()
    assert one[0]["weight"].tolist() == two[0]["weight"].tolist()
