"""Says how an adapter and a base will get on before any weight is read; knows tokenizers and small files, no models.

What two vocabularies share is measured on a sample text, pushed through the map and the reading that generation uses.
The tokenizers come from a directory or from single files on the Hub.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from valueadapter import layout
from valueadapter.alignment import EXACT, NONE, PADDING, Relation, Side, VocabularyAlignment
from valueadapter.config import MODEL_TYPE, Connection, ValueAdapterConfig
from valueadapter.context import ContextAligner, Reading
from valueadapter.errors import ConfigError, IncompatibleBaseError, MissingFileError
from valueadapter.link import connect, why_unreadable

logger = logging.getLogger(__name__)

SAMPLE = """\
The committee met again on Tuesday, but nobody could explain why the bridge had been closed; its engineers, who'd \
warned of cracks for years, weren't surprised. "We told them," said one, "and they didn't listen."

Natalia sold 48 clips in April and half as many in May: 48 / 2 = 24, so she sold 48 + 24 = 72 clips. At $1.25 each \
that makes 72 * 1.25 = $90.00, or 12.5% of 720.

def median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2 == 0:
        return (ordered[middle - 1] + ordered[middle]) / 2
    return ordered[middle]  # the one in between

昨日は雨が降っていましたが、今日は朝からよく晴れています。
"""
"""What the shares are measured on by default: prose, arithmetic, code, and a sentence in another script."""


@dataclass(frozen=True)
class Compatibility:
    """What to expect of an adapter on a base.

    Attributes:
        relation: `identity` (equal ids), `permuted` (the same vocabulary under other ids) or `static` (a map).
        coverage: the base's rows by what they get (`VocabularyAlignment.coverage`).
        text_coverage: share of the text's base tokens that have a value token of the same bytes.
        same_event_share: share of the text's base tokens at which base and network predict the same thing: the network
            took nothing back, and the first value token that it read there is the one that the map gives the token.
        value_tokens_per_base_token: what the network reads for each base token, tokens read again included.
        special_without_counterpart: control tokens of the base that get nothing from the adapter.
    """

    relation: Relation
    coverage: dict[str, int]
    text_coverage: float
    same_event_share: float
    value_tokens_per_base_token: float
    special_without_counterpart: tuple[str, ...]

    @property
    def advice(self) -> str:
        """What follows from it, in one sentence."""
        if self.relation == "identity":
            return "identity: ids pass through"
        if self.relation == "permuted":
            return "permuted: the same vocabulary under other ids, nothing is lost"
        if self.same_event_share >= 0.97:
            return "static map, close to exact"
        if self.same_event_share >= 0.7:
            return "static map; expect some loss, and compare with the base alone before you rely on it"
        if self.same_event_share >= 0.5:
            return "static map; expect much loss: text is split in two very different ways"
        return "static map; not advisable on such text: base and network seldom predict the same thing"

    def to_dict(self) -> dict[str, Any]:
        """Fields and advice, for JSON."""
        return {**dataclasses.asdict(self), "advice": self.advice}


def assess(
    value: Side, base: Side, *, alignment: VocabularyAlignment | None = None, text: str = SAMPLE
) -> Compatibility:
    """Measures how an adapter's vocabulary meets a base's; seconds for large ones, and no weights.

    Args:
        value: the adapter's vocabulary.
        base: the base's.
        alignment: the map between them; built by default.
        text: text of the kind that will be generated.

    Raises:
        AlignmentError: a tokenizer without byte view, or a map for other vocabularies.
        ConfigError: a text without tokens.
    """
    ids = base.encoder.encode(text, start=True)
    if not ids:
        raise ConfigError("the sample text has no tokens in the base's vocabulary; pass a longer text")
    if alignment is None:
        alignment = _same(value, base) or VocabularyAlignment.build(value, base)
    else:
        alignment.check(value.spec, base.spec)
    same_events, read = (
        _walk(ids, alignment, Reading.between(value, base)) if alignment.relation == "static" else (len(ids), len(ids))
    )
    special = base.vocabulary.special
    nothing = [token for token in np.flatnonzero(alignment.kind == NONE).tolist() if token in special]
    return Compatibility(
        relation=alignment.relation,
        coverage=alignment.coverage(),
        text_coverage=len([t for t in ids if t < base.width and alignment.kind[t] == EXACT]) / len(ids),
        same_event_share=same_events / len(ids),
        value_tokens_per_base_token=read / len(ids),
        special_without_counterpart=tuple(base.vocabulary.tokens[t].decode("utf-8", "replace") for t in nothing),
    )


def say_how_they_meet(
    value: Side,
    base: Side,
    name: str,
    prebuilt: Mapping[str, VocabularyAlignment] | None = None,
    *,
    connection: Connection = "residual",
) -> None:
    """Logs, before any weight is read, how well an adapter's vocabulary meets a base's; nothing if it is the same.

    Args:
        value: the adapter's vocabulary.
        base: the base's.
        name: the base's name.
        prebuilt: maps that the adapter brings, as `link.connect` takes them.
        connection: what the adapter's networks read.

    Raises:
        AlignmentError: a prebuilt map that does not fit.
        IncompatibleBaseError: the networks read the base's prediction, which is of another vocabulary.
    """
    if value.tokenizer_json == base.tokenizer_json:
        return
    if not (value.vocabulary.spells_text and base.vocabulary.spells_text):
        return  # an error, which attaching explains
    link = connect(value, base, prebuilt)
    if (reason := why_unreadable(connection, link)) is not None:
        raise IncompatibleBaseError(f"base model '{name}' and this adapter do not go together: {reason}")
    if link is not None:
        found = assess(value, base, alignment=link.alignment)
        logger.warning(
            "%s has another vocabulary than the adapter: %s; %.1f %% of a sample text's tokens are the same event "
            "for both, %.2f value tokens per base token (`valueadapter inspect … --base …` tells more)",
            name,
            found.advice,
            100 * found.same_event_share,
            found.value_tokens_per_base_token,
        )


def _same(value: Side, base: Side) -> VocabularyAlignment | None:
    """The map of a vocabulary to itself, which needs no byte view; padded widths may differ."""
    if value.tokenizer_json != base.tokenizer_json and value.spec != base.spec:
        return None
    kind = np.full(base.width, PADDING, dtype=np.uint8)
    kind[[token for token in base.vocabulary.tokens if token < base.width]] = NONE
    shared = [token for token in base.vocabulary.tokens if token < min(value.width, base.width)]
    kind[shared] = EXACT
    source = np.full(base.width, -1, dtype=np.int32)
    source[shared] = shared
    return VocabularyAlignment(source, kind, value=value.spec, base=base.spec, relation="identity", stops=())


def _walk(ids: list[int], alignment: VocabularyAlignment, reading: Reading) -> tuple[int, int]:
    """Base tokens that are the same event for the network, and value tokens that it reads, over a text."""
    row = ContextAligner(reading)
    same = read = 0
    for token in ids:
        taken_back, new = row.push([token])
        read += len(new)
        mapped = alignment.source[token] if token < len(alignment.source) else -1
        same += int(taken_back == 0 and new[:1] == [mapped])
    return same, read


# -- from names to vocabularies ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Place:
    """Where the small files of a model or an adapter are."""

    name: str
    """Directory or Hub ID."""
    revision: str | None = None
    """Branch, tag or commit on the Hub; the default branch by default."""
    subfolder: str = ""
    """Directory inside it."""
    token: str | bool | None = None
    """Hub token; by default the stored one."""
    cache_dir: str | Path | None = None
    """The cache; by default the Hub client's."""
    local_files_only: bool = False
    """Take files from the cache, without asking the Hub."""

    def file(self, name: str) -> Path | None:
        """A local path of one file, downloaded if need be; None if there is none.

        Raises:
            MissingFileError: neither a directory nor the form of a Hub ID.
            huggingface_hub.errors: the repository or revision is not there, private, gated, not in the cache, …
        """
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

        if Path(self.name).is_dir():
            path = Path(self.name, self.subfolder, name)
            return path if path.is_file() else None
        try:
            found = hf_hub_download(
                self.name,
                name,
                subfolder=self.subfolder or None,
                revision=self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
            )
        except HFValidationError:
            raise MissingFileError(
                f"'{self.name}' is neither a directory here nor of the form of a Hub ID ('user/name'); check it"
            ) from None
        except RemoteEntryNotFoundError:
            return None
        return Path(found)

    def weight_bytes(self) -> int | None:
        """Size of the model's safetensors weights; None where it cannot be told."""
        inside = f"{self.subfolder}/model" if self.subfolder else "model"
        sizes = self._sizes()
        return sum(s for n, s in sizes.items() if n.startswith(inside) and n.endswith(layout.SAFETENSORS)) or None

    def _sizes(self) -> dict[str, int]:
        """Path -> size; empty where the Hub cannot be asked, since a size is no reason to fail."""
        import httpx2
        from huggingface_hub import HfApi

        if (root := Path(self.name)).is_dir():
            files = Path(root, self.subfolder).glob(f"*{layout.SAFETENSORS}")
            return {path.relative_to(root).as_posix(): path.stat().st_size for path in files}
        if self.local_files_only:
            return {}
        try:
            info = HfApi(token=self.token).model_info(self.name, revision=self.revision, files_metadata=True)
        except (httpx2.HTTPError, OSError):
            return {}
        return {file.rfilename: file.size or 0 for file in info.siblings or []}


