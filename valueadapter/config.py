"""What `config.json` of an adapter says, as frozen dataclasses; knows nothing of files, tensors or the Hub.

`docs/format.md` is the normative description. A field here is documented once, by the string under it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from valueadapter.errors import ConfigError, IncompatibleVersionError, NotAValueAdapterError
from valueadapter.records import OMIT, from_json, to_json
from valueadapter.version import __version__

FORMAT_VERSION = 1
MODEL_TYPE = "value_adapter"

Connection = Literal["residual", "cascade", "cascade_with_text"]
Initialisation = Literal["zero_head", "pretrained", "random"]
PenaltyKind = Literal["none", "l1", "l2", "entropy"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class NetworkSpec:
    """One value network of the weighted sum: either inside the artifact or a pinned Hub repository."""

    coefficient: float = 1.0
    """Weight of this network's logits in the adapter's value logits; finite and not 0."""
    path: str | None = field(default=None, metadata=OMIT)
    """Directory inside the artifact, relative, with forward slashes."""
    sha256: dict[str, str] = field(default_factory=dict, metadata=OMIT)
    """File name -> SHA-256 (64 hex) of every weight file under `path`; filled when the adapter is saved."""
    repo: str | None = field(default=None, metadata=OMIT)
    """Hub ID of a repository that holds the network, in place of `path`."""
    revision: str | None = field(default=None, metadata=OMIT)
    """Commit hash (40 hex) of `repo`; required with `repo`, so that the adapter cannot change under its users."""

    def __post_init__(self) -> None:
        if (self.path is None) == (self.repo is None):
            raise ConfigError(f"a network needs either 'path' or 'repo'; got path={self.path!r} and repo={self.repo!r}")
        if not math.isfinite(self.coefficient) or self.coefficient == 0:
            raise ConfigError(f"'coefficient' must be finite and not 0; got {self.coefficient}")
        if self.path is not None:
            self._check_local(self.path)
        elif self.revision is None or not _COMMIT.fullmatch(self.revision):
            raise ConfigError(
                f"'revision' of network '{self.repo}' must be a 40-hex commit hash; got {self.revision!r}"
            )
        elif self.sha256:
            raise ConfigError(f"network '{self.repo}' is pinned by its revision; remove its 'sha256'")

    def _check_local(self, path: str) -> None:
        parts = path.split("/")
        if not path or "\\" in path or path.startswith("/") or any(p in ("", ".", "..") for p in parts):
            raise ConfigError(f"'path' must be a plain relative path inside the adapter; got {path!r}")
        if self.revision is not None:
            raise ConfigError(f"network '{path}' lies in the artifact; remove its 'revision' ({self.revision!r})")
        for name, digest in self.sha256.items():
            if "/" in name or "\\" in name or not _SHA256.fullmatch(digest):
                raise ConfigError(
                    f"'sha256' of network '{path}' must map file names to 64 hex digits; got {name!r}: {digest!r}"
                )


@dataclass(frozen=True)
class VocabularySpec:
    """Which tokens the value logits speak of."""

    logits_width: int
    """Columns of the value logits, at least 1; may exceed the number of tokens (padding)."""
    byte_fingerprint: str
    """SHA-256 over (id, bytes, special) of every token with an id below `logits_width`; 64 hex."""
    behaviour_fingerprint: str
    """SHA-256 over the ids of fixed probe strings (normaliser, pre-tokenizer, control tokens); 64 hex."""

    def __post_init__(self) -> None:
        if self.logits_width < 1:
            raise ConfigError(f"'logits_width' must be at least 1; got {self.logits_width}")
        for name in ("byte_fingerprint", "behaviour_fingerprint"):
            if not _SHA256.fullmatch(getattr(self, name)):
                raise ConfigError(f"'{name}' must be 64 hex digits; got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Regularisation:
    """The penalty on the value logits that training added to the cross-entropy."""

    kind: PenaltyKind
    """none, l1 (mean |v|), l2 (mean v²) or entropy (of the softmax of the value logits, below its maximum)."""
    coefficient: float
    """Weight of the penalty, 0 or more."""
    mask: Literal["response"] = "response"
    """Positions it was taken over: the response tokens."""
    centred: bool = True
    """Whether the mean over the vocabulary was subtracted first (makes it invariant to adding a constant)."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coefficient) and self.coefficient >= 0):
            raise ConfigError(f"'coefficient' of the penalty must be finite and at least 0; got {self.coefficient}")


