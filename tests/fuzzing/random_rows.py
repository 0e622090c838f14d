"""Random data sets: every row is learned as it is meant, or left out and told of."""

import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from outcome import attempt

from jspec.formats.tokenizer import read_tokenizer
from jspec.training.recipe import Text
from jspec.training.text_data import Texts, load_texts

WORDS = ("def", "add", "left", "right", "return", "+", "é", "\n", "</s>", "<user>", "  ", "")
TEMPLATE = (
    "{% for t in tools or [] %}[{{ t | tojson }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c | tojson }}{% endfor %}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
STRICT = TEMPLATE.replace(
    "<{{ m.role }}>",
    "{% if m.role not in ['user', 'assistant', 'system', 'tool'] %}"
    "{{ raise_exception('no such role') }}{% endif %}<{{ m.role }}>",
)
TEMPLATES = (
    TEMPLATE,
    STRICT,
    TEMPLATE.replace("<assistant>{% endif", "<assistant><think>{% endif"),
)
KINDS = ("text", "messages", "json", "pair", "sharegpt")
# Values where others belong.
ODD = (None, "", 0, [], {}, [None], {"role": "user"}, "[", '{"a": 1}', [[]], -1.5, True)


def attempts(seeds: Iterable[int], folder: Path) -> Iterator[tuple[int, str, str]]:
    """Of each seed a kind of data set, and its fault if it has one."""
    tokenizer = read_tokenizer(folder / "zoo" / "target")
    for seed in seeds:
        rng = random.Random(seed)
        kind = rng.choice(KINDS)
        tokenizer.chat_template = rng.choice(TEMPLATES)
        rows = [_row(rng, kind) for _ in range(rng.randint(2, 12))]
        odd = [rng.random() < 0.2 for _ in rows]
        given = [_spoil(rng, row) if spoil else row for row, spoil in zip(rows, odd, strict=True)]
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in given))
        yield seed, kind, _fault(file, given, odd, tokenizer, folder / str(seed))


def _fault(file: Path, given: list[Any], odd: list[bool], tokenizer: Any, cache: Path) -> str:
    notes: list[str] = []
    wanted = Text(source=str(file), held_out=0.5)
    size = len(tokenizer)
    done = attempt(
        lambda: load_texts(wanted, tokenizer, 0, vocab_size=size, cache=cache, note=notes.append)
    )
    if done.fault or done.refusal:
        return done.fault if any(odd) or done.fault else f"refused what is right: {done.refusal}"
    texts = [text for part in done.result for text in _check(part, size)]
    left_out = sum(int(note.split()[0]) for note in notes if "cannot be used" in note)
    if len(texts) + left_out != len(given):
        return f"{len(texts)} texts and {left_out} told of, of {len(given)} rows"
    if left_out > sum(odd):
        return f"{left_out} left out where {sum(odd)} are odd: {notes}"
    learned = sorted(tokenizer.decode(tokens) for tokens in texts)
    for row, spoiled in zip(given, odd, strict=True):
        if not spoiled and _meant(row) not in learned:
            return f"{_meant(row)!r} is not learned: {learned}"
    return ""


def _check(part: Texts, size: int) -> Iterator[np.ndarray]:
    """The learned tokens of each text."""
    for text in part:
        assert len(text.tokens) == len(text.weight) and text.tokens.max(initial=0) < size
        assert set(np.unique(text.weight)) <= {0.0, 1.0} and text.weight.any()
        yield np.asarray(text.tokens)[np.asarray(text.weight) > 0]


def _meant(row: dict[str, Any]) -> str:
    """What of a row is to be learned."""
    if "text" in row:
        return row["text"] + "<|endoftext|>"
    turns = row.get("messages", row.get("conversations"))
    if isinstance(turns, str):
        turns = json.loads(turns)
    if turns is None:
        return row["completion"] + "</s>"
    found = ""
    for turn in turns:
        if turn.get("role", turn.get("from")) in ("assistant", "gpt"):
            thought = turn.get("reasoning_content")
            found += f"({thought})" if thought else ""
            found += turn.get("content", turn.get("value"))
            found += "".join(json.dumps(call) for call in turn.get("tool_calls") or [])
            found += "</s>"
    return found


def _row(rng: random.Random, kind: str) -> dict[str, Any]:
    """A row that is right."""
    if kind == "text":
        return {"text": "x" + _words(rng)}
    if kind == "pair":
        return {"prompt": _words(rng), "completion": _words(rng)}
    names = ("from", "value") if kind == "sharegpt" else ("role", "content")
    speakers = ("human", "gpt") if kind == "sharegpt" else ("user", "assistant")
    turns: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 3)):
        turns += [dict(zip(names, (who, _words(rng)), strict=True)) for who in speakers]
    if kind != "sharegpt" and rng.random() < 0.3:
        turns[-1]["reasoning_content"] = "hm"
    if kind == "sharegpt":
        return {"conversations": turns}
    return {"messages": json.dumps(turns) if kind == "json" else turns}


def _words(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(0, 12)))


def _spoil(rng: random.Random, value: Any) -> Any:
    """The value with something else somewhere in it."""
    if isinstance(value, dict) and value:
        name = rng.choice(list(value))
        if rng.random() < 0.2:
            return {key: x for key, x in value.items() if key != name}
        return {**value, name: _spoil(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], _spoil(rng, value[place]), *value[place + 1 :]]
    if isinstance(value, str) and rng.random() < 0.3:
        return value[: rng.randint(0, len(value))]
    return rng.choice(ODD)
