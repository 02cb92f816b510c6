"""Records before anything is made of them: what can be learned is left as it is, what cannot is refused by its key."""

from __future__ import annotations

import copy
import datetime
import json
import re
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from valueadapter import ConfigError
from valueadapter.demonstrations.tokenized import as_context, load_demonstrations

Record = dict[str, Any]
USER = {"role": "user", "content": "u"}
SAID = {"role": "assistant", "content": "a"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {"x": 0}}}]}
CHAT: Record = {"messages": [USER, SAID]}
PAIR: Record = {"prompt": "p", "completion": "c"}
DAY = datetime.datetime(2024, 1, 1)

NO_TEXTS = [42, 0, 1.5, True, False, None, ["a"], {"a": "b"}, DAY, b"bytes", float("nan")]


def places_of_text() -> dict[str, tuple[Record, list[Any]]]:
    """Every key whose value must be text: a good record, and the way to that key."""
    parts: Record = {"messages": [{"role": "user", "content": [{"type": "text", "text": "t"}]}, SAID]}
    return {
        "'prompt'": (PAIR, ["prompt"]),
        "'completion'": (PAIR, ["completion"]),
        "'text'": ({"text": "t"}, ["text"]),
        "'messages[0].role'": (CHAT, ["messages", 0, "role"]),
        "'messages[0].content'": (CHAT, ["messages", 0, "content"]),
        "'messages[1].content'": (CHAT, ["messages", 1, "content"]),
        "'messages[0].content[0].text'": (parts, ["messages", 0, "content", 0, "text"]),
        "'choices[1]'": ({**PAIR, "choices": ["a", "b"], "answer": 0}, ["choices", 1]),
        "'prompt[0].content'": ({"prompt": [USER], "completion": [SAID]}, ["prompt", 0, "content"]),
        "'completion[0].content'": ({"prompt": [USER], "completion": [SAID]}, ["completion", 0, "content"]),
    }


def with_value(record: Record, way: list[Any], value: Any) -> Record:
    changed = copy.deepcopy(record)
    inner: Any = changed
    for step in way[:-1]:
        inner = inner[step]
    inner[way[-1]] = value
    return changed


@pytest.mark.parametrize("key", places_of_text())
@pytest.mark.parametrize("value", [*NO_TEXTS, "\ud83d", "a\udc80b"], ids=repr)
def test_what_is_no_text_is_refused_by_its_key(key: str, value: Any) -> None:
    """A number, a truth value, null, a list, a date, half a pair of surrogates: never turned into text."""
    record, way = places_of_text()[key]
    if key in ("'messages[0].content'", "'messages[1].content'", "'prompt[0].content'", "'completion[0].content'"):
        key = key if not isinstance(value, list) else key[:-1] + "[0]'"  # content may be a list, of parts
    elif key in ("'prompt'", "'completion'") and isinstance(value, list):
        key = "must both be texts or both chats"
    with pytest.raises(ConfigError, match=rf"^record 1 \(the first is 0\): .*{re.escape(key)}"):
        load_demonstrations([record, with_value(record, way, value)])
    assert len(load_demonstrations([record, record])) == 2


def test_the_first_wrong_record_is_named_and_all_are_counted() -> None:
    """So that one run says how bad it is."""
    rows = [PAIR, {"prompt": "p", "completion": 42}, PAIR, {"text": None}]
    with pytest.raises(ConfigError, match=r'record 1 .*got 42 \(a number\). Write it as text: "42" \(2 of 4 records'):
        load_demonstrations(rows)


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


