"""Carries logits of one vocabulary to the tokens of another: builds, keeps and applies the map; knows no models.

A token of the base whose bytes are a token of the value vocabulary gets that token's logit. One whose bytes are split
into value tokens a1 … ak gets the logit of a1: the product of exp(value logits) along a text is a likelihood ratio, a
martingale under the reference model, so the first factor is the unbiased estimate from one forward pass. Control tokens
get nothing, which is the mean of the value logits, so that a constant added to all of them changes nothing; those that
end a text get what the network gave to its own. `docs/alignment.md` explains it at length.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from valueadapter.errors import AlignmentError, ConfigError
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary
from valueadapter.vocabulary.spec import VocabularySpec
from valueadapter.vocabulary.strict_json import from_json

if TYPE_CHECKING:
    import torch

Relation = Literal["identity", "permuted", "static"]
FORMAT = "valueadapter-alignment"
VERSION = 1
NONE, EXACT, FIRST, STOP, PADDING = range(5)
"""Kinds of base rows: nothing, the same bytes, the first of several value tokens, end of text, no token at all."""


class VocabularyAlignment:
    """A map from the rows of a base model's logits to the columns of the value logits.

    Attributes:
        source: int32 (base_vocab): the value token whose logit the row gets; -1 for none.
        kind: uint8 (base_vocab): NONE, EXACT, FIRST, STOP or PADDING.
        value: width and fingerprints of the value vocabulary.
        base: the same of the base's.
        relation: `identity` (equal ids), `permuted` (the same vocabulary under other ids) or `static`.
        stops: the value tokens that end a text; rows of kind STOP get the log of the mean of their exponentials.
    """

    def __init__(
        self,
        source: np.ndarray,
        kind: np.ndarray,
        *,
        value: VocabularySpec,
        base: VocabularySpec,
        relation: Relation,
        stops: tuple[int, ...],
    ) -> None:
        rows = (base.logits_width,)
        if source.shape != rows or kind.shape != rows or source.dtype != np.int32 or kind.dtype != np.uint8:
            raise AlignmentError(
                f"expected source int32 and kind uint8 of {rows[0]:,} rows; got {source.dtype} of "
                f"{source.shape} and {kind.dtype} of {kind.shape}"
            )
        beyond = [*source[source >= value.logits_width], *source[source < -1]][:1]
        beyond += [stop for stop in stops if type(stop) is not int or not 0 <= stop < value.logits_width]
        if beyond:
            raise AlignmentError(
                f"the map points to value token {beyond[0]!r:.40}; the value logits have {value.logits_width:,} columns"
            )
        if (kind > PADDING).any() or ((kind == STOP).any() and not stops):
            raise AlignmentError(
                f"a row of the map is of kind {int(kind.max())} with {len(stops)} tokens that end a text; expected "
                f"kinds 0 to {PADDING}, and for rows that end a text at least one such token"
            )
        self.source, self.kind, self.value, self.base = source, kind, value, base
        self.relation, self.stops = relation, stops
        self._on_device: dict[Any, tuple[torch.Tensor, ...]] = {}

    # -- building ----------------------------------------------------------------------------------------------------
    @classmethod
    def build(cls, value: ModelVocabulary, base: ModelVocabulary) -> VocabularyAlignment:
        """Computes the map; 262,144 rows take seconds.

        Args:
            value: the value vocabulary.
            base: the base's.

        Raises:
            AlignmentError: the bytes of one side's tokens do not spell its text.
        """
        for name, side in (("value", value), ("base", base)):
            if not side.vocabulary.spells_text:
                raise AlignmentError(
                    f"the {name} tokenizer has no byte view: its tokens, joined, do not give the text back (words "
                    "without spaces, or end-of-word marks). Use a model with a byte-level, SentencePiece or WordPiece "
                    "tokenizer"
                )
        found = _same_vocabulary(value, base)
        if found is not None:
            source, relation = found
            kind = np.where(source >= 0, EXACT, NONE).astype(np.uint8)
            stops: tuple[int, ...] = ()
        else:
            (source, kind), relation, stops = _by_bytes(value, base), "static", value.stops
        kind[_rows_without_token(base)] = PADDING
        return cls(source, kind, value=value.spec, base=base.spec, relation=relation, stops=stops)

    def copy(self) -> VocabularyAlignment:
        """An equal map that shares nothing with this one."""
        return VocabularyAlignment(
            self.source.copy(),
            self.kind.copy(),
            value=self.value,
            base=self.base,
            relation=self.relation,
            stops=self.stops,
        )

    # -- keeping -----------------------------------------------------------------------------------------------------
    def save(self, path: Path) -> None:
        """Writes the map as one safetensors file; equal maps give equal bytes."""
        about = {
            "version": VERSION,
            "value": dataclasses.asdict(self.value),
            "base": dataclasses.asdict(self.base),
            "relation": self.relation,
            "stops": self.stops,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        # one entry, since safetensors writes several in any order
        save_file({"source": self.source, "kind": self.kind}, path, metadata={FORMAT: json.dumps(about)})

    @classmethod
    def load(cls, path: Path) -> VocabularyAlignment:
        """Reads a map and checks that it is whole.

        Raises:
            AlignmentError: no such file, or not a map of a version that this library reads.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {}).get(FORMAT, "{}"))
                if about.get("version") != VERSION:
                    raise AlignmentError(
                        f"'{path}' is no vocabulary alignment of version {VERSION}: its metadata under '{FORMAT}' says "
                        f"version {about.get('version')}. Build it anew: valueadapter align"
                    )
                tensors = {name: file.get_tensor(name) for name in ("source", "kind")}
            return cls(
                tensors["source"],
                tensors["kind"],
                value=from_json(VocabularySpec, about["value"], "value"),
                base=from_json(VocabularySpec, about["base"], "base"),
                relation=_relation(about["relation"]),
                stops=tuple(about["stops"]),
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, AlignmentError) and not isinstance(error, ConfigError) and str(path) in str(error):
                raise
            raise AlignmentError(
                f"'{path}' cannot be read as a vocabulary alignment ({error}); build it anew: valueadapter align"
            ) from error

    def check(self, value: VocabularySpec, base: VocabularySpec) -> None:
        """Raises unless the map was built for these two vocabularies.

        Raises:
            AlignmentError: showing what the map is for and what it met.
        """
        for name, mine, theirs in (("value", self.value, value), ("base", self.base, base)):
            if mine != theirs:
                differs = [f.name for f in dataclasses.fields(mine) if getattr(mine, f.name) != getattr(theirs, f.name)]
                shown = "; ".join(f"{key} {getattr(mine, key)}, got {getattr(theirs, key)}" for key in differs)
                raise AlignmentError(
                    f"this alignment is for another {name} vocabulary: it expects {shown}. Build one for this pair: "
                    "valueadapter align"
                )

    def check_value_side(self, value: ModelVocabulary) -> None:
        """Raises unless the map says of the value vocabulary what any map to another one must say.

        Whether it is the map to its base as well, only the base's tokenizer tells: see `check_built`.

        Args:
            value: the vocabulary of the value logits.

        Raises:
            AlignmentError: a row is mapped to a control token, and other impossible things.
        """
        held = (self.kind == EXACT) | (self.kind == FIRST)
        if ((self.source >= 0) != held).any():
            row = int(np.flatnonzero((self.source >= 0) != held)[0])
            raise AlignmentError(f"row {row} of kind {self.kind[row]} is mapped to token {self.source[row]}")
        static = self.relation == "static"
        if self.stops != (value.stops if static else ()):
            right = value.stops if static else ()
            raise AlignmentError(f"its tokens that end a text are {self.stops}; the adapter's tokenizer has {right}")
        known = value.vocabulary.ordinary(value.width) if static else list(value.vocabulary.below(value.width))
        if len(other := np.setdiff1d(self.source[held], np.array(known, dtype=np.int32))):
            raise AlignmentError(f"it maps rows to value token {other[0]}, which stands for no text")
        if not static and (self.kind == FIRST).any():
            raise AlignmentError(f"a map of relation {self.relation} splits no token, and this one does")
        if self.relation == "identity" and (self.source[held] != np.flatnonzero(held)).any():
            raise AlignmentError("it says that ids are equal (identity) and maps some to others")

    def check_built(self, built: VocabularyAlignment) -> None:
        """Raises unless this map is the one that is built from the two tokenizers.

        Args:
            built: what `build` gave for them.

        Raises:
            AlignmentError: showing where they differ.
        """
        self.check(built.value, built.base)
        for name in ("relation", "stops"):
            if getattr(self, name) != getattr(built, name):
                raise AlignmentError(
                    f"this map is not the one of these two tokenizers: its {name} is {getattr(self, name)}, and "
                    f"{getattr(built, name)} is right. Build it anew: valueadapter align"
                )
        wrong = np.flatnonzero((self.source != built.source) | (self.kind != built.kind))
        if len(wrong):
            row = int(wrong[0])
            raise AlignmentError(
                f"this map is not the one of these two tokenizers: {len(wrong):,} rows differ, the first is {row} "
                f"(value token {self.source[row]}, kind {self.kind[row]}); "
                f" {built.source[row]}, kind {built.kind[row]} is "
                "right. Build it anew: valueadapter align"
            )

    # -- using -------------------------------------------------------------------------------------------------------
    def project(self, value_logits: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Value logits as the base's vocabulary has them.

        Args:
            value_logits: (…, value_vocab), finite.
            out: (…, base_vocab) to write into, of the same dtype and device; without gradients only.

        Returns:
            (…, base_vocab); `out` where it was given.

        Raises:
            AlignmentError: a width that is not the value vocabulary's, or NaN or infinity in the logits.
        """
        import torch  # the module itself serves `inspect`, which needs none

        if value_logits.shape[-1] != self.value.logits_width:
            raise AlignmentError(
                f"expected value logits of {self.value.logits_width:,} columns; got {value_logits.shape[-1]:,}"
            )
        if not torch.isfinite(value_logits.detach().sum(dtype=torch.float32)):
            raise AlignmentError(
                "the value logits hold NaN or infinity, which would reach every token of the base; the network's "
                f"weights are damaged or {value_logits.dtype} is too narrow for it. Load the base in float32"
            )
        index, empty, stop_rows, stops = self._tensors(value_logits.device)
        flat = value_logits.reshape(-1, value_logits.shape[-1])
        into = None if out is None else out.view(-1, out.shape[-1])
        projected = torch.index_select(flat, 1, index, out=into)
        if len(empty):
            projected[:, empty] = flat.mean(-1, keepdim=True)
        if len(stop_rows):
            projected[:, stop_rows] = flat[:, stops].logsumexp(-1, keepdim=True) - math.log(len(stops))
        return projected.view(*value_logits.shape[:-1], -1)

    def value_ids(self, base_ids: torch.Tensor) -> torch.Tensor:
        """The value tokens of the base's, where ids correspond one to one; 0 for a token that the value side lacks."""
        return self._tensors(base_ids.device)[0].to(base_ids.dtype)[base_ids]

    def _tensors(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        import torch

        if device not in self._on_device:
            rows = [np.flatnonzero((self.source < 0) & (self.kind != STOP)), np.flatnonzero(self.kind == STOP)]
            arrays = [np.maximum(self.source, 0), *rows, np.array(self.stops, dtype=np.int64)]
            with torch.inference_mode(mode=False):  # they are kept, and what was made within it never takes gradients
                self._on_device[device] = tuple(torch.from_numpy(array).to(device) for array in arrays)
        return self._on_device[device]

    def coverage(self) -> dict[str, int]:
        """How many of the base's rows are of each kind, under readable names."""
        names = ("nothing", "same bytes", "first of several", "end of text", "no token")
        return {name: int((self.kind == kind).sum()) for kind, name in enumerate(names)}


def _relation(text: str) -> Relation:
    if text not in ("identity", "permuted", "static"):
        raise AlignmentError(f"relation must be identity, permuted or static; got {text!r}")
    return text  # type: ignore[return-value]


def _rows_without_token(side: ModelVocabulary) -> np.ndarray:
    empty = np.ones(side.width, dtype=bool)
    empty[sorted(side.vocabulary.below(side.width))] = False
    return empty


def _same_vocabulary(value: ModelVocabulary, base: ModelVocabulary) -> tuple[np.ndarray, Relation] | None:
    """The map between ids of one vocabulary: permuted, padded, or with tokens added on either side; else None."""
    mine, theirs = _keys(base), _keys(value)
    at: dict[tuple[object, ...], int] = {key: token for token, key in theirs.items()}
    at |= {(*key, token in value.vocabulary.added): token for token, key in theirs.items()}
    source = np.full(base.width, -1, dtype=np.int32)
    for token, key in mine.items():
        twin = at.get((*key, token in base.vocabulary.added), at.get(key, -1))  # runs of spaces may be there twice
        source[token] = token if theirs.get(token) == key else twin
    missing = [token for token in mine if source[token] < 0]
    unused = theirs.keys() - set(source.tolist())
    if set(missing) - base.vocabulary.added or unused - value.vocabulary.added:
        return None
    probes = tuple(tuple(int(source[t]) if t < base.width else -1 for t in ids) for ids in base.vocabulary.probe_ids)
    if probes != value.vocabulary.probe_ids:
        return None
    kept = np.flatnonzero(source >= 0)
    in_place = (source[kept] == kept).all() and not any(token < value.width for token in missing)
    return source, "identity" if in_place else "permuted"


def _keys(side: ModelVocabulary) -> dict[int, tuple[bytes, bool, bool]]:
    """What makes a token the same one elsewhere: its bytes, and whether it is a control token or a lone byte."""
    v = side.vocabulary
    return {t: (data, t in v.special, t in v.fallbacks) for t, data in v.tokens.items() if t < side.width}


def _by_bytes(value: ModelVocabulary, base: ModelVocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Source and kind of every base row: the same bytes, else the first value token of the text."""
    source = np.full(base.width, -1, dtype=np.int32)
    kind = np.full(base.width, NONE, dtype=np.uint8)
    exact = value.vocabulary.by_bytes(value.width)
    rest: list[int] = []
    for token in base.vocabulary.ordinary(base.width):
        found = exact.get(base.vocabulary.tokens[token])
        if found is None:
            rest.append(token)
        else:
            source[token], kind[token] = found, EXACT
    texts = [base.vocabulary.tokens[token].decode("utf-8", "replace") for token in rest]
    for token, text, ids in zip(rest, texts, value.encoder.encode_pieces(texts), strict=True):
        data = base.vocabulary.tokens[token]
        first = ids[0] if ids and "\ufffd" not in text else _longest_prefix(data, exact)
        if first is not None and first < value.width and first not in value.vocabulary.special:
            source[token], kind[token] = first, FIRST
    if value.stops:
        kind[list(base.stops)] = STOP
    return source, kind


def _longest_prefix(data: bytes, tokens: dict[bytes, int]) -> int | None:
    """The value token for bytes that are no text (a part of a character): the longest that they begin with."""
    return next((tokens[data[:n]] for n in range(len(data), 0, -1) if data[:n] in tokens), None)
