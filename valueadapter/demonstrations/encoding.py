"""Token ids of prompts, responses and chats, for whoever trains, scores or generates; knows nothing of records.

    prompt    what the tokenizer makes of the text that opens a sequence, without what it puts at an end
    response  the tokens that the text has after the prompt's: no space and no control token comes between

so that a model answers exactly the ids that it was trained and scored behind.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from valueadapter.demonstrations.messages import normalised, render
from valueadapter.errors import ConfigError

_BETWEEN_WORDS = ("\n", *",.:;)(-=", *string.ascii_lowercase, "0")
_WITHIN_A_WORD = (*string.ascii_lowercase, *_BETWEEN_WORDS)
"""What may stand before a text to see how it goes on, where the prompt itself would join with it."""

_NO_QUESTION = ("system", "developer", "assistant")
"""Roles of turns that ask nothing."""


class _Tokens(NamedTuple):
    """Of a text, without what a tokenizer puts around it."""

    ids: list[int]
    begins: list[int]
    """Where in the text each token begins; empty where the tokenizer does not say."""

    def after(self, count: int, shift: int) -> _Tokens:
        """All but the first tokens, with places counted from elsewhere."""
        return _Tokens(self.ids[count:], [begin + shift for begin in self.begins[count:]])


def prompt_ids(prompt: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text that goes on: as the tokenizer opens a sequence with it, and with nothing at its end.

    Args:
        prompt: any text; control tokens that it spells out count as such.
        tokenizer: the model's.
    """
    return [*opening_ids(tokenizer), *_tokens(prompt, tokenizer).ids]


def response_ids(response: str, tokenizer: PreTrainedTokenizerBase, *, prompt: str) -> list[int]:
    """Ids of what follows a prompt's own ids, without the end of the sequence.

    They are the text's own, of prompt and response as one, wherever the prompt's ids stand at its beginning. Where a
    token would join the two, they are the ids of the response as it goes on in the midst of a text.

    Args:
        response: any text; empty gives none.
        tokenizer: the model's.
        prompt: what it follows; a rendered chat, too. Empty where the response opens the text.

    Raises:
        ConfigError: the tokenizer joins the response with whatever stands before it.
    """
    return _following(response, tokenizer, prompt).ids


def response_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, *, prompt: Sequence[int]) -> str:
    """What a response says behind a prompt, without control tokens: the space that it begins with, too.

    Args:
        ids: of the response.
        tokenizer: the model's.
        prompt: ids of the prompt. Decoded alone, many tokenizers take a space from the front of any text.
    """
    head, whole = (str(tokenizer.decode(part, skip_special_tokens=True)) for part in ([*prompt], [*prompt, *ids]))
    return whole[len(head) :] if whole.startswith(head) else str(tokenizer.decode([*ids], skip_special_tokens=True))


def ended(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A response with the token that ends the sequence, once.

    Raises:
        ConfigError: the tokenizer has none.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ConfigError(
            "the tokenizer has no end-of-sequence token, so a network cannot learn to stop; set eos_token"
        )
    return [*ids] if ids and ids[-1] == end else [*ids, int(end)]


def text_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], int]:
    """Ids of a whole text, opened as the tokenizer does and ended, each once, even where it spells that out itself.

    Returns:
        The ids; how many of the first are the tokenizer's opening.

    Raises:
        ConfigError: the tokenizer has no end-of-sequence token.
    """
    opening, own = opening_ids(tokenizer), _tokens(text, tokenizer).ids
    if own[: len(opening)] != opening:
        own = [*opening, *own]
    return ended(own, tokenizer), len(opening)


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The control tokens that the tokenizer puts before a text."""
    plain = _tokens("a", tokenizer).ids
    whole: list[int] = list(tokenizer("a")["input_ids"])
    for begin in range(len(whole) - len(plain) + 1):
        if plain and whole[begin : begin + len(plain)] == plain:
            return whole[:begin]
    return []


def chat_prompt(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    arguments: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of a chat that the model is to answer: as the template renders it, and with nothing put around it.

    Args:
        messages: one conversation.
        tokenizer: the model's.
        arguments: for the template, as in `messages.render`.

    Raises:
        ConfigError: as `messages.render`.
    """
    return _tokens(render(messages, tokenizer, generation=True, arguments=arguments), tokenizer).ids


