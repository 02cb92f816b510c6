"""What a record must be before anything is made of it; knows no tokenizer, and nothing of where a record comes from.

Three shapes: `prompt` and `completion`; `messages` (chat); `text`. Nothing is turned into text here: what is none is
refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from numbers import Integral, Number
from typing import Any

from valueadapter.demonstrations.foreign_records import remedy
from valueadapter.errors import ConfigError

SHAPES = (("prompt", "completion"), ("messages",), ("text",))
"""The keys of each shape; the first that a record has is its shape, by whose first key it is called."""
_TEMPLATE = {
    "tools": "a list of objects (JSON schemas, as transformers.utils.get_json_schema makes them of a function)",
    "documents": "a list of objects",
    "chat_template_kwargs": "an object",
}
"""Keys beside a chat that its template gets -> what they must be."""
_UNSEEN = ("images", "image", "videos", "audios")
"""Keys beside a chat that other trainers hand to the model, and this library does not."""


def shape_of(record: Mapping[str, Any]) -> str:
    """`prompt`, `messages` or `text`: the shape of a record, by its keys that are not null.

    Raises:
        ConfigError: none of them.
    """
    for keys in SHAPES:
        if all(record.get(key) is not None for key in keys):
            return keys[0]
    for keys in SHAPES:
        missing = [key for key in keys if record.get(key) is None]
        if missing and all(key in record for key in keys):
            raise ConfigError(f"'{missing[0]}' must be {'a chat' if keys == SHAPES[1] else 'text'}; got null")
    advice = remedy(record)
    raise ConfigError(
        "records must have 'prompt' and 'completion', or 'messages', or 'text'; got the columns "
        f"{_columns(record)}{f'. Remedy: {advice}' if advice else ''}"
    )


def _columns(record: Mapping[str, Any]) -> str:
    names = [printable(str(key)) for key in record]
    return (", ".join(names[:12]) + (" …" if len(names) > 12 else "")) or "(none)"


def carries_loss(message: Mapping[str, Any]) -> bool:
    """Whether a turn of a chat is learned and scored: the assistant's, but for those of `weight` 0 (OpenAI's key)."""
    return message["role"] == "assistant" and message.get("weight") != 0


def checked(record: Any) -> dict[str, Any]:
    """A record that can be trained on and scored, as given.

    TRL's conversational prompt and completion become one chat in which the prompt's answers have weight 0. What a
    chat's template gets besides (`tools`, `documents`, `chat_template_kwargs`) is parsed where it is JSON, and left out
    where it is null.

    Args:
        record: anything.

    Returns:
        The record, whose texts are texts, whose chats are chats, and whose further columns are as they were.

    Raises:
        ConfigError: it is no record; says which key is wrong, and how.
    """
    if not isinstance(record, Mapping):
        raise ConfigError(f"a record must be an object with keys; got {shown(record)}")
    try:
        found = _as_chat(dict(record))
        shape = shape_of(found)
        if shape == "messages":
            _check_chat(found)
        else:
            _check_texts(found, shape)
    except RecursionError as error:
        raise ConfigError("its objects and lists are nested too deep") from error
    if found.get("choices") is not None and found.get("answer") is not None:
        _check_choices(found["choices"], found["answer"])
    return found


def shown(value: Any) -> str:
    """A value and what it is, for a message."""
    if value is None:
        return "null"
    kinds: dict[Any, str] = {str: "text", bool: "a truth value", Number: "a number", Mapping: "an object"}
    kinds |= {(list, tuple): "a list"}
    kind = next((name for cls, name in kinds.items() if isinstance(value, cls)), type(value).__name__)
    try:
        written = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        written = str(type(value).__name__) if isinstance(value, (Mapping, list, tuple)) else str(value)
    return f"{printable(written if len(written) <= 60 else written[:60] + ' …')} ({kind})"


def printable(text: str) -> str:
    """Text from outside for a message: what would steer a terminal, or is no character, is written out."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


# -- texts ------------------------------------------------------------------------------------------------------------
def _check_text(value: Any, key: str) -> None:
    if not isinstance(value, str):
        quoted = ""
        if isinstance(value, Number):
            quoted = f'. Write it as text: "{json.dumps(value) if isinstance(value, (bool, int, float)) else value}"'
        elif hasattr(value, "isoformat"):
            quoted = ". A reader took a text for a date; store the column as text"
        raise ConfigError(f"'{key}' must be text; got {shown(value)}{quoted}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"'{key}' holds half of a surrogate pair (\\u{ord(value[error.start]):04x}) at character {error.start}, "
            "which is no text; mend it where it was written"
        ) from error


def _check_texts(record: Mapping[str, Any], shape: str) -> None:
    keys = next(keys for keys in SHAPES if keys[0] == shape)
    for key in keys:
        _check_text(record[key], key)
    if not any(record[key] for key in keys):
        raise ConfigError(f"nothing is to be learned where {' and '.join(map(repr, keys))} say nothing; leave it out")
    if record.get("tools"):
        raise ConfigError("'tools' need a chat, whose template writes them out; got them beside texts. Give 'messages'")


def _hint(value: Any) -> str:
    return ". A CSV file cannot hold lists; write JSON Lines" if isinstance(value, str) else ""


def _check_choices(choices: Any, answer: Any) -> None:
    if not isinstance(choices, (list, tuple)):
        raise ConfigError(f"'choices' must be a list of texts; got {shown(choices)}{_hint(choices)}")
    for index, choice in enumerate(choices):
        _check_text(choice, f"choices[{index}]")
    fits = isinstance(answer, Integral) and not isinstance(answer, bool) and 0 <= int(answer) < len(choices)
    if choices and (not fits or "" in choices):
        raise ConfigError(
            f"'answer' must be the index of one of {len(choices)} 'choices' from 0, none of them empty; got "
            f"{shown(answer)} for {shown(choices)}"
        )