REFUSED: dict[str, tuple[Any, str]] = {
    "no record": ("text", "must be an object with keys; got .text. .text"),
    "no turns": ({"messages": []}, "'messages' must be a list of turns, at least one"),
    "one turn": ({"messages": USER}, "'messages' must be a list of turns"),
    "a text": ({"messages": "hi"}, "'messages' must be a list of turns"),
    "texts": ({"messages": ["hi"]}, r"'messages\[0\]' must be an object with 'role' and 'content'"),
    "no role": ({"messages": [{"content": "a"}]}, r"'messages\[0\].role' must be text; got null"),
    "nothing said": ({"messages": [{"role": "assistant"}]}, r"'messages\[0\].content' must be text; got null"),
    "no answer": ({"messages": [USER]}, "no turn of the role 'assistant' to learn .roles: 'user'"),
    "weightless": ({"messages": [USER, {**SAID, "weight": 0}]}, "no turn of the role 'assistant' to learn"),
    "half a weight": ({"messages": [{**SAID, "weight": 0.5}]}, r"'messages\[0\].weight' must be 0 .* or 1; got 0.5"),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, SAID]},
        r"content\[0\]' must be a part",
    ),
    "pictures": ({**CHAT, "images": ["a.png"]}, "'images' would not reach the model, which reads texts"),
    "settings": ({**CHAT, "chat_template_kwargs": [1]}, r"'chat_template_kwargs' must be an object; got \[1\]"),
    "settings as text": ({**CHAT, "chat_template_kwargs": "{"}, "'chat_template_kwargs' must be an object, or that as"),
    "documents": ({**CHAT, "documents": ["a"]}, "'documents' must be a list of objects; got"),
    "calls": ({"messages": [{**CALL, "tool_calls": "f"}]}, r"tool_calls' must be a list of objects"),
    "call": (
        {"messages": [{**CALL, "tool_calls": [{"x": 1}]}]},
        r"tool_calls\[0\]' must have a function with a 'name'",
    ),
    "arguments": (
        {"messages": [{**CALL, "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]},
        r"tool_calls\[0\]' must have 'arguments' that are an object, or JSON as text; got \[1\]",
    ),
    "a date in arguments": (
        {"messages": [{**CALL, "tool_calls": [{"function": {"name": "f", "arguments": {"day": DAY}}}]}]},
        "arguments.day' must be a value of JSON; got .*datetime",
    ),
    "NaN in arguments": (
        {"messages": [{**CALL, "tool_calls": [{"function": {"name": "f", "arguments": {"x": float("nan")}}}]}]},
        "arguments.x' must be a value of JSON; got NaN",
    ),
    "half a key": ({**CHAT, "tools": [{"\ud83d": 1}]}, r"'tools\[0\], a key' holds half of a surrogate pair"),
    "tools as text": ({**CHAT, "tools": "f"}, "'tools' must be a list of objects .*, or that as JSON"),
    "a tool": ({**CHAT, "tools": {"name": "f"}}, "'tools' must be a list of objects"),
    "functions": ({**CHAT, "tools": [len]}, "'tools' must be a list of objects .*get_json_schema"),
    "tools of a prompt": ({**PAIR, "tools": [{"name": "f"}]}, "'tools' need a chat"),
    "half a chat": ({"prompt": [USER], "completion": "c"}, "must both be texts or both chats"),
    "nothing learned": ({"prompt": [USER, SAID, USER], "completion": [USER]}, "'completion' has no turn of the assist"),
    "goes on": ({"prompt": [USER, SAID], "completion": [SAID]}, "'prompt' ends in an assistant's turn"),
    "empty": ({"prompt": "", "completion": ""}, "nothing is to be learned where 'prompt' and 'completion' say nothing"),
    "empty text": ({"text": ""}, "nothing is to be learned where 'text' say"),
    "deep": ({**CHAT, "tools": [nested(900)]}, "'tools' must be a list of objects"),
    "deep tool": ({**CHAT, "tools": [{"a": nested(5000)}]}, "nested too deep"),
    "choices": ({**PAIR, "choices": "ab", "answer": 0}, "'choices' must be a list of texts; got .ab."),
    "beyond": ({**PAIR, "choices": ["a"], "answer": 1}, "'answer' must be the index of one of 1 'choices'"),
    "before": ({**PAIR, "choices": ["a"], "answer": -1}, "'answer' must be the index of one of 1 'choices'"),
    "a letter": ({**PAIR, "choices": ["a"], "answer": "A"}, "'answer' must be the index"),
    "true": ({**PAIR, "choices": ["a", "b"], "answer": True}, "'answer' must be the index"),
    "an empty choice": ({**PAIR, "choices": ["a", ""], "answer": 0}, "none of them empty"),
    "streams": (Dataset.from_list([PAIR]).to_iterable_dataset(), "a streamed dataset is read once"),
    "splits": ({"train": [PAIR], "test": [PAIR]}, "got an object with 'train', 'test'. Give one of its values"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_learned_is_refused(case: str) -> None:
    """With the key and what is wrong with it, before there is a tokenizer."""
    record, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        load_demonstrations(record if case in ("streams", "splits") else [record])


LEARNED: list[Record] = [
    {"prompt": "", "completion": "c"},
    {"prompt": "p", "completion": ""},
    {"prompt": "p", "completion": "c", "text": "t", "extra": DAY, "answer": "42", "choices": None},
    {"prompt": "p", "completion": "c", "choices": {"text": ["a"]}},
    {"instruction": "i", "output": "o", "text": "t"},
    {"messages": [USER, CALL, {"role": "tool", "content": "4", "name": "f"}, SAID], "tools": [{"type": "function"}]},
    {"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": '{"x": null}'}]}]},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "s"}]}, USER, {**SAID, "weight": 1}]},
    {"messages": [USER, {**SAID, "weight": 0}, USER, SAID], "tools": []},
    {**CHAT, "documents": [{"title": "t"}], "chat_template_kwargs": {"enable_thinking": False}},
    {"prompt": None, "completion": None, "messages": [USER, SAID], "text": None},
    {"prompt": "p", "completion": None, "text": "2024-01-01"},
]