def sides(adapter: Place, base: Place) -> tuple[Side, Side]:
    """The vocabularies of an adapter and of a base, from their small files only.

    Raises:
        MissingFileError, ConfigError: the adapter lacks its tokenizer or configuration.
        IncompatibleBaseError: the base has no tokenizer.json, or does not say how wide its logits are.
        huggingface_hub.errors: see `Place.file`.
    """
    return adapter_side(adapter), base_side(base)


def adapter_side(place: Place) -> Side:
    """The adapter's part of `sides`."""
    paths = {name: place.file(name) for name in (layout.CONFIG, layout.TOKENIZER)}
    if missing := [name for name, path in paths.items() if path is None]:
        raise MissingFileError(f"adapter '{place.name}' has no {missing[0]}; save or push it again")
    config, tokenizer = (path.read_text(encoding="utf-8") for path in paths.values() if path is not None)
    return Side(tokenizer, ValueAdapterConfig.from_json(config).vocabulary.logits_width, _eos_token(place))


def base_side(place: Place) -> Side:
    """The base's part of `sides`."""
    config = place.file(layout.CONFIG)
    if config is None:
        raise IncompatibleBaseError(f"base model '{place.name}' has no {layout.CONFIG}; name a causal language model")
    width = _vocab_size(config, place)
    tokenizer = place.file(layout.TOKENIZER)
    if tokenizer is None:
        raise IncompatibleBaseError(
            f"the tokenizer of base model '{place.name}' was not found: it has no {layout.TOKENIZER}. Name a model "
            "that has one; Python users can pass tokenizer= to ValueAdapterForCausalLM.from_pretrained"
        )
    return Side(tokenizer.read_text(encoding="utf-8"), width, _eos_token(place))


