"""How a tokenizer splits plain text, at its start or in its midst; knows nothing of other vocabularies or of models.

A tokenizer's own `encode` turns `<|im_start|>` typed by a user into a control token, and may put a space before
everything it is given. Neither must happen to text that goes on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from valueadapter.vocabulary import Vocabulary, is_byte_level

_MARGIN = 24
"""Characters at the end of a text that later text may still join (the longest pieces are shorter)."""


class TextEncoder:
    """The canonical tokens of plain text.

    Args:
        tokenizer_json: the text of a fast tokenizer's `tokenizer.json`.

    Attributes:
        margin: characters at the end of a text that later text may still join.
        prefix: control tokens that the tokenizer puts before a text (beginning of sequence); often none.
    """

    def __init__(self, tokenizer_json: str, vocabulary: Vocabulary) -> None:
        state = json.loads(tokenizer_json)
        state = _without_control_pieces(state)
        self._start = _plain(state)
        middle = _without_prefix_space(state)
        self._middle = self._start if middle == state else _plain(middle)
        self._byte_level = is_byte_level(state)
        self._splits = self._byte_level or _splits_words(self._middle)
        self._pairs = frozenset() if self._splits else _pairs_inside_tokens(vocabulary)
        longest = max((len(entry["content"]) for entry in state["added_tokens"] if not entry["special"]), default=0)
        self.margin = max(_MARGIN, longest)
        self.prefix = _prefix(self._start)

    def encode(self, text: str, *, start: bool) -> list[int]:
        """Ids of plain text, never a control token.

        Args:
            text: any text.
            start: whether it opens the sequence; False where text goes on.
        """
        ids: list[int] = (self._start if start else self._middle).encode(text, add_special_tokens=False).ids
        return ids

    def encode_pieces(self, pieces: Sequence[str]) -> list[list[int]]:
        """Ids of many pieces of text, each as it would be in the midst of a text."""
        encoded = self._middle.encode_batch_fast(list(pieces), add_special_tokens=False)
        return [one.ids for one in encoded]

    def settled(self, text: str, ids: Sequence[int], *, start: bool) -> tuple[int, int]:
        """How much at the front of `text` no text that follows can change.

        Args:
            text: what was encoded.
            ids: its tokens.
            start: as it was encoded.

        Returns:
            Number of characters, and number of ids; (0, 0) where nothing is settled yet. A cut is taken only where
            both sides, encoded apart, give `ids`.
        """
        for cut in reversed(self._boundaries(text)[:-1]):
            if not text[cut - 1].isspace() and text[cut:].strip():
                head = self.encode(text[:cut], start=start)
                if head + self.encode(text[cut:], start=False) == list(ids):
                    return cut, len(head)
        return 0, 0

    def _boundaries(self, text: str) -> list[int]:
        """Places between pieces that are encoded apart, rising, up to the margin before the end."""
        end = len(text) - self.margin
        if not self._splits:
            return [i for i in range(1, end) if (text[i - 1], text[i]) not in self._pairs]
        normalised = self._middle.normalizer.normalize_str(text) if self._middle.normalizer else text
        if len(normalised) != len(text):
            return []  # offsets would be those of another text
        pieces = self._middle.pre_tokenizer.pre_tokenize_str(normalised)
        return [begin for _, (begin, _) in pieces if 0 < begin < end]


def _plain(state: dict[str, Any]) -> Any:
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # control tokens that are spelled out are text
    return tokenizer


def _without_control_pieces(state: dict[str, Any]) -> dict[str, Any]:
    """Control tokens under names that no text holds, where the model itself would find them in a text."""
    if state["model"]["type"] == "BPE":
        return state  # no merge leads to them
    names = {entry["content"]: f"\ufdd0{entry['id']}" for entry in state["added_tokens"] if entry["special"]}
    model, vocab = dict(state["model"]), state["model"]["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): index for piece, index in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    added = [{**entry, "content": names.get(entry["content"], entry["content"])} for entry in state["added_tokens"]]
    return {**state, "model": model, "added_tokens": added}


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
