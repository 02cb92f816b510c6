"""Chats as text by a tokenizer's own template; knows nothing of token ids, of losses or of models.

Everything that renders a chat comes through here, so that training, scoring and generation see the same text: no
content is empty, the texts of a content in parts are joined where the template would print its notation, and what a
template cannot do is an error that says so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from valueadapter.errors import ConfigError

_DEFAULT, _WITH_TOOLS = "default", "tool_use"
"""Names of chat templates that transformers takes by itself, the second where there are tools."""


def text_of(content: object) -> str:
    """The content of a message as text: none is empty, and the texts of one in parts are joined.

    Raises:
        ConfigError: it is no text, or has parts that are none.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and not isinstance(content, (bytes, bytearray)):
        return "".join(_text_of_part(part) for part in content)
    raise ConfigError(f"the content of a message must be text, or a list of parts of type text; got {_shown(content)}")


def _text_of_part(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = f"the type {part.get('type')!r}" if isinstance(part, Mapping) else _shown(part)
    raise ConfigError(
        f"a part of a message's content must be of type text, as {{'type': 'text', 'text': '…'}}; got {kind}. Nothing "
        "but text is read here; leave such parts out"
    )


def template_arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record gives its chat template besides the messages, for `render`: tools, documents, and TRL's others.

    Args:
        record: `tools` and `documents` as lists of objects or as JSON; `chat_template_kwargs` as an object or as JSON.

    Raises:
        ConfigError: these are something else.
    """
    found: dict[str, Any] = {}
    more = _parsed(record.get("chat_template_kwargs"), "chat_template_kwargs")
    if more:
        if not isinstance(more, Mapping) or not all(isinstance(key, str) for key in more):
            raise ConfigError(f"'chat_template_kwargs' must be an object; got {_shown(more)}")
        found |= more
    for key in ("tools", "documents"):
        if given := _parsed(record.get(key), key):
            if isinstance(given, str) or not isinstance(given, Sequence) or not all(map(_is_entry, given)):
                raise ConfigError(f"'{key}' must be a list of objects, or that as JSON; got {_shown(given)}")
            found[key] = list(given)
    return found


def _is_entry(given: object) -> bool:
    return isinstance(given, Mapping) or callable(given)  # a function is a tool, too


def _parsed(given: Any, key: str) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given) if given else None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"'{key}' is text that is no JSON ({error}); got {_shown(given)}") from error


def normalised(
    messages: Sequence[Mapping[str, Any]], tokenizer: Any, *, arguments: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """A conversation as the template reads it.

    Every message has a content; one in parts is left as it is only where the template takes parts, and is text
    otherwise. `weight`, which is for training, is gone; everything else is as given.

    Args:
        messages: one conversation.
        tokenizer: whose template it is.
        arguments: as in `render`.

    Raises:
        ConfigError: something that is no message, or a content that is no text.
    """
    texts: list[dict[str, Any]] = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ConfigError(f"a message must be {{'role': …, 'content': …}}; got {_shown(message)}")
        kept = {key: value for key, value in message.items() if key != "weight"}
        texts.append({**kept, "content": text_of(message.get("content"))})
    if all(message.get("content") is None or isinstance(message["content"], str) for message in messages):
        return texts
    given = [
        text if isinstance(message.get("content"), str | None) else {**text, "content": list(message["content"])}
        for text, message in zip(texts, messages, strict=True)
    ]
    return given if _takes_parts(given, texts, tokenizer, arguments or {}) else texts


def _takes_parts(
    given: Sequence[dict[str, Any]], texts: Sequence[dict[str, Any]], tokenizer: Any, arguments: Mapping[str, Any]
) -> bool:
    """Whether a template prints the texts of parts, and neither their notation nor nothing."""
    mark = "mark"
    while any(mark in message["content"] for message in texts):
        mark += "s"
    marked = [
        {**message, "content": [{"type": "text", "text": text_of([part]), mark: mark} for part in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in given
    ]
    try:
        printed = _rendered(marked, tokenizer, generation=False, arguments=arguments)
        joined = _rendered(texts, tokenizer, generation=False, arguments=arguments)
    except ConfigError:
        return False
    parts = [text_of([p]).strip() for m in given if isinstance(m["content"], list) for p in m["content"]]
    return mark not in printed and all(part in printed for part in parts if part in joined)


def render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Any,
    *,
    generation: bool,
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """A conversation as text.

    Args:
        messages: one conversation, as given or as `normalised` made it.
        tokenizer: whose chat template it is.
        generation: whether what opens an answer follows.
        arguments: for the template besides the messages: `tools`, `documents`, … (see `template_arguments`).

    Raises:
        ConfigError: there is no template, or none to choose among several; it refuses the conversation; it leaves out
            tools or documents.
    """
    arguments = {key: value for key, value in (arguments or {}).items() if value or key not in ("tools", "documents")}
    check_template(tokenizer, arguments)
    chat = normalised(messages, tokenizer, arguments=arguments)
    text = _rendered(chat, tokenizer, generation=generation, arguments=arguments)
    for key in ("tools", "documents"):
        rest = {name: value for name, value in arguments.items() if name != key}
        if key in arguments and _same(text, chat, tokenizer, generation, rest):
            raise ConfigError(
                f"the chat template renders the same with and without {key}, so that the model would never see them; "
                f"leave '{key}' out, or set a chat template that takes them"
            )
    return text


def _same(text: str, chat: Sequence[dict[str, Any]], tokenizer: Any, generation: bool, rest: Mapping[str, Any]) -> bool:
    try:
        return _rendered(chat, tokenizer, generation=generation, arguments=rest) == text
    except ConfigError:
        return False


def check_template(tokenizer: Any, arguments: Mapping[str, Any] | None = None) -> None:
    """That a tokenizer has one chat template to take.

    Raises:
        ConfigError: it has none, or several of other names than those that transformers takes by itself.
    """
    template = tokenizer.chat_template
    if not template:
        raise ConfigError(
            "a chat needs a chat template, and the tokenizer has none; take a tokenizer that was made for chats, or "
            "give text ('prompt' and 'completion' in records)"
        )
    arguments = arguments or {}
    if not isinstance(template, Mapping) or arguments.get("chat_template") is not None:
        return
    if _DEFAULT not in template and not (arguments.get("tools") and _WITH_TOOLS in template):
        names = ", ".join(sorted(map(repr, template)))
        raise ConfigError(
            f"the tokenizer has several chat templates ({names}), and none is called '{_DEFAULT}'. Choose one: "
            "tokenizer.chat_template = tokenizer.chat_template['…']"
        )


def _rendered(
    chat: Sequence[Mapping[str, Any]], tokenizer: Any, *, generation: bool, arguments: Mapping[str, Any]
) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=generation, **arguments)
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        turns = ", ".join(str(message["role"]) for message in chat) or "no turn"
        raise ConfigError(f"the chat template refuses a chat of {turns}: {error}") from error


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:80]} …" if len(text) > 80 else text