def chat_row(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    learned: Sequence[bool],
    arguments: Mapping[str, Any] | None = None,
) -> tuple[list[int], list[bool]]:
    """Ids of a whole chat, and which of them are of answers, what ends each of these included.

    Up to where the last answer begins they are `chat_prompt`'s.

    Args:
        messages: one conversation.
        tokenizer: the model's.
        learned: of each message whether it is an answer that counts.
        arguments: for the template, as in `messages.render`.

    Raises:
        ConfigError: as `messages.render`, or where an answer stands in the chat is not known.
    """
    if not tokenizer.is_fast:
        raise ConfigError(
            "chats need a tokenizer that says where in a text each token stands, which only those of the tokenizers "
            f"library do; {type(tokenizer).__name__} does not. Give 'prompt' and 'completion'"
        )
    chat = normalised(messages, tokenizer, arguments=arguments)
    whole = render(chat, tokenizer, generation=False, arguments=arguments)
    answers = [index for index, is_learned in enumerate(learned) if is_learned]
    spans = [_span(chat, index, whole, tokenizer, arguments or {}) for index in answers]
    opened = whole[: spans[-1][0]] if spans else whole
    tokens = _tokens(opened, tokenizer)
    rest = _following(whole[len(opened) :], tokenizer, opened)
    ids, begins = [*tokens.ids, *rest.ids], [*tokens.begins, *rest.begins]
    return ids, [any(begin <= place < end for begin, end in spans) for place in begins]


def asks(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation has a turn that an answer can follow: neither instructions nor answers alone."""
    return any(message["role"] not in _NO_QUESTION for message in messages)


def _span(
    chat: list[dict[str, Any]],
    index: int,
    whole: str,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Mapping[str, Any],
) -> tuple[int, int]:
    """Where an answer begins in the text of its chat, and where what it adds to the text ends."""
    if not asks(chat[:index]):
        return _span_of_greeting(chat, index, whole, tokenizer, arguments)
    # the header that generation would start after is the prompt's, not the response's
    header = render(chat[:index], tokenizer, generation=True, arguments=arguments)
    answered = render(chat[: index + 1], tokenizer, generation=False, arguments=arguments)
    if not answered.startswith(header):
        raise ConfigError(
            "the chat template opens an answer with something else than it renders for a finished one (as templates "
            "of reasoning models do), so where the response begins is not known; use 'prompt' and 'completion'"
        )
    if not whole.startswith(answered):
        raise ConfigError(
            "the chat template renders earlier turns anew with each later one; use 'prompt'/'completion', or end the "
            "chat with the answer"
        )
    return len(header), len(answered)


def _span_of_greeting(
    chat: list[dict[str, Any]],
    index: int,
    whole: str,
    tokenizer: PreTrainedTokenizerBase,
    arguments: Mapping[str, Any],
) -> tuple[int, int]:
    """As `_span`, of what an assistant says before any question: many templates render no such beginning alone.

    Found by a mark in its place; the control token right behind is its end.
    """
    mark = "mark"
    while mark in whole:
        mark += "s"
    content: Any = mark if isinstance(chat[index]["content"], str) else [{"type": "text", "text": mark}]
    marked = [*chat[:index], {**chat[index], "content": content}, *chat[index + 1 :]]
    before, *behind = render(marked, tokenizer, generation=False, arguments=arguments).split(mark)
    if len(behind) != 1 or not whole.startswith(before) or not whole.endswith(behind[0]):
        raise ConfigError(
            f"what the assistant says in turn {index}, before any question, cannot be found in what the chat template "
            'renders; leave it out, or give it "weight": 0'
        )
    rest = behind[0].lstrip()
    names = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    closing = max((len(name) for name in names if rest.startswith(name)), default=0)
    return len(before), len(whole) - len(rest) + closing


def _following(text: str, tokenizer: PreTrainedTokenizerBase, before: str) -> _Tokens:
    """Tokens of a text that stands behind another, whose own tokens stay as they are; places count from the first."""
    if not text:
        return _Tokens([], [])
    within = before[-1:].isalnum() and text[0].isalnum()
    for earlier in (before, *(_WITHIN_A_WORD if within else _BETWEEN_WORDS)):
        head, both = _tokens(earlier, tokenizer), _tokens(earlier + text, tokenizer)
        count = len(head.ids)
        # an unknown token may have swallowed part of the text, and what leaves no token keeps nothing apart
        kept_apart = earlier == "" or (count > 0 and head.ids[-1] != tokenizer.unk_token_id)
        if both.ids[:count] == head.ids and (kept_apart or (earlier is before and count == 0)):
            return both.after(count, len(before) - len(earlier))
    raise ConfigError(
        f"the tokenizer joins {text[:40]!r} with whatever stands before it, so that it has no tokens of its own as a "
        "response; begin the response elsewhere"
    )


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> _Tokens:
    more = {"return_offsets_mapping": True} if tokenizer.is_fast else {}
    found: Any = tokenizer(text, add_special_tokens=False, **more)
    return _Tokens(list(found["input_ids"]), [begin for begin, _ in found.get("offset_mapping", ())])
