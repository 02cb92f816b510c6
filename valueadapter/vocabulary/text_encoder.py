"""How a tokenizer splits plain text, at its start or in its midst; knows nothing of other vocabularies or of models.

A tokenizer's own `encode` turns `<|im_start|>` typed by a user into a control token, and may put a space before
everything it is given. Neither must happen to text that goes on.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from tokenizers import Tokenizer

from valueadapter.vocabulary.byte_view import Vocabulary, is_byte_level
from valueadapter.vocabulary.stable_cuts import barriers, edges_of_pieces, places

_META = "\u2581"
_MARGIN = 24
"""Characters at the end of a text that later text may still join, besides runs without white space."""
_MARK = "\ufdd0"
"""Begins the names that control tokens bear while text is encoded, unless the text holds it."""


class TextEncoder:
    """The canonical tokens of plain text.

    Args:
        tokenizer_json: the text of a fast tokenizer's `tokenizer.json`.

    Attributes:
        margin: characters at the end of a text that later text may still join.
        prefix: control tokens that the tokenizer puts before a text (beginning of sequence); often none.
        added: every token that was added to the tokenizer's model, by its name, longest first.
        controls: those of them that are control tokens.
        whole_words: names of added tokens that count only as whole words.
        unknown: the token of text that the tokenizer has no token for; None where there is none.
    """

    def __init__(self, tokenizer_json: str, vocabulary: Vocabulary) -> None:
        self._json = tokenizer_json
        state = json.loads(tokenizer_json)
        entries = sorted(state["added_tokens"], key=lambda entry: len(entry["content"]), reverse=True)
        self.added: dict[str, int] = {entry["content"]: entry["id"] for entry in entries}
        self.controls: dict[str, int] = {entry["content"]: entry["id"] for entry in entries if entry["special"]}
        self.whole_words = frozenset(entry["content"] for entry in entries if entry["single_word"])
        self.unknown = _unknown(state)
        start = _with_control_names(state, _MARK)
        middle = _without_prefix_space(start)
        self._same = start == middle
        self._made = {("start", _MARK): _made(start)}
        self._made["middle", _MARK] = self._made["start", _MARK] if self._same else _made(middle)
        self._barriers = barriers(middle, self._made["middle", _MARK])
        self._splits = is_byte_level(state) or _splits_words(self._made["middle", _MARK])
        self._pairs = frozenset() if self._splits else _pairs_inside_tokens(vocabulary)
        longest = max((len(entry["content"]) for entry in entries if not entry["special"]), default=0)
        self.margin = max(_MARGIN, longest)
        self.prefix = _prefix(self._made["start", _MARK])

    @functools.cached_property
    def spelled(self) -> re.Pattern[str]:
        """Finds the names of added tokens in a text, the longest first."""
        return _any_of(self.added, whole=frozenset())

    @functools.cached_property
    def written(self) -> re.Pattern[str]:
        """As `spelled`, without those that count only as whole words and are none."""
        return _any_of(self.added, whole=self.whole_words)

    def encode(self, text: str, *, start: bool, after: int | None = None) -> list[int]:
        """Ids of plain text, never a control token.

        Args:
            text: any text.
            start: whether it opens the sequence; False where text goes on.
            after: the control token that it follows at once, where it does; then `start` does not matter.
        """
        if after is not None:
            return self.encode_parts([after, text])[1:]
        tokenizer = self._tokenizer("start" if start else "middle", text)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_parts(self, parts: Sequence[str | int]) -> list[int]:
        """Ids of one sequence of plain texts and control tokens, as the tokenizer itself gives them.

        A control token may swallow white space beside it, or have a space put behind it; what a text spells out stays
        text.

        Args:
            parts: texts, and ids of control tokens.
        """
        plain = "".join(part for part in parts if isinstance(part, str))
        mark = _mark(plain)
        text = "".join(part if isinstance(part, str) else _name(mark, part) for part in parts)
        ids: list[int] = self._tokenizer("parts", plain).encode(text, add_special_tokens=False).ids
        return ids

    def encode_pieces(self, pieces: Sequence[str]) -> list[list[int]]:
        """Ids of many pieces of text, each as it would be in the midst of a text."""
        tokenizer = self._tokenizer("middle", "".join(pieces))
        encoded = tokenizer.encode_batch_fast(list(pieces), add_special_tokens=False)
        return [one.ids for one in encoded]

    def settled(self, text: str, ids: Sequence[int], *, start: bool, after: int | None = None) -> tuple[int, int]:
        """How much at the front of `text` no text that follows can change.

        Args:
            text: what was encoded.
            ids: its tokens.
            start: as it was encoded.
            after: as it was encoded.

        Returns:
            Number of characters, and number of ids; (0, 0) where nothing is settled yet. A cut is taken only where
            both sides, encoded apart, give `ids`.
        """
        edges: set[int] | None = None
        middle = self._tokenizer("middle", text)
        for cut in places(text, self._barriers, self.margin):
            if self._splits:
                edges = edges_of_pieces(middle, text) if edges is None else edges
                if cut not in edges:
                    continue
            elif not self._apart(middle, text[:cut], text[cut:]):
                continue
            head = self.encode(text[:cut], start=start, after=after)
            if head + self.encode(text[cut:], start=False) == list(ids):
                return cut, len(head)
        return 0, 0

    def _apart(self, tokenizer: Any, before: str, behind: str) -> bool:
        """Whether no token can reach from the one text into the other, where words are not encoded apart."""
        if tokenizer.normalizer is not None:
            normalise = tokenizer.normalizer.normalize_str
            whole, before, behind = normalise(before + behind), normalise(before), normalise(behind)
            if before + behind != whole or not before or not behind:
                return False
        return (before[-1].replace(_META, " "), behind[0].replace(_META, " ")) not in self._pairs

    def _tokenizer(self, kind: Literal["start", "middle", "parts"], text: str) -> Any:
        """The tokenizer for a text, in which control tokens bear names that this text does not hold.

        Args:
            kind: for text that opens a sequence, for text that goes on, or for texts among control tokens, which then
                are found by those names.
            text: what is to be encoded.
        """
        mark = _mark(text)
        if kind != "parts" and self._same:
            kind = "start"
        found = self._made.get((kind, mark))
        if found is None:
            state = _with_control_names(json.loads(self._json), mark)
            found = _made(_without_prefix_space(state) if kind == "middle" else state, parts=kind == "parts")
            usual = {key: value for key, value in self._made.items() if key[1] == _MARK}
            self._made = {**usual, (kind, mark): found}  # and the last unusual one
        return found


def unused_characters(text: str) -> Iterator[str]:
    """Characters that a text does not hold: those that Unicode keeps free for programs, and then any other."""
    held = set(text)
    for code in itertools.chain(range(0xFDD0, 0xFDF0), range(0xF0000, 0xFFFFE), range(0x1, 0xD800)):
        if chr(code) not in held:
            yield chr(code)


def _any_of(names: Iterable[str], *, whole: frozenset[str]) -> re.Pattern[str]:
    """Finds any of some names, the first that fits; those of `whole` only apart from letters and digits."""
    by_first: dict[str, list[str]] = {}
    for name in names:
        rest = re.escape(name[1:])
        pattern = rf"(?<!\w{re.escape(name[0])}){rest}(?!\w)" if name in whole else rest
        by_first.setdefault(name[0], []).append(pattern)
    return re.compile("|".join(f"{re.escape(c)}(?:{'|'.join(rest)})" for c, rest in by_first.items()) or "(?!)")


def _mark(text: str) -> str:
    """A character that a text does not hold, nearly always the same one."""
    return _MARK if _MARK not in text else next(unused_characters(text))


def _made(state: dict[str, Any], *, parts: bool = False) -> Any:
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = not parts  # control tokens that are spelled out are text
    return tokenizer


def _name(mark: str, token: int) -> str:
    return f"{mark}{token};"


def _with_control_names(state: dict[str, Any], mark: str) -> dict[str, Any]:
    """Control tokens under names that no text without the mark holds, in the tokenizer and in its model."""
    names = {e["content"]: _name(mark, e["id"]) for e in state["added_tokens"] if e["special"]}
    model, vocab = dict(state["model"]), state["model"]["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model["type"] == "BPE" and not names.keys().isdisjoint(vocab):
        pairs = (tuple(pair.split(" ")) if isinstance(pair, str) else pair for pair in model["merges"])
        model["merges"] = [
            [left, right]
            for left, right in pairs
            if left not in names and right not in names and left + right not in names
        ]
    added = [
        {**entry, "content": names[entry["content"]], "normalized": False} if entry["special"] else entry
        for entry in state["added_tokens"]
    ]
    return {**state, "model": model, "added_tokens": added}


def _unknown(state: dict[str, Any]) -> int | None:
    """The id of the token for unknown text."""
    model = state["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    vocab = model["vocab"]
    found = vocab.get(model.get("unk_token")) if isinstance(vocab, dict) else None
    return None if found is None else int(found)


def _without_prefix_space(state: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer of text that goes on: nothing is put before it."""
    return {
        **state,
        "normalizer": _edited(state.get("normalizer"), "normalizers"),
        "pre_tokenizer": _edited(state.get("pre_tokenizer"), "pretokenizers"),
    }


