"""A base prefix as callers give it and the configuration holds it; knows no tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from valueadapter.demonstrations.messages import text_of
from valueadapter.errors import ConfigError


@dataclass(frozen=True)
class Message:
    """One turn of a chat."""

    role: str
    """`system`, `user` or `assistant`, as the base's chat template takes it."""
    content: str
    """What was said."""


Prefix = str | tuple[Message, ...]
"""What only the base reads, before the prompt: text, or turns of a chat."""


def prefix_text(prefix: Prefix) -> str:
    """A prefix for people to read: text as it is, a chat with one `role: content` for each turn."""
    return prefix if isinstance(prefix, str) else "\n".join(f"{turn.role}: {turn.content}" for turn in prefix)


def prefix_size(prefix: Prefix, stop_strings: Sequence[str] = ()) -> str:
    """How much a prefix holds: messages, or characters, and how many examples where it was written of examples.

    Args:
        prefix: of an adapter.
        stop_strings: of the same adapter; what stands between the examples of a text.
    """
    if not isinstance(prefix, str):
        return f"{len(prefix):,} chat messages, {sum(len(turn.content) for turn in prefix):,} characters"
    number = max((prefix.count(text) for text in stop_strings), default=0)
    return (f"{number:,} examples, " if number else "") + f"{len(prefix):,} characters"


class Recorded:
    """The type of `RECORDED`."""

    def __repr__(self) -> str:
        return "RECORDED"


RECORDED = Recorded()
"""As an argument: the prefix that the adapter brings."""


GivenPrefix = str | Sequence[Mapping[str, str]] | Sequence[Message] | None | Recorded
"""How callers give a prefix: text, chat messages, None for no prefix, or `RECORDED`."""


def as_prefix(given: str | Sequence[Mapping[str, str]] | Sequence[Message] | None) -> Prefix | None:
    """A prefix as the configuration holds it.

    Raises:
        ConfigError: neither text nor messages with `role` and `content`, or empty.
    """
    if given is None:
        return None
    if not given:
        raise ConfigError("the base prefix is empty; pass None for no prefix")
    if isinstance(given, str):
        return given
    messages = []
    for turn in given:
        if isinstance(turn, Mapping) and set(turn) == {"role", "content"}:
            turn = Message(str(turn["role"]), text_of(turn["content"]))
        if not isinstance(turn, Message):
            raise ConfigError(f"a base prefix is text or messages with 'role' and 'content'; got {turn!r}")
        messages.append(turn)
    return tuple(messages)
