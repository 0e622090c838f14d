"""A conversation as tokens: what a chat template writes, and which of it is learned."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jspec.formats.encoding import encode_written

# Names of speakers in public data sets, by the name that chat templates know.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
ASSISTANT = "assistant"
NO_TEMPLATE = (
    "text: conversations need a tokenizer with a chat template, and the target's has none: give "
    "plain text, or put chat_template.jinja beside its tokenizer.json"
)

MARK = "\ue000"  # which no prompt has

Turn = dict[str, Any]


class Conversation(NamedTuple):
    """A conversation that was tokenized.

    Attributes:
      tokens: `[n]`; weight: `[n]` 1 for those that are learned.
      prompt: the tokens that the first learned turn is prompted with.
      whole: whether all of the assistant's turns are learned.
    """

    tokens: list[int]
    weight: list[float]
    prompt: list[int]
    whole: bool


def tokenize_conversation(turns: Any, tools: Any, tokenizer: Any) -> Conversation:
    """Tokenizes a conversation; the assistant's turns are learned.

    A turn is learned from where it parts from the prompt that asks for it, to what the template
    ends it with. Where a template rewrites earlier turns (leaves out what was thought, say), these
    are only read, and so is a turn that nobody asked for, because the conversation begins with it.

    Args:
      turns: dictionaries with `role` and `content`, or `from` and `value`, and what else the
        template takes; or the JSON text of them.
      tools: descriptions of the tools there are, in JSON's terms or as its text; or None.

    Raises `ValueError` with the reason why this one cannot be used.
    """
    messages = [_message(turn) for turn in _from_json(turns, "a conversation")]
    tools = _without_none(_from_json(tools, "tools")) if tools else None
    if not any(message["role"] == ASSISTANT for message in messages):
        raise ValueError("it has no turn of the assistant")

    def write(some: Sequence[Turn], *, ask: bool = False, tools: Any = tools) -> str:
        extra = {} if tools is None else {"tools": tools}
        try:
            return tokenizer.apply_chat_template(
                list(some), tokenize=False, add_generation_prompt=ask, **extra
            )
        # A template is a program: it may raise anything.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the chat template cannot write it ({type(error).__name__}: {reason[:200]})"
            ) from error

    whole = write(messages)
    if tools is not None and write(messages, tools=None) == whole:
        raise ValueError("the chat template does not write its tools")
    for field in _unwritten(messages, whole, write):
        raise ValueError(f"the chat template does not write its {field}")
    turns_of = [i for i, message in enumerate(messages) if message["role"] == ASSISTANT and i]
    found = [(turn, _span(messages, turn, whole, write)) for turn in turns_of]
    spans = {turn: span for turn, span in found if span is not None}
    if not spans:
        raise ValueError(
            "it begins with the assistant, who has no other turn"
            if not found
            else "the chat template writes no turn of the assistant as its prompt asks for it"
        )
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    weight = [
        float(any(begin < last and first < end for begin, end in spans.values()))
        for first, last in encoded["offset_mapping"]
    ]
    prompt = encode_written(tokenizer, [write(messages[: min(spans)], ask=True)])[0]
    return Conversation(encoded["input_ids"], weight, prompt, len(spans) == len(found))


def as_turns(prompt: Any, completion: Any, more: Any = "") -> list[Any]:
    """A prompt and its completion as a conversation, unless they are parts of one already.

    Args:
      more: Alpaca's `input`, which is added to its instruction.
    """
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*prompt, *completion]
    return [
        {"role": "user", "content": f"{prompt}\n\n{more}" if more else prompt},
        {"role": ASSISTANT, "content": completion},
    ]


def _span(
    messages: Sequence[Turn], turn: int, whole: str, write: Callable[..., str]
) -> tuple[int, int] | None:
    """Where the learned part of a turn starts and ends in the whole text; None if the template
    rewrites the turn or what comes before it."""
    earlier, asked = write(messages[:turn]), write(messages[:turn], ask=True)
    through = write(messages[: turn + 1])
    start = len(os.path.commonprefix([asked, through]))
    if start < len(asked):
        # They part within the prompt. What they share by chance, such as the bracket with which
        # both a thought and an answer begin, belongs to the answer.
        thought = {"reasoning_content": MARK} if messages[turn].get("reasoning_content") else {}
        marked = write([*messages[:turn], {**messages[turn], "content": MARK, **thought}])
        start = min(start, len(os.path.commonprefix([asked, marked])))
    rewritten = start < len(os.path.commonprefix([earlier, through]))
    return None if rewritten or not whole.startswith(through) else (start, len(through))


def _unwritten(messages: Sequence[Turn], whole: str, write: Callable[..., str]) -> Iterator[str]:
    """Fields without which the template writes the same."""
    last = max(i for i, message in enumerate(messages) if message["role"] == ASSISTANT)
    # What was thought in earlier turns is left out on purpose by many.
    given = {"tool_calls": messages, "reasoning_content": messages[last:]}
    for field, turns in given.items():
        if any(turn.get(field) for turn in turns):
            without = [{k: v for k, v in turn.items() if k != field} for turn in messages]
            if write(without) == whole:
                yield field


def _message(turn: Any) -> Turn:
    """A turn as chat templates take it, from either way of writing it, with all that it says."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"a turn is {_short(turn)}, where role and content belong")
    given = _without_none(turn)
    role, content = given.pop("from", None), given.pop("value", None)
    role, content = given.pop("role", role), _text(given.pop("content", content))
    calls = given.get("tool_calls")
    if content is None and calls:
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(
            f"a turn is {_short(turn)}: it needs role and content, or from and value, all text"
        )
    if calls:
        given["tool_calls"] = [_call(call) for call in _from_json(calls, "tool_calls")]
    return {"role": ROLES.get(role, role), "content": content, **given}


def _text(content: Any) -> Any:
    """Parts that are all text, as one text."""
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return content


def _call(call: Any) -> Any:
    """A tool call whose arguments are a dictionary, as templates take them: a text of JSON would be
    quoted once more."""
    inner = call.get("function", call) if isinstance(call, Mapping) else {}
    arguments = inner.get("arguments") if isinstance(inner, Mapping) else None
    if not isinstance(arguments, str):
        return call
    try:
        read = json.loads(arguments)
    except ValueError:
        return call
    if inner is call:
        return {**call, "arguments": read}
    return {**call, "function": {**inner, "arguments": read}}


def _from_json(value: Any, what: str) -> list[Any]:
    """A list, or the JSON text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"{what} is {_short(value)}, which is no JSON ({error})") from error
    if not isinstance(value, list) or not value:
        raise ValueError(f"{what} is {_short(value)}, where a list belongs")
    return value


def _without_none(value: Any) -> Any:
    """The value without the fields that a table fills up, since its rows have all of them."""
    if isinstance(value, Mapping):
        return {name: _without_none(x) for name, x in value.items() if x is not None}
    return [_without_none(x) for x in value] if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
