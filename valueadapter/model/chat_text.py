"""A chat as a network's ids: its tokenizer's own of the rendered text, and no control token that a text spells out.

The template renders the chat with a stand-in for the first character of every control token that its texts spell out.
So what the rendering still holds of control tokens is the template's; the stand-ins are taken back before anything is
encoded. A stand-in is a character that occurs nowhere in chat or template, and takes the place of one character, so
that templates may cut, strip and count as ever. Knows no models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from valueadapter.demonstrations.messages import normalised, render
from valueadapter.vocabulary.text_encoder import TextEncoder, unused_characters

FROM_OUTSIDE = ("tools", "documents")
"""Template arguments that hold texts, as messages do; others are for the program to choose."""
_GENERATION, _CONTINUE = "add_generation_prompt", "continue_final_message"


class ReadChat(NamedTuple):
    """A rendered chat as a network reads it."""

    ids: list[int]
    open_text: str
    """What stands behind the last control token."""
    after: int | None
    """That control token; None where there is none."""


def rendered(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any]
) -> str:
    """A chat as text, up to where an answer begins.

    Args:
        messages: one conversation.
        tokenizer: whose template it is.
        arguments: for the template; `add_generation_prompt` and `continue_final_message` as in `apply_chat_template`.

    Raises:
        ConfigError: as `messages.render`.
    """
    generation = bool(arguments.get(_GENERATION, not arguments.get(_CONTINUE)))
    rest = {key: value for key, value in arguments.items() if key != _GENERATION and (value or key != _CONTINUE)}
    return render(messages, tokenizer, generation=generation, arguments=rest)


def read_chat(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    encoder: TextEncoder,
    arguments: Mapping[str, Any],
) -> ReadChat:
    """A chat by a network's own template.

    Args:
        messages: one conversation.
        tokenizer: the network's tokenizer.
        encoder: how it splits plain text.
        arguments: as in `rendered`.

    Raises:
        ConfigError: as `rendered`.
    """
    chat = normalised(messages, tokenizer, arguments=arguments)
    hidden = _Hidden(encoder, [chat, arguments, tokenizer.chat_template])
    chat = [{key: text if key == "role" else hidden.hide(text) for key, text in turn.items()} for turn in chat]
    given = {key: hidden.hide(value) if key in FROM_OUTSIDE else value for key, value in arguments.items()}
    parts = hidden.parts(rendered(chat, tokenizer, given))
    names = {token: name for name, token in encoder.controls.items()}
    written = [part for part in parts if isinstance(part, int)]
    text = "".join(part if isinstance(part, str) else names[part] for part in parts)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = sum(token in names and (token != encoder.unknown or token in written) for token in ids)
    unsure = not encoder.whole_words.isdisjoint(encoder.controls)  # what a word is, only the tokenizer knows
    if hidden.stand_ins or (found > len(written) and not unsure):  # it takes some of the text for control tokens
        ids = encoder.encode_parts(parts)
    end = parts[-1] if parts else ""
    return ReadChat(ids, end if isinstance(end, str) else "", written[-1] if written else None)


class _Hidden:
    """Control tokens that texts spell out, behind stand-ins.

    Args:
        encoder: of the tokenizer whose control tokens these are.
        everything: all that the rendering may hold, in which no stand-in may occur.
    """

    def __init__(self, encoder: TextEncoder, everything: Any) -> None:
        self._encoder, self._everything = encoder, everything
        self.stand_ins: dict[str, str] = {}

    def hide(self, value: Any) -> Any:
        """The same texts, lists and objects with stand-ins."""
        if isinstance(value, str):
            while (text := self._encoder.spelled.sub(lambda match: self._hidden(match.group()), value)) != value:
                value = text
            return value
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(one) for key, one in value.items()}
        return [self.hide(one) for one in value] if isinstance(value, (list, tuple)) else value

    def _hidden(self, name: str) -> str:
        if name not in self._encoder.controls:
            return name
        if name[0] not in self.stand_ins:
            self.stand_ins[name[0]] = self._unused()
        return self.stand_ins[name[0]] + name[1:]

    def _unused(self) -> str:
        """A character that occurs nowhere, and is nowhere spelled out as JSON spells it."""
        text = json.dumps(self._everything, ensure_ascii=False, default=str)
        used = self.stand_ins.values()
        return next(c for c in unused_characters(text) if c not in used and _as_json(c) not in text)

    def parts(self, text: str) -> list[str | int]:
        """A rendering as texts and the control tokens that the template wrote."""
        parts: list[str | int] = []
        end = 0
        for match in self._encoder.written.finditer(text):
            if (token := self._encoder.controls.get(match.group())) is not None:
                parts += [self._shown(text[end : match.start()]), token]
                end = match.end()
        return [part for part in [*parts, self._shown(text[end:])] if part != ""]

    def _shown(self, text: str) -> str:
        for first, stand_in in self.stand_ins.items():
            text = text.replace(stand_in, first).replace(_as_json(stand_in), _as_json(first))
        return text


def _as_json(character: str) -> str:
    return json.dumps(character)[1:-1]