def _edited(step: dict[str, Any] | None, parts: str) -> dict[str, Any] | None:
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        kept = [edited for part in step[parts] if (edited := _edited(part, parts)) is not None]
        return {**step, parts: kept} if kept else None
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return step


def _splits_words(tokenizer: Any) -> bool:
    """Whether words are encoded apart (Gemma's pre-tokenizer, for one, looks for spaces that are gone by then)."""
    if tokenizer.pre_tokenizer is None:
        return False
    text = "two words"
    if tokenizer.normalizer:
        text = tokenizer.normalizer.normalize_str(text)
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(text)) > 1


def _pairs_inside_tokens(vocabulary: Vocabulary) -> frozenset[tuple[str, str]]:
    """Neighbouring characters inside any token; between two others no merge can ever reach across."""
    pairs: set[tuple[str, str]] = set()
    for token, data in vocabulary.tokens.items():
        if token not in vocabulary.special:
            pairs.update(itertools.pairwise(data.decode("utf-8", "ignore")))
    return frozenset(pairs)


def _prefix(tokenizer: Any) -> tuple[int, ...]:
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a").ids
    for begin in range(len(whole) - len(plain) + 1):
        if plain and whole[begin : begin + len(plain)] == plain:
            return tuple(whole[:begin])
    return ()
