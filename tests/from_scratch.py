"""What base + adapters should say, recomputed from scratch: whole texts, one row at a time, no cache, no padding.

An independent witness: it uses torch, `tokenizers` and the models, and nothing of this library. It follows the words of
docs/alignment.md and docs/prefix.md, not the library's code, and takes the slowest way to each number.
"""

from __future__ import annotations

import codecs
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

ENDS = {"</s>", "<|end|>", "<|endoftext|>", "<eos>", "<|im_end|>"}
"""Control tokens of the test vocabularies that end a text or a turn."""
STEP_BACK = "\ufffd"


def byte_table() -> dict[str, int]:
    """GPT-2's characters for bytes, written down anew: printable Latin-1 stands for itself, the rest follows U+0100."""
    plain = set(range(0x21, 0x7F)) | set(range(0xA1, 0xAD)) | set(range(0xAE, 0x100))
    table, extra = {}, 0
    for byte in range(256):
        if byte in plain:
            table[chr(byte)] = byte
        else:
            table[chr(0x100 + extra)] = byte
            extra += 1
    return table


class Words:
    """A tokenizer by what its tokens spell.

    Attributes:
        spelled: id -> bytes, of ordinary tokens.
        controls: ids of control tokens -> their names.
        begin: what stands before every text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.state = json.loads(tokenizer.backend_tokenizer.to_str())
        self.eos_name = tokenizer.eos_token
        kind, shape = self.state["model"]["type"], json.dumps(self.state)
        added = {entry["id"]: entry for entry in self.state["added_tokens"]}
        self.controls = {index: entry["content"] for index, entry in added.items() if entry["special"]}
        vocab = self.state["model"]["vocab"]
        pieces = vocab if isinstance(vocab, dict) else {piece[0]: index for index, piece in enumerate(vocab)}
        self.fallback: set[int] = set()
        self.spelled: dict[int, bytes] = {}
        table = byte_table()
        for piece, index in pieces.items():
            if index in self.controls:
                continue
            if '"ByteLevel"' in shape:
                self.spelled[index] = bytes(table[character] for character in piece)
            elif kind == "WordPiece":
                self.spelled[index] = (piece[2:] if piece.startswith("##") else " " + piece).encode()
            elif self.state["model"].get("byte_fallback") and piece.startswith("<0x") and piece.endswith(">"):
                self.spelled[index] = bytes([int(piece[3:5], 16)])
                self.fallback.add(index)
            else:
                self.spelled[index] = piece.replace("\u2581", " ").encode()
        self.first, self.later = self._encoder(self.state), self._encoder(_no_space_before(self.state))
        bare, whole = self.first.encode("a", add_special_tokens=False).ids, self.first.encode("a").ids
        self.begin = whole[: whole.index(bare[0])]
        self.space_before = self.spelled[bare[0]].startswith(b" ")
        self.known = self._encoder(self.state)
        self.known.encode_special_tokens = False
        self.space_behind = self.spelled[self.known.encode(f"{self.eos_name}a").ids[-1]].startswith(b" ")

    @staticmethod
    def _encoder(state: dict[str, Any]) -> Tokenizer:
        made = Tokenizer.from_str(json.dumps(state))
        made.encode_special_tokens = True  # what a user types is text
        return made

    def bytes_of_ids(self) -> dict[int, tuple[bytes, bool]]:
        """What each ordinary token spells, and whether it is one of the tokens that stand for a single byte."""
        return {index: (data, index in self.fallback) for index, data in self.spelled.items()}

    @property
    def ends(self) -> list[int]:
        return [index for index, name in self.controls.items() if name in ENDS or name == self.eos_name]

    @property
    def eos(self) -> int:
        return next(index for index, name in self.controls.items() if name == self.eos_name)

    def encode(self, text: str, *, opens: bool) -> list[int]:
        return list((self.first if opens else self.later).encode(text, add_special_tokens=False).ids)

    def behind_an_end(self, text: str) -> list[int]:
        """Tokens of text behind the token that ends texts, as the tokenizer itself has them there."""
        if not text:
            return []
        ids = list(self.known.encode(self.eos_name + text, add_special_tokens=False).ids)
        return ids[ids.index(self.eos) + 1 :]

    def prefix(self, text: str) -> list[int]:
        """Tokens of a text that more text follows."""
        more = self.known.encode(text + "A", add_special_tokens=False)
        kept = [index for index, (_, end) in zip(more.ids, more.offsets, strict=True) if end <= len(text)]
        if all(begin >= len(text) for begin, _ in more.offsets[len(kept) :]) and len(kept) < len(more.ids):
            return [*self.begin, *kept]
        return [*self.begin, *self.known.encode(text, add_special_tokens=False).ids]


def _no_space_before(part: Any) -> Any:
    """A tokenizer for text in the midst: whatever puts a space before a text does not."""
    if isinstance(part, list):
        return [_no_space_before(one) for one in part if not (isinstance(one, dict) and one.get("type") == "Prepend")]
    if not isinstance(part, dict):
        return part
    changed = {key: _no_space_before(value) for key, value in part.items() if key != "vocab"}
    if "vocab" in part:
        changed["vocab"] = part["vocab"]
    if "prepend_scheme" in changed:
        changed["prepend_scheme"] = "never"
    if changed.get("type") == "ByteLevel":
        changed["add_prefix_space"] = False
    return changed


@dataclass
class Meeting:
    """How a value vocabulary and a base's meet."""

    value: Words
    base: Words
    value_width: int
    base_width: int
    same: bool = field(init=False)
    """Whether every token of one is a token of the other, perhaps under another id."""

    def __post_init__(self) -> None:
        mine, theirs = self.value.bytes_of_ids(), self.base.bytes_of_ids()
        names = set(self.value.controls.values()) == set(self.base.controls.values())
        alike = self.value.state["pre_tokenizer"] == self.base.state["pre_tokenizer"]
        self.twins = {known: index for index, known in mine.items()}
        self.same = self.twins.keys() == set(theirs.values()) and names and alike and len(mine) == len(theirs)
        of_bytes: dict[bytes, int] = {}
        for index in sorted(self.value.spelled, key=lambda i: (i in self.value.fallback, i), reverse=True):
            if index < self.value_width and self.value.spelled[index]:
                of_bytes[self.value.spelled[index]] = index
        self.of_bytes = of_bytes
        self.of_name = {name: index for index, name in self.value.controls.items()}

    def read(self, ids: Sequence[int], *, lead: Sequence[int] = ()) -> list[int]:
        """What the network reads where the base has read `ids`."""
        if self.same:
            return [*lead, *(self._twin(index) for index in ids)]
        out, data, opens = list(lead or self.value.begin), b"", True

        def taken(text: str) -> list[int]:
            put = self.base.space_before if opens else self.base.space_behind  # a space that is not in the text
            bare = text[1:] if put and text.startswith(" ") else text
            return self.value.encode(bare, opens=True) if opens else self.value.behind_an_end(bare)

        for index in ids:
            if index in self.base.ends:
                out += [*taken(data.decode("utf-8", "replace")), self.value.eos]
                data, opens = b"", False
            else:
                data += self.base.spelled.get(index, b"")
        waiting = codecs.getincrementaldecoder("utf-8")("replace")
        return out + taken(waiting.decode(data))

    @functools.cached_property
    def in_place(self) -> bool:
        """Whether the tokens are the same under the same ids."""
        known = self.base.spelled.keys() | self.base.controls.keys()
        return self.same and all(self._twin(index) == index for index in known)

    def _twin(self, index: int) -> int:
        if index in self.base.controls:
            return self.of_name[self.base.controls[index]]
        if index not in self.base.spelled:  # padding, which is itself where all ids are the same
            return index if self.in_place and index < self.value_width else 0
        return self.twins.get((self.base.spelled.get(index, b""), index in self.base.fallback), 0)

    def carry(self, row: torch.Tensor) -> torch.Tensor:
        """Value logits (value_vocab,) as the base's tokens have them (base_vocab,)."""
        mean, ends = float(row.mean()), [float(row[index]) for index in self.value.ends]
        end = math.log(sum(map(math.exp, ends)) / len(ends))
        of = {"mean": mean, "end": end}
        out = [of[source] if isinstance(source, str) else float(row[source]) for source in self.sources]
        return torch.tensor(out, dtype=torch.float64)

    @functools.cached_property
    def sources(self) -> list[int | str]:
        """For each of the base's tokens the value token whose logit it gets, or "mean" or "end"."""
        found: list[int | str] = ["mean"] * self.base_width
        if self.in_place:
            return [index if index < self.value_width else "mean" for index in range(self.base_width)]
        for index in range(self.base_width):
            if index in self.base.controls:
                if self.same:
                    found[index] = self._twin(index)
                elif index in self.base.ends:
                    found[index] = "end"
            elif index in self.base.spelled:
                data = self.base.spelled[index]
                source = self.of_bytes.get(data)
                if self.same:
                    source = self._twin(index)
                elif source is None and data:
                    source = self._first(data)
                found[index] = "mean" if source is None else source
        return found

    def _first(self, data: bytes) -> int | None:
        text = data.decode("utf-8", "replace")
        if STEP_BACK not in text:
            ids = self.value.encode(text, opens=False)
            found = ids[0] if ids else None
        else:
            found = next((self.of_bytes[data[:n]] for n in range(len(data), 0, -1) if data[:n] in self.of_bytes), None)
        return None if found in self.value.controls else found