@dataclass(frozen=True)
class TrainingRecord:
    """What the adapter was trained on and how."""

    valueadapter_version: str
    """Version of this library that trained it."""
    initialisation: Initialisation
    """zero_head, pretrained or random."""
    initialised_from: str | None
    """Hub ID of the model whose body the network started from; null for random."""
    num_layers: int | None
    """First N layers kept of that body; null for all."""
    regularisation: Regularisation
    """The penalty on the value logits."""
    data: str
    """Hub ID of the dataset, or a name for it; never a path of the machine that trained."""
    num_examples: int
    """Demonstrations in the training set."""
    num_response_tokens: int
    """Tokens that the loss was taken over, all steps together."""
    steps: int
    """Optimizer steps."""
    loss_first: float | None
    """Training loss (cross-entropy and penalty) per response token at the first logged step, in nats."""
    loss_last: float | None
    """The same at the last logged step."""

    def __post_init__(self) -> None:
        for name in ("num_examples", "num_response_tokens", "steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"'{name}' must be 0 or more; got {getattr(self, name)}")
        if self.num_layers is not None and self.num_layers < 1:
            raise ConfigError(f"'num_layers' must be at least 1 or null; got {self.num_layers}")
        _check_finite(self, ("loss_first", "loss_last"))


@dataclass(frozen=True)
class EvaluationRecord:
    """What was measured on one base with one held-out set. Bits are per UTF-8 byte of the responses."""

    base: str
    """Hub ID or name of the base model."""
    relation: str
    """How the base relates to the base the adapter was trained on, in words."""
    data: str
    """Hub ID or name of the held-out set."""
    num_examples: int
    """Held-out examples."""
    scale: float
    """Scale of the adapter in the adapted arm."""
    base_bits_per_byte: float
    """The base alone."""
    donor_bits_per_byte: float | None
    """The adapter's own small tuned model alone (training base + adapter); null where not measured."""
    adapted_bits_per_byte: float
    """Base + adapter."""
    base_exact_match: float | None = None
    """Share of exact answers, 0 to 1, of the base alone; null where not measured."""
    donor_exact_match: float | None = None
    """The same for the small tuned model alone."""
    adapted_exact_match: float | None = None
    """The same for base + adapter."""

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ConfigError(f"'num_examples' must be at least 1; got {self.num_examples}")
        arms = ("base", "donor", "adapted")
        _check_finite(self, ("scale", *(f"{arm}_bits_per_byte" for arm in arms)))
        for name in (f"{arm}_exact_match" for arm in arms):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"'{name}' must lie between 0 and 1; got {value}")


@dataclass(frozen=True)
class RecommendedScale:
    """The scale that served best on bases of one vocabulary, and the figures that say so."""

    base_fingerprint: str
    """SHA-256 over (id, bytes, special) of the base's tokens, as in `vocabulary.byte_fingerprint`; 64 hex."""
    base: str
    """Hub ID or name of the base it was measured on."""
    scale: float
    """Best scale on the calibration examples; finite."""
    base_bits_per_byte: float
    """Bits per UTF-8 byte of the calibration examples' responses: the base alone."""
    adapted_bits_per_byte: float
    """The same for base + adapter at this scale."""
    data: str
    """Hub ID or name of the calibration examples."""
    num_examples: int
    """How many there were, at least 1."""

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.base_fingerprint):
            raise ConfigError(f"'base_fingerprint' must be 64 hex digits; got {self.base_fingerprint!r}")
        if self.num_examples < 1:
            raise ConfigError(f"'num_examples' must be at least 1; got {self.num_examples}")
        _check_finite(self, ("scale", "base_bits_per_byte", "adapted_bits_per_byte"))


