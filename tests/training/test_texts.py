"""Texts of every kind, and what of them is learned."""

import json
import re

import datasets
import numpy as np
import pytest
import tiny_zoo
from tokenizers.processors import TemplateProcessing

from jspec.formats.tokenizer import read_tokenizer
from jspec.training import generated_data
from jspec.training.data import pack
from jspec.training.recipe import TeacherData, Text
from jspec.training.text_data import Texts, load_texts, read_dataset
from jspec.training.tokenization import Tokenized, tokenize
from jspec.zoo.prompts import held_out_prompts

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


def tokenized(rows, tokenizer, **options) -> Tokenized:
    table = datasets.Dataset.from_list(rows)
    return tokenize(table, tokenizer, END, **{"vocab_size": len(tokenizer), **options})


def texts_of(rows, tokenizer, **options) -> Texts:
    return Texts(tokenized(rows, tokenizer, **options).table)


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
    done = tokenized(ROWS, tokenizer)
    texts = Texts(done.table)
    assert (done.rows, done.unusable, done.shortened) == (6, 0, 0) and len(texts) == 6
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
    done = tokenized([row], talking)
    texts = Texts(done.table)
    assert done.shortened == 0
    assert learned(texts[0], talking) == "return right</s>def add</s>"
    assert talking.decode(texts.prompt(0)) == "<user>left</s><assistant>"
    assert texts.prompt_lengths[0] == len(texts.prompt(0))


def test_a_pair_is_a_prompt_and_its_answer(talking):
    row = {"instruction": "add", "input": "left", "output": "right", "text": "all of it"}
    (text,) = texts_of([row], talking)
    assert learned(text, talking) == "right</s>"
    assert "<user>add\n\nleft</s>" in talking.decode(text.tokens)


def test_where_a_template_rewrites_earlier_turns_the_last_is_learned(talking):
    talking.chat_template = REWRITING
    done = tokenized([{"messages": TALK}], talking)
    assert done.shortened == 1
    assert learned(Texts(done.table)[0], talking) == "hm def add</s>"


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
        tokenized([row], talking, column=column)


def test_conversations_need_a_chat_template(tokenizer):
    with pytest.raises(ValueError, match="need a tokenizer with a chat template"):
        tokenized([{"messages": TALK}], tokenizer)


def test_some_texts_are_kept_for_measuring(tokenizer, tmp_path):
    source = str(write(tmp_path, "jsonl"))
    wanted = Text(source=source, held_out=0.34)
    texts, held_out = load_texts(
        wanted, tokenizer, END, vocab_size=len(tokenizer), cache=tmp_path, note=pytest.fail
    )
    said = [{tokenizer.decode(text.tokens[:-1]) for text in part} for part in (texts, held_out)]
    assert len(said[1]) == 2 and not said[0] & said[1]
    assert said[0] | said[1] == {row["text"] for row in ROWS}


def prompts(texts, **wanted):
    return generated_data.sample_prompts(
        texts, TeacherData(**wanted), context=tiny_zoo.CONTEXT, seed=3
    )


def test_prompts_are_windows_of_texts_or_what_comes_before_an_answer(tokenizer, talking):
    texts = texts_of(ROWS, tokenizer)
    windows = prompts(texts, count=40, prompt_length=5, max_new_tokens=100)
    every = {tuple(text.tokens[i : i + 5]) for text in texts for i in range(len(text.tokens) - 4)}
    assert len(windows) == 40 and {tuple(window) for window in windows} <= every
    assert len({tuple(window) for window in windows}) > 10
    with pytest.raises(ValueError, match="prompt_length=500, max_new_tokens=100: texts have up to"):
        prompts(texts, count=1, prompt_length=500, max_new_tokens=100)

    talks = texts_of([{"messages": TALK}], talking)
    (first, second) = prompts(talks, count=2, max_new_tokens=100)
    assert talking.decode(first) == talking.decode(second) == "<user>left</s><assistant>"
    with pytest.raises(ValueError, match="no prompt leaves that much of the context of 320"):
        prompts(talks, count=1, max_new_tokens=319)


def test_one_long_text_is_learned_but_for_its_end(tokenizer, tmp_path):
    (tmp_path / "book.txt").write_text("def add(left, right):\n    return left + right\n" * 20)
    wanted = Text(source=str(tmp_path / "book.txt"), held_out=0.25)
    size = len(tokenizer)
    seen, kept = load_texts(
        wanted, tokenizer, 0, vocab_size=size, cache=tmp_path / "data", note=print
    )
    assert len(seen) == len(kept) == 1 and 2 < seen.lengths[0] / kept.lengths[0] < 4