@dataclass
class Acting:
    """An adapter, as a list of models."""

    networks: Sequence[PreTrainedModel]
    coefficients: Sequence[float]
    scale: float
    meeting: Meeting
    prefix: str | None = None
    reads_prefix: Sequence[bool] = ()
    base_weight: float = 1.0
    end_weight: float = 0.0
    ends: Sequence[int] = ()


@torch.no_grad()
def last_logits(base: PreTrainedModel, words: Words, adapters: Sequence[Acting], ids: Sequence[int]) -> torch.Tensor:
    """Logits (base_vocab,) after `ids`, all of it read anew; float64."""
    prefixes = {one.prefix for one in adapters if one.prefix is not None}
    text = next(iter(prefixes), None)
    read = _behind(words, text, ids)
    own_logits = base(torch.tensor([read]), use_cache=False).logits[0, -1].double()
    total = own_logits.clone()
    for one in adapters:
        value = torch.zeros(one.meeting.value_width, dtype=torch.float64)  # an adapter's value logits, before the map
        for index, network in enumerate(one.networks):
            behind = text if one.reads_prefix and one.reads_prefix[index] else None
            if own := _own(one.meeting, words, behind, ids):
                row = network(torch.tensor([own]), use_cache=False).logits[0, -1]
                value += one.coefficients[index] * row.double()
        bracket = (one.base_weight - 1) * own_logits + one.meeting.carry(value)
        for token in one.ends:
            bracket[token] += one.end_weight
        total = total + one.scale * bracket
    return total