def _check_finite(record: object, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(record, name)
        if value is not None and not math.isfinite(value):
            raise ConfigError(f"'{name}' must be finite; got {value}")


@dataclass(frozen=True)
class ValueAdapterConfig:
    """Everything an adapter is, except weights and tokenizer; `config.json` at the root of the artifact.

    Raises:
        ConfigError: a value is out of range, or asks for what this version does not build.
    """

    base_model_name_or_path: str
    """Hub ID of the base model that the adapter was trained on."""
    networks: tuple[NetworkSpec, ...]
    """The weighted sum: value logits = Σ coefficient · network logits. At least one."""
    vocabulary: VocabularySpec
    """The vocabulary of the value logits (the training base's)."""
    base_model_revision: str | None = None
    """Commit hash of that base, where the Hub gave one."""
    connection: Connection = "residual"
    """How the networks meet the base; only `residual` (logits added) is built."""
    scale: float = 1.0
    """Recommended scale: logits = base logits + scale · value logits. Finite."""
    base_prefix: None = None
    """Reserved: text that only the base reads. Null only, until it is built."""
    training: TrainingRecord | None = None
    """How it was trained; null for adapters that needed no training."""
    evaluation: tuple[EvaluationRecord, ...] = ()
    """Measured results, one per base and held-out set."""
    scales: tuple[RecommendedScale, ...] = field(default=(), metadata=OMIT)
    """Recommended scales for bases they were measured on, in place of `scale`; left out where there are none."""
    format_version: int = FORMAT_VERSION
    """Version of the artifact format."""

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(f"'format_version' must be {FORMAT_VERSION} in this version; got {self.format_version}")
        if not self.networks:
            raise ConfigError("'networks' is empty; expected at least one value network")
        if self.connection != "residual":
            raise ConfigError(
                f"'connection' {self.connection!r} is reserved; valueadapter {__version__} runs 'residual' only"
            )
        if not math.isfinite(self.scale):
            raise ConfigError(f"'scale' must be finite; got {self.scale}")
        paths = [n.path for n in self.networks if n.path is not None]
        for a, b in ((a, b) for i, a in enumerate(paths) for b in paths[i + 1 :]):
            if f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/"):
                raise ConfigError(f"networks must lie in separate directories; got '{a}' and '{b}'")

    def scale_for(self, base_fingerprint: str, base: str) -> RecommendedScale | None:
        """The scale that was measured on a base of this vocabulary; that of the base itself where there is one."""
        found = [one for one in self.scales if one.base_fingerprint == base_fingerprint]
        return next((one for one in found if one.base == base), found[0] if found else None)

    def to_json(self) -> str:
        """The text of `config.json`: the same bytes for equal configurations, on every machine."""
        head: dict[str, Any] = {"model_type": MODEL_TYPE, "architectures": ["ValueAdapterForCausalLM"]}
        head["format_version"] = self.format_version
        return json.dumps(head | to_json(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ValueAdapterConfig:
        """Parses `config.json`.

        Raises:
            NotAValueAdapterError: it is another kind of config.json.
            IncompatibleVersionError: a newer format version than this library reads.
            ConfigError: not JSON, an unknown key, a wrong type or a value out of range.
        """
        data = dict(upgrade(_parse(text)))
        data.pop("model_type")
        architectures = data.pop("architectures", ["ValueAdapterForCausalLM"])
        if architectures != ["ValueAdapterForCausalLM"]:
            raise ConfigError(f"'architectures' must be ['ValueAdapterForCausalLM']; got {architectures!r}")
        return from_json(cls, data)


def _parse(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"config.json is not JSON (line {error.lineno}: {error.msg}); download the adapter again"
        ) from None
    if not isinstance(data, dict) or data.get("model_type") != MODEL_TYPE:
        found = data.get("model_type") if isinstance(data, dict) else type(data).__name__
        raise NotAValueAdapterError(f"config.json has model_type {found!r}; a value adapter has {MODEL_TYPE!r}")
    return data


def upgrade(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Checks the format version of a parsed config. Version 1 is the first, so there is nothing to upgrade yet.

    Raises:
        IncompatibleVersionError: a newer version.
        ConfigError: no version, or one that never was.
    """
    version = data.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ConfigError(f"'format_version' must be a whole number from 1 to {FORMAT_VERSION}; got {version!r}")
    if version > FORMAT_VERSION:
        raise IncompatibleVersionError(
            f"this adapter has format version {version}; valueadapter {__version__} reads up to {FORMAT_VERSION}. "
            "Install a newer version: pip install --upgrade valueadapter"
        )
    return data