def test_files_of_a_folder_are_a_text_each(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\nof two lines\n")
    found = read_dataset(str(tmp_path), cache=tmp_path / "data")
    assert sorted(found["text"]) == [f"{name}\nof two lines\n" for name in "abc"]


ASK = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "add"}
CALL = {"function": {"name": "add", "arguments": '{"left": 1}'}}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": None}, "text is None, where text belongs"),
        ({"messages": []}, "a conversation is [], where a list belongs"),
        ({"messages": None}, "a conversation is None, where a list belongs"),
        ({"messages": "[1"}, "a conversation is '[1', which is no JSON"),
        ({"messages": [{"role": "user", "content": None}]}, "it needs role and content"),
        ({"messages": [ASK]}, "it has no turn of the assistant"),
        ({"messages": [ANSWER, ASK]}, "it begins with the assistant, who has no other turn"),
        ({"messages": [ASK, {**ANSWER, "tool_calls": [CALL]}]}, "does not write its tool_calls"),
        ({"messages": [ASK, ANSWER], "tools": [{"name": "add_up"}]}, "does not write its tools"),
        ({"messages": [ASK, {**ANSWER, "reasoning_content": "hm"}]}, "write its reasoning_content"),
    ],
)
def test_a_row_that_cannot_be_used_is_left_out_and_told_of(talking, row, reason):
    """Beside others that can, which are learned as if it were not there; alone it is the end."""
    name = next(iter(row))
    good = {"text": "add"} if name == "text" else {"messages": [ASK, ANSWER]}
    good |= {"tools": None} if "tools" in row else {}
    if isinstance(row[name], str):
        good = {"messages": json.dumps(good["messages"])}
    done = tokenized([good, row, good], talking)
    assert (done.rows, done.unusable) == (3, 1)
    (said,) = done.reasons
    assert said.startswith("row 1: ") and reason in said and "\n" not in said
    whole = Texts(done.table)
    for one, other in zip(whole, texts_of([good, good], talking), strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_array_equal(one.weight, other.weight)
    with pytest.raises(ValueError, match="none of 2 rows can be used: row 0: .*; row 1: "):
        tokenized([row, row], talking)


def test_conversations_may_be_json_after_a_row_that_is_none(talking):
    rows = [{"messages": x} for x in ("", "{", json.dumps([ASK, ANSWER]))]
    done = tokenized(rows, talking)
    assert done.unusable == 2 and learned(Texts(done.table)[0], talking) == "add</s>"


def test_a_template_that_raises_costs_one_row(talking):
    talking.chat_template = PLAIN.replace(
        "%}<", "%}{% if m.content == 'no' %}{{ 1 + 'a' }}{% endif %}<", 1
    )
    rows = [{"messages": [ASK, {**ANSWER, "content": c}]} for c in ("add", "no", "add")]
    done = tokenized(rows, talking)
    assert done.unusable == 1 and "row 1: the chat template cannot write it" in done.reasons[0]


def test_three_rows_are_named_with_the_numbers_that_they_have_in_the_file(talking, tmp_path):
    bad = {4, 7, 11, 18}
    rows = [{"messages": [ASK] if n in bad else [ASK, ANSWER]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes = []
    parts = load_texts(
        Text(source=str(tmp_path / "rows.jsonl"), held_out=0.3), talking, END,
        vocab_size=len(talking), cache=tmp_path, note=notes.append,
    )  # fmt: skip
    assert sum(map(len, parts)) == 16
    (said,) = notes
    assert said.startswith("4 of 20 rows cannot be used: row ") and said.endswith(", and so on")
    named = list(map(int, re.findall(r"row (\d+):", said)))
    assert len(named) == 3 and set(named) <= bad


def test_a_token_that_the_model_does_not_have_is_named_with_its_text(tokenizer, models):
    added = read_tokenizer(models / "target")
    added.add_tokens(["<image>"])
    done = tokenized([{"text": "add"}, {"text": "add <image>"}], added, vocab_size=len(tokenizer))
    assert done.reasons == (
        f"row 1: token {len(tokenizer)} ('<image>') is not one of the model's {len(tokenizer)}",
    )
    assert tokenized([{"text": "add <image>"}], added, vocab_size=len(added)).unusable == 0


TOOLS = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "{% endfor %}{% if m.tool_call_id %}#{{ m.tool_call_id }}{% endif %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("written", ["objects", "json"])
def test_a_template_is_given_whole_turns_and_tools(talking, written):
    talking.chat_template = TOOLS
    turns = [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "2", "tool_call_id": "call_1"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    row = {"messages": turns, "tools": tools}
    if written == "json":
        row = {name: json.dumps(value) for name, value in row.items()}
    texts = texts_of([row], talking)
    assert talking.decode(texts[0].tokens) == (
        '[add]<user>hi</s><assistant>(hm)add{"left": 1}</s>'
        '<tool>2#call_1</s><assistant>add{"left": 1}</s>'
    )
    assert learned(texts[0], talking) == '(hm)add{"left": 1}</s>add{"left": 1}</s>'
    assert talking.decode(texts.prompt(0)) == "[add]<user>hi</s><assistant>"


TURN = "<{{ m.role }}>{{ m.content }}</s>"
TEMPLATES = {
    "plain": (PLAIN, "def add</s>", "<assistant>"),
    # The prompt opens a thought that the written turn does not have.
    "think": (PLAIN.replace("<assistant>", "<assistant><think>"), "def add</s>", "<think>"),
    # The same, and the answer begins with a bracket, too.
    "bracket": (PLAIN.replace("<assistant>", "<assistant><think>"), "<def add</s>", "<think>"),
    # The prompt opens a thought, and the turn has one.
    "thought": (
        PLAIN.replace(
            "{{ m.content }}", "{% if m.role == 'assistant' %}<think>{% endif %}{{ m.content }}"
        ).replace("%}<assistant>", "%}<assistant><think>"),
        "def add</s>",
        "<think>",
    ),
    "trimmed": (PLAIN.replace("m.content", "m.content | trim"), "def add</s>", "<assistant>"),
    # The system's turn is a part of the user's.
    "folded": (
        "{% for m in messages %}{% if m.role == 'system' %}{% else %}<{{ m.role }}>"
        "{% if loop.index0 == 1 and messages[0].role == 'system' %}{{ messages[0].content }}"
        "{% endif %}{{ m.content }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}",
        "def add</s>",
        "<assistant>",
    ),
    # Nothing asks for an answer, so the model writes who speaks as well.
    "silent": (PLAIN.partition("{% if add")[0], "<assistant>def add</s>", "</s>"),
    "rewriting": (REWRITING, "hm def add</s>", "<assistant>"),
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_turn_is_learned_from_where_it_parts_from_its_prompt(talking, kind):
    template, last, asked = TEMPLATES[kind]
    talking.chat_template = template
    spelled = {"trimmed": " {} ", "bracket": "<{}"}.get(kind, "{}")
    talk = [{"role": "system", "content": "return"}] * (kind == "folded") + [
        {**turn, "content": spelled.format(turn["content"])} for turn in TALK
    ]
    texts = texts_of([{"messages": talk}], talking)
    assert learned(texts[0], talking).endswith(last)
    if kind != "rewriting":
        assert learned(texts[0], talking) == last.replace("def add", "return right") + last
    assert talking.decode(texts.prompt(0)).endswith(asked)
    # What is learned first is what the model would write after the prompt.
    first = np.flatnonzero(texts[0].weight)[0]
    if kind not in ("think", "bracket", "rewriting"):
        np.testing.assert_array_equal(texts[0].tokens[:first], texts.prompt(0))


def test_a_pair_may_be_pieces_of_a_conversation(talking):
    asked, answered = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "add"}
    (one,) = texts_of([{"messages": [asked, answered]}], talking)
    (two,) = texts_of([{"prompt": [asked], "completion": [answered]}], talking)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_array_equal(one.weight, two.weight)


@pytest.fixture
def beginning_tokenizer(models):
    """One that begins every text with a token, as Llama's do."""
    tokenizer = read_tokenizer(models / "target")
    first = tokenizer.convert_tokens_to_ids("<") or 5
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="< $A", special_tokens=[("<", first)]
    )
    return tokenizer, first


def test_what_is_learned_and_continued_begins_as_texts_do(beginning_tokenizer, tmp_path):
    tokenizer, first = beginning_tokenizer
    assert tokenizer("add")["input_ids"][0] == first
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS * 3))
    texts, _ = load_texts(
        Text(source=str(tmp_path / "rows.jsonl")), tokenizer, END,
        vocab_size=len(tokenizer), cache=tmp_path, note=pytest.fail,
    )  # fmt: skip
    assert texts.beginning == (first,)
    assert all(text.tokens[0] == first and text.tokens[1] != first for text in texts)
    windows = prompts(texts, count=20, prompt_length=5, max_new_tokens=100)
    assert all(len(row) == 5 and row[0] == first and first not in row[1:] for row in windows)
    assert all(
        row[0] == first and len(row) == 24 and first not in row[1:4]
        for row in held_out_prompts(tokenizer, 3, 24)
    )


def test_a_piece_that_continues_a_text_begins_as_texts_do(beginning_tokenizer):
    tokenizer, first = beginning_tokenizer
    texts = texts_of([{"text": "def add(left, right):\n" * 30}], tokenizer)
    size = len(texts[0].tokens)
    rows = pack(texts, 24, beginning=(first,)).rows(np.arange(100)[: -(-size // 22)])
    assert np.all(rows.tokens[:, 0] == first)
    counted = rows.weight > 0
    assert not counted[:, 0][rows.tokens[:, 1] == first].any()
    # Every token but the first is a target once.
    assert sorted(rows.tokens[:, 1:][counted]) == sorted(texts[0].tokens[1:].tolist())