def _behind(words: Words, text: str | None, ids: Sequence[int]) -> list[int]:
    if text is None:
        return list(ids)
    bare = ids[len(words.begin) :] if words.begin and list(ids[: len(words.begin)]) == words.begin else ids
    return [*words.prefix(text), *bare]


def _own(meeting: Meeting, words: Words, text: str | None, ids: Sequence[int]) -> list[int]:
    if text is None:
        return meeting.read(ids)
    if meeting.same:
        return meeting.read(_behind(words, text, ids))
    return meeting.read(ids, lead=meeting.value.prefix(text))


class Witness(PreTrainedModel, GenerationMixin):
    """A model of transformers' own that says at each step what `last_logits` says; it has no cache.

    Args:
        base: the base.
        words: its tokenizer.
        rows: for each prompt the adapters that act on it.
    """

    main_input_name = "input_ids"
    _supports_sdpa = _supports_attention_backend = True

    def __init__(self, base: PreTrainedModel, words: Words, rows: Sequence[Sequence[Acting]]) -> None:
        super().__init__(base.config)
        self.one, self.words, self.rows = [base], words, rows  # in a list: no submodule
        self.said: dict[tuple[int, ...], torch.Tensor] = {}  # beams and samples begin alike
        self.generation_config = base.generation_config
        self.register_parameter("anchor", torch.nn.Parameter(torch.zeros(1)))

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        each = len(input_ids) // len(self.rows)
        logits = []
        for row, (ids, seen) in enumerate(zip(input_ids, mask, strict=True)):
            read = ids[seen.bool()].tolist()
            key = (row // each, *read)
            if key not in self.said:
                self.said[key] = last_logits(self.one[0], self.words, self.rows[row // each], read)
            logits.append(self.said[key])
        return CausalLMOutput(logits=torch.stack(logits)[:, None].float())


def padded(rows: Sequence[Sequence[int]]) -> Mapping[str, torch.Tensor]:
    """Rows of different length with padding on the left: `input_ids`, `attention_mask`."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + list(row) for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
