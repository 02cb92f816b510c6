"""Keeps the value network's text in step with the base's: base tokens in, canonical value tokens out.

Knows bytes, text and ids; knows nothing of models, caches or logits. A base token may complete a character, or make the
value tokenizer split the last few characters in another way. So each push says how many of the value tokens are to be
taken back before the new ones. After every push the tokens are exactly those of the whole text encoded at once; a
context that only appends is another one than the network was trained on (in code up to 21 % of its tokens).
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from valueadapter.vocabulary.byte_view import Vocabulary
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary
from valueadapter.vocabulary.text_encoder import TextEncoder


@dataclass(frozen=True)
class RetokenizingRules:
    """What a value network reads where the base reads its tokens; one for all texts.

    Attributes:
        data: bytes of each base token; empty for control tokens and rows without token.
        controls: base control tokens that the network reads as one of its own: the ends of texts.
        encoder: how the value tokenizer splits text.
        opens_with_space: whether the base's tokens of a text begin with a space that is not in the text.
        controls_open_with_space: the same of text that stands behind one of the base's control tokens.
        base_controls: the base's control tokens.
        value: the value vocabulary.
        width: columns of the value logits.
    """

    data: Sequence[bytes]
    controls: Mapping[int, int]
    encoder: TextEncoder
    opens_with_space: bool
    value: Vocabulary
    width: int
    controls_open_with_space: bool = False
    base_controls: frozenset[int] = frozenset()

    @classmethod
    def between(cls, value: ModelVocabulary, base: ModelVocabulary) -> RetokenizingRules:
        """Puts together what is needed to read a base's tokens.

        Args:
            value: the value vocabulary.
            base: the base's.
        """
        vocabulary = base.vocabulary
        data = [b""] * max(base.width, max(vocabulary.tokens, default=0) + 1)
        for token, spelled in vocabulary.tokens.items():
            if token not in vocabulary.special:
                data[token] = spelled
        opening = b"".join(data[token] for token in vocabulary.probe_ids[0][:1]) if vocabulary.probe_ids else b""
        opens = opening.startswith(b" ")
        control = min(vocabulary.special, default=None)
        behind = base.encoder.encode("a", start=False, after=control) if opens and control is not None else []
        controls = dict.fromkeys(base.stops, value.eos) if value.eos is not None else {}
        return cls(
            data,
            controls,
            value.encoder,
            opens,
            value.vocabulary,
            value.width,
            controls_open_with_space=b"".join(data[token] for token in behind[:1]).startswith(b" "),
            base_controls=vocabulary.special,
        )

    def bytes_of(self, value_ids: Sequence[int]) -> bytes:
        """The bytes of value tokens; none of control tokens."""
        ordinary = (token for token in value_ids if token not in self.value.special)
        return b"".join(self.value.tokens.get(token, b"") for token in ordinary)


class _State(NamedTuple):
    """All that a push changes, except ids before the sync point, which it never touches."""

    decoder: tuple[bytes, int]
    tail: str
    sync: int
    ids: tuple[int, ...]
    at_start: bool
    after: int | None
    opened: bool


class Retokenizer:
    """The text of one row: what the base has read, and the value tokens of it.

    Args:
        reading: what the network reads for each of the base's tokens.
        lead: value tokens that stand before every text, its beginning of sequence among them; none by default.

    Attributes:
        ids: canonical value tokens of the text so far, the value tokenizer's own beginning of sequence first.
            An incomplete UTF-8 character at the end is held back.
        base_ids: the base tokens pushed so far.
        waiting: whether they are the beginning of a prompt that base and network read each in its own form, of which
            nothing is read before its end has come.
    """

    def __init__(self, reading: RetokenizingRules, lead: Sequence[int] = ()) -> None:
        self.reading, self._lead = reading, lead
        self._clear()

    def _clear(self) -> None:
        self.ids: list[int] = list(self._lead or self.reading.encoder.prefix)
        self.base_ids: list[int] = []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._tail = ""
        self._sync = len(self.ids)
        self._at_start = True  # the tail is the beginning of the text
        self._after: int | None = None  # the control token that the tail follows at once
        self._opened = False  # something was read, be it only the space that is not in the text
        self._prompt = 0  # base tokens of a prompt that was not read as text
        self.waiting = False  # the base tokens are of a prompt whose end is to come, and nothing of it was read
        self._undo: list[tuple[int, _State]] = []

    def push(self, base_ids: Sequence[int]) -> tuple[int, list[int]]:
        """Reads more of the text.

        Args:
            base_ids: the next tokens of the base; padding left out.

        Returns:
            How many of `ids` were taken back, and the value tokens that came in their place and after them.
        """
        if self.waiting:  # what was waited for does not come, and it is text after all
            base_ids = [*self.base_ids, *base_ids]
            self._clear()
        before = self._begin(base_ids)
        # bytes are gathered up to a control token, since one character may lie in several of the base's tokens
        unchanged, data = before, bytearray()
        for token in base_ids:
            control = self.reading.controls.get(token)
            if control is None:
                data += self.reading.data[token] if token < len(self.reading.data) else b""
            else:
                unchanged = min(unchanged, self._read(bytes(data), final=True))
                data.clear()
                self._append([control])
                self._follow(control)
        unchanged = min(unchanged, self._read(bytes(data), final=False))
        return before - unchanged, self.ids[unchanged:]

    def push_prompt(
        self, base_ids: Sequence[int], value_ids: Sequence[int], *, open_text: str = "", after: int | None = None
    ) -> tuple[int, list[int]]:
        """Takes a prompt that base and network read each in its own form (a chat, by each one's template).

        Args:
            base_ids: the base's tokens of the whole text so far, in place of all that was pushed.
            value_ids: what the network reads instead.
            open_text: the text at the prompt's end, behind its last control token, which what follows may still join.
            after: that control token; None where the prompt has none.

        Returns:
            As `push`.
        """
        old = self.ids
        self._clear()
        self.ids, self._sync = list(self._lead), len(self._lead)
        start = list(self.reading.encoder.prefix)
        if self._lead and list(value_ids[: len(start)]) == start:
            value_ids = value_ids[len(start) :]
        self._begin(base_ids)
        self._append(value_ids)
        self._reopen(value_ids, open_text, after)
        self._opened = not (
            self.reading.controls_open_with_space and self.reading.base_controls.issuperset(base_ids[-1:])
        )
        self._prompt = len(base_ids)
        unchanged = _common_prefix(old, self.ids)
        return len(old) - unchanged, self.ids[unchanged:]

    def wait(self, base_ids: Sequence[int]) -> tuple[int, list[int]]:
        """Takes the beginning of a prompt, in place of all that was pushed; its end is to come with `push_prompt`.

        Args:
            base_ids: the base's tokens so far.

        Returns:
            As `push`.
        """
        old = self.ids
        self._clear()
        self.base_ids, self.waiting = list(base_ids), bool(base_ids)
        unchanged = _common_prefix(old, self.ids)
        return len(old) - unchanged, self.ids[unchanged:]

    def pop(self, count: int) -> int:
        """Takes back the last base tokens. With a part of a prompt, which has no common places inside, all of it waits.

        Args:
            count: how many, at most as many as were pushed.

        Returns:
            How many ids at the front of `ids` are as they were.
        """
        left = len(self.base_ids) - count
        if count and (self.waiting or 0 < left < self._prompt):
            size = len(self.ids)
            rollback, _ = self.wait(self.base_ids[:left])
            return size - rollback
        unchanged = len(self.ids)
        while count > 0:
            pushed, state = self._undo.pop()
            sync, old = state.sync, self.ids
            self.ids = [*old[:sync], *state.ids]
            unchanged = min(unchanged, sync + _common_prefix(old[sync:], state.ids))
            self._decoder.setstate(state.decoder)
            self._tail, self._sync, self._opened = state.tail, sync, state.opened
            self._at_start, self._after = state.at_start, state.after
            # a push is undone as a whole: what it brought before the tokens to take back is pushed anew
            again = self.base_ids[len(self.base_ids) - pushed :][: max(0, pushed - count)]
            del self.base_ids[len(self.base_ids) - pushed :]
            count -= pushed
            if again:
                self.push(again)
        return unchanged

    @property
    def pending(self) -> bytes:
        """Bytes at the end of the text that are no character yet."""
        return bytes(self._decoder.getstate()[0])

    @property
    def open_ids(self) -> list[int]:
        """The last of `ids`, which text to come may still change."""
        return self.ids[self._sync :]

    def copy(self) -> Retokenizer:
        """A row that goes on from here independently, as beams do."""
        twin = Retokenizer(self.reading, self._lead)
        twin.ids, twin.base_ids, twin._undo = self.ids.copy(), self.base_ids.copy(), self._undo.copy()
        twin._decoder.setstate(self._decoder.getstate())
        twin._tail, twin._sync, twin._prompt, twin.waiting = self._tail, self._sync, self._prompt, self.waiting
        twin._at_start, twin._after, twin._opened = self._at_start, self._after, self._opened
        return twin

    # -- inside ------------------------------------------------------------------------------------------------------
    def _begin(self, base_ids: Sequence[int]) -> int:
        kept = tuple(self.ids[self._sync :])
        where = self._at_start, self._after, self._opened
        state = _State(self._decoder.getstate(), self._tail, self._sync, kept, *where)
        self._undo.append((len(base_ids), state))
        self.base_ids.extend(base_ids)
        return len(self.ids)

    def _append(self, value_ids: Sequence[int]) -> None:
        """Puts tokens after the text, which can no longer change it."""
        self.ids.extend(value_ids)
        self._sync, self._tail, self._opened = len(self.ids), "", True
        self._at_start, self._after = False, None

    def _follow(self, control: int) -> None:
        """Goes on behind a control token of the network's, which may swallow white space or have a space put after."""
        self._after, self._opened = control, not self.reading.controls_open_with_space

    def _reopen(self, value_ids: Sequence[int], text: str, after: int | None) -> None:
        """Makes the text at the end of a prompt one with what follows."""
        encoded = self.reading.encoder.encode(text, start=after is None, after=after)
        if [*([] if after is None else [after]), *encoded] == list(value_ids[-len(encoded) - (after is not None) :]):
            self._sync -= len(encoded)
            self._tail, self._at_start, self._after = text, after is None, after
            self._settle(encoded)

    def _read(self, data: bytes, *, final: bool) -> int:
        """Encodes the tail with more text at its end; returns how many leading ids are as before."""
        text = self._decoder.decode(data, final)
        if not text:
            return len(self.ids)
        if not self._opened and self.reading.opens_with_space:
            text = text.removeprefix(" ")
        self._opened = True
        self._tail += text
        old = self.ids[self._sync :]
        new = self.reading.encoder.encode(self._tail, start=self._at_start, after=self._after)
        unchanged = self._sync + _common_prefix(old, new)
        self.ids[self._sync :] = new
        self._settle(new)
        return unchanged

    def _settle(self, ids: Sequence[int]) -> None:
        """Moves the sync point on, so that a push stays cheap however long the text is."""
        encoder = self.reading.encoder
        if len(self._tail) > 4 * encoder.margin:
            characters, tokens = encoder.settled(self._tail, ids, start=self._at_start, after=self._after)
            if characters:
                self._tail, self._sync = self._tail[characters:], self._sync + tokens
                self._at_start, self._after = False, None


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    for index, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return index
    return min(len(a), len(b))
