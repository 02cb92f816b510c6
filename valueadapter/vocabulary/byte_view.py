"""The byte view of a tokenizer's vocabulary and its two fingerprints; knows nothing of models or artifacts.

Byte-level BPE spells bytes in the GPT-2 table, SentencePiece spells a space as `▁` and a lone byte as `<0xXX>`,
WordPiece marks pieces that go on a word. Seen as bytes, vocabularies of all kinds compare. Two fingerprints
identify one: over (id, bytes, special), and over the ids of fixed probe strings, since the first misses a changed
normaliser or pre-tokenizer.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from valueadapter.errors import AlignmentError
from valueadapter.vocabulary.spec import VocabularySpec

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

_META = "\u2581"
_FALLBACK = re.compile("<0x[0-9A-F]{2}>")

STOP_NAMES = (
    "</s>",
    "<eos>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_turn>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|return|>",
    "<|end|>",
)
"""Names of control tokens that end a text or a turn in the families that matter."""


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
        added: ids that were added to the tokenizer's model, control tokens among them.
        fallbacks: ids of lone bytes (`<0x0A>`), which text becomes only where nothing else fits.
        probe_ids: the ids of the probe strings as plain text, where control tokens are not recognised.
        spells_text: whether the bytes of tokens, joined, are the text; without that there is no byte view.
    """

    tokens: dict[int, bytes]
    special: frozenset[int]
    behaviour_fingerprint: str
    added: frozenset[int] = frozenset()
    fallbacks: frozenset[int] = frozenset()
    probe_ids: tuple[tuple[int, ...], ...] = ()
    spells_text: bool = True

    @classmethod
    def from_tokenizer_json(cls, text: str, state: dict[str, Any] | None = None) -> Vocabulary:
        """Reads a fast tokenizer's `tokenizer.json`.

        Args:
            text: its content.
            state: the same parsed, where somebody has done so.

        Raises:
            AlignmentError: not a tokenizer that the `tokenizers` library can load.
        """
        try:
            return cls._read(text, json.loads(text) if state is None else state)
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # the Rust library raises bare `Exception`, and panics as none
            raise AlignmentError(
                f"this is not a tokenizer.json that tokenizers can load and use: {type(error).__name__}: {error}"
            ) from None

    @classmethod
    def _read(cls, text: str, state: dict[str, Any]) -> Vocabulary:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokens = _model_tokens(state)
        added = {entry["id"]: entry for entry in state["added_tokens"]}
        for token, entry in added.items():
            tokens[token] = _added(entry["content"], state)
        behaviour = _behaviour(tokenizer)
        tokenizer.encode_special_tokens = True
        return cls(
            tokens,
            frozenset(token for token, entry in added.items() if entry["special"]),
            behaviour,
            added=frozenset(added),
            fallbacks=frozenset(_fallbacks(state)),
            probe_ids=tuple(tuple(tokenizer.encode(probe, add_special_tokens=False).ids) for probe in PROBES),
            spells_text=_spells_text(state, tokenizer),
        )

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

    def by_bytes(self, width: int) -> dict[bytes, int]:
        """Bytes -> the ordinary token that stands for them, among ids below `width`.

        Where several do, the one that text becomes: an added token, which tokenizers look for first, before one of the
        model, and a fallback (`<0x0A>` beside a line break) last; then the lowest id.
        """
        order = sorted(self.ordinary(width), key=lambda t: (t in self.fallbacks, t not in self.added, t), reverse=True)
        return {self.tokens[token]: token for token in order}

    def ordinary(self, width: int) -> list[int]:
        """The ids below `width` that stand for text, rising: neither control tokens nor empty."""
        return [t for t in sorted(self.tokens) if t < width and t not in self.special and self.tokens[t]]

    def stops(self, eos_token: str | None) -> tuple[int, ...]:
        """The control tokens that end a text or a turn: the tokenizer's own, and those of well-known names."""
        names = {name.encode() for name in (*STOP_NAMES, eos_token or "")}
        return tuple(sorted(token for token in self.special if self.tokens[token] in names))


def is_byte_level(state: dict[str, Any]) -> bool:
    """Whether a parsed tokenizer.json spells bytes in GPT-2's table."""
    return '"ByteLevel"' in json.dumps([state.get("pre_tokenizer"), state.get("decoder")])


def _vocabulary_items(state: dict[str, Any]) -> Iterable[tuple[str, int]]:
    vocab = state["model"]["vocab"]
    return vocab.items() if isinstance(vocab, dict) else ((entry[0], index) for index, entry in enumerate(vocab))


def _model_tokens(state: dict[str, Any]) -> dict[int, bytes]:
    items = _vocabulary_items(state)
    if is_byte_level(state):
        return {index: _byte_level(text) for text, index in items}
    if state["model"]["type"] == "WordPiece":
        prefix = state["model"].get("continuing_subword_prefix", "##")
        return {index: _wordpiece(text, prefix) for text, index in items}
    fallback = bool(state["model"].get("byte_fallback"))
    return {index: _sentencepiece(text, fallback) for text, index in items}


def _added(content: str, state: dict[str, Any]) -> bytes:
    return (content if is_byte_level(state) else content.replace(_META, " ")).encode()


def _fallbacks(state: dict[str, Any]) -> set[int]:
    if is_byte_level(state) or not state["model"].get("byte_fallback"):
        return set()
    return {index for text, index in _vocabulary_items(state) if _FALLBACK.fullmatch(text)}


def _spells_text(state: dict[str, Any], tokenizer: Any) -> bool:
    """False for words without their spaces, and for BPE that marks the ends of words."""
    if state["model"].get("end_of_word_suffix"):
        return False
    if is_byte_level(state) or state["model"]["type"] == "WordPiece":
        return True
    words = [text.strip(_META) for text, _ in itertools.islice(_vocabulary_items(state), 2000)]
    words = [word for word in words if word.isalpha()][:20]
    tokens = _model_tokens(state)
    for word in words:
        ids = tokenizer.encode(f"{word} {word}", add_special_tokens=False).ids
        if ids and b" " not in b"".join(tokens.get(token, b"") for token in ids).strip():
            return False
    return True


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


def _wordpiece(text: str, prefix: str) -> bytes:
    """A piece that opens a word stands for the space before it, too."""
    return text.removeprefix(prefix).encode() if text.startswith(prefix) else f" {text}".encode()


def _sentencepiece(text: str, byte_fallback: bool) -> bytes:
    if byte_fallback and _FALLBACK.fullmatch(text):
        return bytes([int(text[3:5], 16)])
    return text.replace(_META, " ").encode()


def _behaviour(tokenizer: Any) -> str:
    ids = [tokenizer.encode(probe, add_special_tokens=False).ids for probe in PROBES]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
