"""The byte view of a tokenizer's vocabulary and its two fingerprints; knows nothing of models or artifacts.

Byte-level BPE spells bytes in the GPT-2 table, SentencePiece spells a space as `▁` and a lone byte as `<0xXX>`. Seen as
bytes, vocabularies of all kinds compare. Two fingerprints identify one: over (id, bytes, special), and over the ids of
fixed probe strings, since the first misses a changed normaliser or pre-tokenizer.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from valueadapter.config import VocabularySpec
from valueadapter.errors import AlignmentError

# Strings whose ids reveal how a tokenizer behaves. Part of format version 1: changing one changes every fingerprint.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    "line one\r\nline two\n\n\ttabbed   spaced  ",
    " leading space",
    "Cafe\u0301 caf\u00e9 \ufb01ne \u2460",
    "12345 3.14159 1,000,000",
    "def f(x):\n    return x ** 2  # comment",
    "\u6771\u4eac\u306f\u65e5\u672c \u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947",
    "\U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1f7",
    "<|im_start|>user<|im_end|><|endoftext|><s></s><bos><eos>[INST]",
    "A\u00a0B\u200bC",
)


@functools.cache
def byte_of_character() -> dict[str, int]:
    """The inverse of GPT-2's byte table: printable bytes stand for themselves, the others for U+0100 and up."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


@dataclass(frozen=True)
class Vocabulary:
    """What every token id of a tokenizer stands for.

    Attributes:
        tokens: id -> its bytes (a control token's are those of its name).
        special: ids of control tokens.
        behaviour_fingerprint: SHA-256 over the ids of the probe strings.
    """

    tokens: dict[int, bytes]
    special: frozenset[int]
    behaviour_fingerprint: str

    @classmethod
    def from_tokenizer_json(cls, text: str) -> Vocabulary:
        """Reads a fast tokenizer's `tokenizer.json`.

        Raises:
            AlignmentError: not a tokenizer that the `tokenizers` library can load.
        """
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the Rust library raises bare `Exception`
            raise AlignmentError(f"this is not a tokenizer.json that tokenizers can load: {error}") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        state = json.loads(text)
        tokens = _model_tokens(state)
        special = set()
        for added in state["added_tokens"]:
            tokens[added["id"]] = added["content"].encode()
            if added["special"]:
                special.add(added["id"])
        return cls(tokens, frozenset(special), _behaviour(tokenizer))

    def byte_fingerprint(self, width: int) -> str:
        """SHA-256 over (id, bytes, special) of the tokens with an id below `width`; 64 hex digits."""
        digest = hashlib.sha256()
        for token in sorted(self.below(width)):
            data = self.tokens[token]
            digest.update(b"%d:%d:%d:" % (token, token in self.special, len(data)) + data)
        return digest.hexdigest()

    def below(self, width: int) -> set[int]:
        """The token ids that a model with `width` columns of logits can emit."""
        return {token for token in self.tokens if token < width}

    def spec(self, width: int) -> VocabularySpec:
        """The record that goes into config.json, for value logits of `width` columns."""
        return VocabularySpec(width, self.byte_fingerprint(width), self.behaviour_fingerprint)

    def differences(self, width: int, other: Vocabulary, other_width: int) -> list[str]:
        """What keeps `other` from being the same vocabulary, a line each; empty if it is the same.

        Padded widths may differ. Tokens count only where their model has a row for them.
        """
        mine, theirs = self.below(width), other.below(other_width)
        lines = []
        if len(mine) != len(theirs):
            lines.append(f"number of tokens: {len(mine):,} against {len(theirs):,}")
        changed = [t for t in sorted(mine & theirs) if self._entry(t) != other._entry(t)]
        changed += sorted(mine ^ theirs)
        if changed:
            shown = "; ".join(
                f"id {t}: {self._show(t, width)} against {other._show(t, other_width)}" for t in changed[:3]
            )
            lines.append(f"{len(changed):,} token ids mean something else ({shown})")
        elif self.behaviour_fingerprint != other.behaviour_fingerprint:
            lines.append("the tokens are the same, but text is split in another way (normaliser or pre-tokenizer)")
        return lines

    def _entry(self, token: int) -> tuple[bytes, bool]:
        return self.tokens[token], token in self.special

    def _show(self, token: int, width: int) -> str:
        if token not in self.tokens or token >= width:
            return "nothing"
        text = repr(self.tokens[token].decode("utf-8", "backslashreplace"))
        return f"{text} (control)" if token in self.special else text


def _model_tokens(state: dict[str, Any]) -> dict[int, bytes]:
    vocab = state["model"]["vocab"]
    items = vocab.items() if isinstance(vocab, dict) else ((entry[0], index) for index, entry in enumerate(vocab))
    if '"ByteLevel"' in json.dumps([state.get("pre_tokenizer"), state.get("decoder")]):
        return {index: _byte_level(text) for text, index in items}
    fallback = bool(state["model"].get("byte_fallback"))
    return {index: _sentencepiece(text, fallback) for text, index in items}


@functools.cache
def _latin_1_of_character() -> dict[int, int]:
    """The byte table for `str.translate`; what is not in the table goes where Latin-1 cannot follow."""
    outside = dict.fromkeys(range(256), 65535)
    return outside | {ord(character): byte for character, byte in byte_of_character().items()}


def _byte_level(text: str) -> bytes:
    try:
        return text.translate(_latin_1_of_character()).encode("latin-1")
    except UnicodeEncodeError:  # a token that does not spell bytes
        return text.encode()


def _sentencepiece(text: str, byte_fallback: bool) -> bytes:
    if byte_fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode()


def _behaviour(tokenizer: Any) -> str:
    ids = [tokenizer.encode(probe, add_special_tokens=False).ids for probe in PROBES]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