@pytest.mark.parametrize("record", LEARNED, ids=range(len(LEARNED)))
def test_what_can_be_learned_is_left_as_given(record: Record) -> None:
    """Empty prompts and completions, parts of text, calls without content, nulls of other shapes, further columns."""
    before = copy.deepcopy(record)
    assert list(load_demonstrations([record, record])) == [before, before]
    assert record == before


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3)


@settings(max_examples=60, deadline=None)
@given(several=st.lists(ARGUMENTS, min_size=2, max_size=4))
def test_calls_and_tools_stay_as_they_were_given(several: list[dict[str, Any]]) -> None:
    """Each call keeps its own keys and types beside others, nulls that were given among them, and so does each tool."""
    records = [
        {
            "messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": one}}]}],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": one}}],
        }
        for one in several
    ]
    assert list(load_demonstrations(records)) == records
    written = [{**record, "tools": json.dumps(record["tools"])} for record in records]
    assert list(load_demonstrations(written)) == records


def test_a_conversational_prompt_and_completion_are_one_chat() -> None:
    """As in TRL: what the prompt's assistant says is not learned."""
    record = {"prompt": [USER, SAID, USER], "completion": [CALL, SAID], "tools": [{"name": "f"}], "id": 7}
    (found,) = load_demonstrations([record])
    assert found == {
        "messages": [USER, {**SAID, "weight": 0}, USER, CALL, SAID],
        "tools": [{"name": "f"}],
        "id": 7,
    }
    (found,) = load_demonstrations([{"prompt": [], "completion": [SAID]}])
    assert found == {"messages": [SAID]}


SHAREGPT = [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"conversations": [{"from": "system", "value": "s"}, *SHAREGPT]},
            [{"role": "system", "content": "s"}, USER, SAID],
        ),
        ({"conversation": SHAREGPT}, [USER, SAID]),
        ({"messages": SHAREGPT}, [USER, SAID]),
        ({"instruction": "i", "input": "j", "output": "o"}, ("i\nj", "o")),
        ({"instruction": "i", "output": "o"}, ("i", "o")),
    ],
)
def test_other_tools_records_are_recognised_and_the_remedy_works(record: Record, expected: Any) -> None:
    """The expression that the error gives makes a record of ours."""
    with pytest.raises(ConfigError, match="write each record as") as caught:
        load_demonstrations([record])
    made = eval(str(caught.value).split("write each record as ")[1], {"record": record})
    (found,) = load_demonstrations([made])
    assert found == ({"messages": expected} if isinstance(expected, list) else dict(zip(PAIR, expected, strict=True)))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"conversations": [USER, SAID]}, "rename 'conversations' to 'messages'"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "these are preferences; train on them with TRL's DPOTrainer"),
        ({"question": "q", "answer": "a"}, "rename 'question' to 'prompt' and 'answer' to 'completion'"),
        ({"prompt": "p", "response": "r"}, "rename 'response' to 'completion'"),
        ({"input_ids": [1], "labels": [1]}, "these are tokens already"),
        (
            {"prompt": "p"},
            "records must have 'prompt' and 'completion', or 'messages', or 'text'; got the columns prompt$",
        ),
        ({}, r"got the columns \(none\)"),
    ],
)
def test_unknown_shapes_say_what_to_rename(record: Record, message: str) -> None:
    """Where the names can be guessed, and nothing where they cannot."""
    with pytest.raises(ConfigError, match=message):
        load_demonstrations([record])


@pytest.mark.parametrize(
    "record",
    [
        {"\x1b[31mprompt": "p"},
        {**PAIR, "completion": ["\x1b]0;\x07"]},
        {"messages": [{"role": "\x9b1m", "content": "c"}]},
        {**CHAT, "tools": [{"\x1b[1m": DAY}]},
        {"messages": [{**SAID, "\u202e": DAY}]},
        {**PAIR, "choices": ["\x1b"], "answer": "\ud83d"},
    ],
)
def test_messages_steer_no_terminal(record: Record) -> None:
    """Texts and keys of a record are shown, and none of their control characters."""
    with pytest.raises(ConfigError, match="record 0") as caught:
        load_demonstrations([record])
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([{"prompt": "", "completion": "c"}], "c\n\n"),
        (
            [{"prompt": "", "completion": "c", "text": "t"}, {"prompt": "p", "completion": "c", "text": "t"}],
            "c\n\npc\n\n",
        ),
        ([{"prompt": None, "completion": None, "text": "t"}], "t\n\n"),
        ([{"prompt": "p", "completion": "", "text": "t"}], "p\n\n"),
    ],
)
def test_a_context_is_made_by_each_records_shape(records: list[Record], text: str) -> None:
    """Not by whether a prompt is empty or a further column is there."""
    assert as_context(list(load_demonstrations(records))) == text