# -- chats ------------------------------------------------------------------------------------------------------------
def _as_chat(record: dict[str, Any]) -> dict[str, Any]:
    """TRL's conversational prompt and completion as one chat; anything else as it is."""
    parts = {key: record.get(key) for key in SHAPES[0]}
    chats = [key for key, part in parts.items() if isinstance(part, (list, tuple))]
    if not chats or None in parts.values():
        return record
    if len(chats) == 1:
        raise ConfigError(
            f"'prompt' and 'completion' must both be texts or both chats; got a list as '{chats[0]}' and "
            f"{shown(next(part for key, part in parts.items() if key not in chats))}"
        )
    prompt, completion = (list(part) for part in parts.values() if part is not None)
    for key, part in (("prompt", prompt), ("completion", completion)):
        _check_turns(part, key)
    if prompt and prompt[-1]["role"] == "assistant":
        raise ConfigError("'prompt' ends in an assistant's turn, and 'completion' cannot go on within it; join the two")
    if not any(carries_loss(message) for message in completion):
        raise ConfigError("'completion' has no turn of the assistant's, so there is nothing to learn")
    asked = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in prompt]
    rest = {key: value for key, value in record.items() if key not in (*parts, "messages")}
    return {"messages": [*asked, *completion], **rest}


def _check_chat(record: dict[str, Any]) -> None:
    """Checks a chat, and parses what its template gets besides where that is JSON."""
    messages = record["messages"]
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ConfigError(f"'messages' must be a list of turns, at least one; got {shown(messages)}{_hint(messages)}")
    if advice := remedy({"messages": messages}):
        raise ConfigError(f"'messages' must be turns with 'role' and 'content'. Remedy: {advice}")
    _check_turns(messages, "messages")
    if not any(carries_loss(message) for message in messages):
        roles = ", ".join(sorted({repr(message["role"]) for message in messages}))
        raise ConfigError(f"'messages' have no turn of the role 'assistant' to learn (roles: {roles})")
    for key in _UNSEEN:
        if record.get(key):
            raise ConfigError(f"'{key}' would not reach the model, which reads texts; got {shown(record[key])}")
    for key in _TEMPLATE:
        if record.get(key) is not None:
            record[key] = _template_data(record[key], key)
        else:
            record.pop(key, None)


def _check_turns(messages: Any, key: str) -> None:
    for index, message in enumerate(messages):
        place = f"{key}[{index}]"
        if not isinstance(message, Mapping):
            raise ConfigError(f"'{place}' must be an object with 'role' and 'content'; got {shown(message)}")
        _check_text(message.get("role"), f"{place}.role")
        _check_content(message, place)
        if message.get("weight") not in (None, 0, 1) or isinstance(message.get("weight"), bool):
            raise ConfigError(f"'{place}.weight' must be 0 (not learned) or 1; got {shown(message['weight'])}")
        for name, value in message.items():
            if name != "content":
                _check_json(value, f"{place}.{printable(str(name))}")
        if message.get("tool_calls") is not None:
            _check_calls(message["tool_calls"], f"{place}.tool_calls")


def _check_content(message: Mapping[str, Any], place: str) -> None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return  # the call is what is said
    if not isinstance(content, (list, tuple)):
        _check_text(content, f"{place}.content")
        return
    for index, part in enumerate(content):
        name = f"{place}.content[{index}]"
        if not isinstance(part, Mapping) or part.get("type") != "text":
            raise ConfigError(f"'{name}' must be a part of the type text; got {shown(part)}. Nothing else is read")
        _check_text(part.get("text"), f"{name}.text")


def _check_calls(calls: Any, place: str) -> None:
    if not isinstance(calls, (list, tuple)):
        raise ConfigError(f"'{place}' must be a list of objects; got {shown(calls)}")
    for index, call in enumerate(calls):
        inner = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise ConfigError(f"'{place}[{index}]' must have a function with a 'name'; got {shown(call)}")
        arguments = inner.get("arguments")
        if arguments is not None and not isinstance(arguments, (str, Mapping)):
            raise ConfigError(
                f"'{place}[{index}]' must have 'arguments' that are an object, or JSON as text; got {shown(arguments)}"
            )


def _template_data(given: Any, key: str) -> Any:
    """What a chat's template gets besides the messages, not as JSON any more: objects in a list, or an object."""
    if isinstance(given, str):  # as TRL takes tools, since a table of Arrow's merges objects
        try:
            given = json.loads(given)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"'{key}' must be {_TEMPLATE[key]}, or that as JSON; got {shown(given)}") from error
    if isinstance(given, (list, tuple)) and key != "chat_template_kwargs":
        fits = all(isinstance(entry, Mapping) for entry in given)
        given = list(given)
    else:
        fits = isinstance(given, Mapping) and key == "chat_template_kwargs"
    if not fits:
        raise ConfigError(f"'{key}' must be {_TEMPLATE[key]}; got {shown(given)}")
    _check_json(given, key)
    return given


def _check_json(value: Any, place: str) -> None:
    """That a template can write a value out as JSON: texts, finite numbers, lists and objects all the way down."""
    if isinstance(value, str):
        _check_text(value, place)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_text(key, f"{place}, a key")
            _check_json(item, f"{place}.{printable(key)}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check_json(item, f"{place}[{index}]")
    elif value is not None and (not isinstance(value, (bool, int, float)) or not math.isfinite(value)):
        raise ConfigError(f"'{place}' must be a value of JSON; got {shown(value)}")