def _vocab_size(path: Path, place: Place) -> int:
    """Columns of a model's logits as its config.json says, or as its model type has them by default."""
    config = _json(path)
    text = config.get("text_config")
    size = (text if isinstance(text, dict) else {}).get("vocab_size", config.get("vocab_size"))
    if size is None and config.get("model_type") != MODEL_TYPE:
        size = _default_vocab_size(path.parent)
    if not isinstance(size, int) or size < 1:
        raise IncompatibleBaseError(
            f"base model '{place.name}': its {layout.CONFIG} (model_type {config.get('model_type')!r}) has no usable "
            f"vocab_size (got {size!r}), so the width of its logits is unknown; name a causal language model"
        )
    return size


def _default_vocab_size(directory: Path) -> object:
    from transformers import AutoConfig  # seldom needed: some multimodal models leave the key out

    try:
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        return getattr(config.get_text_config(decoder=True), "vocab_size", None)
    except (OSError, ValueError):
        return None


def _eos_token(place: Place) -> str | None:
    """The token that ends a text; older repositories name it in special_tokens_map.json only."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    for name in (layout.TOKENIZER_CONFIG, "special_tokens_map.json"):
        try:
            path = place.file(name)
        except LocalEntryNotFoundError:  # offline; whatever is required is there already
            continue
        token = _json(path).get("eos_token") if path is not None else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"'{path}' is not JSON ({error}); download or save it again") from None
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' must hold a JSON object; got {type(data).__name__}")
    return data
