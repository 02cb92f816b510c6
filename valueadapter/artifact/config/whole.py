"""`config.json` as one frozen dataclass: everything that an adapter is, except weights and tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from valueadapter.artifact.config.history import EvaluationRecord, RecommendedWeights, TrainingRecord, same_base
from valueadapter.artifact.config.number import finite, hold
from valueadapter.artifact.config.parts import Connection, NetworkSpec, Weights, check_name, check_revision
from valueadapter.artifact.config.prefix import Prefix, prefix_text
from valueadapter.errors import ConfigError, IncompatibleVersionError, NotAValueAdapterError
from valueadapter.version import __version__
from valueadapter.vocabulary.spec import VocabularySpec
from valueadapter.vocabulary.strict_json import OMIT, checked_text, from_json, to_json

FORMAT_VERSION = 2
MODEL_TYPE = "value_adapter"


@dataclass(frozen=True)
class ValueAdapterConfig:
    """Everything an adapter is, except weights and tokenizer; `config.json` at the root of the artifact.

    Raises:
        ConfigError: a value is out of range, or asks for what this version does not build.
    """

    base_model_name_or_path: str
    """Hub ID of the base model that the adapter was trained on."""
    networks: tuple[NetworkSpec, ...]
    """What is added up, each network with its weight for bases that nobody measured. At least one."""
    vocabulary: VocabularySpec
    """The vocabulary of the value logits (the training base's)."""
    base_model_revision: str | None = None
    """Commit hash of that base, where the Hub gave one."""
    connection: Connection = "residual"
    """What the networks read: `residual` the tokens, `cascade` the base's prediction, `cascade_with_text` both."""
    base_weight: float = 1.0
    """Weight of the base's own logits on bases that nobody measured. Finite."""
    end_weight: float = 0.0
    """What is added there to the logits of the tokens that end a text, in nats. Finite."""
    scale: float = 1.0
    """The scale to act at, where nobody measured: logits = base logits + scale · value logits. 1 is the adapter as its
    weights say; another is that of an adapter of format version 1, or one that was asked for. Finite."""
    base_prefix: Prefix | None = None
    """Text or chat messages that the base reads before the prompt; null for none."""
    training: TrainingRecord | None = None
    """How it was trained; null for adapters that needed no training."""
    evaluation: tuple[EvaluationRecord, ...] = ()
    """Measured results, one per base and held-out set."""
    weights: tuple[RecommendedWeights, ...] = field(default=(), metadata=OMIT)
    """Weights for bases they were fitted on, in place of the default ones; left out where there are none."""
    stop_strings: tuple[str, ...] = field(default=(), metadata=OMIT)
    """Texts that end an answer besides the base's own tokens: what stands between the examples of the prefix."""
    format_version: int = FORMAT_VERSION
    """Version of the artifact format."""

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(f"'format_version' must be {FORMAT_VERSION} in this version; got {self.format_version}")
        check_name("base_model_name_or_path", self.base_model_name_or_path)
        if self.base_model_revision is not None:
            check_revision("base_model_revision", self.base_model_revision)
        for text in _texts(self.base_prefix):
            if "\0" in checked_text(text, "base_prefix"):
                raise ConfigError("'base_prefix' holds NUL (U+0000), which no tokenizer is made for; take it out")
        if not self.networks:
            raise ConfigError("'networks' is empty; expected at least one value network")
        if self.connection not in get_args(Connection):
            raise ConfigError(
                f"'connection' must be one of {', '.join(map(repr, get_args(Connection)))}; got {self.connection!r}"
            )
        hold(self, finite, "scale", "base_weight", "end_weight")
        for one in self.weights:
            if len(one.weights.networks) != len(self.networks):
                raise ConfigError(
                    f"the weights for '{one.base}' must name one for each of {len(self.networks)} networks; got "
                    f"{len(one.weights.networks)}"
                )
        if not all(self.stop_strings) or any("\0" in checked_text(text, "stop_strings") for text in self.stop_strings):
            raise ConfigError(f"'stop_strings' must be texts that are not empty, without NUL; got {self.stop_strings}")
        if self.base_prefix is not None and not self.base_prefix:
            raise ConfigError("'base_prefix' is empty; use null for none")
        if self.connection != "residual" and any(network.reads_prefix for network in self.networks):
            raise ConfigError(f"a network with 'reads_prefix' reads tokens; 'connection' is {self.connection!r}")
        paths = [n.path for n in self.networks if n.path is not None]
        for a, b in ((a, b) for i, a in enumerate(paths) for b in paths[i + 1 :]):
            if f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/"):
                raise ConfigError(f"networks must lie in separate directories; got '{a}' and '{b}'")

    @property
    def default_weights(self) -> Weights:
        """What each summand counts for on a base that nobody measured."""
        return Weights(self.base_weight, tuple(one.coefficient for one in self.networks), self.end_weight)

    def weights_for(self, base_fingerprint: str, base: str) -> RecommendedWeights | None:
        """The weights that were fitted on a base; else on another of its vocabulary, where these are for all of it.

        Args:
            base_fingerprint: of the base's vocabulary.
            base: its Hub ID, name or directory; a directory is known by its last part.
        """
        found = [one for one in self.weights if one.base_fingerprint == base_fingerprint]
        ways: tuple[Callable[[RecommendedWeights], bool], ...] = (
            lambda one: one.base == base,
            lambda one: one.ends_counted and same_base(one.base, base),  # version 1 knew names alone
            lambda one: one.for_vocabulary,
        )
        return next((one for way in ways for one in found if way(one)), None)

    def __str__(self) -> str:
        return "\n".join([f"{type(self).__name__}(", *self.lines(), ")"])

    def lines(self, models: Sequence[str] = ()) -> list[str]:
        """What a person wants to know of an adapter first, without digests and records.

        Args:
            models: what each network is, where they are loaded.
        """
        own = self.default_weights
        lines = [f"trained on: {self.base_model_name_or_path}", f"scale {self.scale:g}: {own}"]
        for index, network in enumerate(self.networks):
            place = network.path if network.repo is None else f"{network.repo} at {str(network.revision)[:12]}"
            said = [models[index]] if models else []
            said += [str(place)] + ["reads the prefix"] * network.reads_prefix
            lines.append(f"network {index}: {', '.join(said)}")
        if self.connection != "residual":
            lines.append(f"connection: {self.connection}")
        if self.base_prefix is not None:
            text = prefix_text(self.base_prefix)
            lines.append(f"prefix: {len(text):,} characters, {text[:40]!r}{'…' * (len(text) > 40)}")
        if self.stop_strings:
            lines.append(f"answers end at: {', '.join(map(repr, self.stop_strings))}")
        if self.weights:
            lines.append(f"weights of their own: {', '.join(dict.fromkeys(one.base for one in self.weights))}")
        return [f"  {line}" for line in lines]

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
        try:
            return cls._from_json(text)
        except RecursionError:
            raise ConfigError("config.json is nested too deep; download the adapter again") from None

    @classmethod
    def _from_json(cls, text: str) -> ValueAdapterConfig:
        data = dict(upgrade(_parse(text)))
        data.pop("model_type")
        architectures = data.pop("architectures", ["ValueAdapterForCausalLM"])
        if architectures != ["ValueAdapterForCausalLM"]:
            raise ConfigError(f"'architectures' must be ['ValueAdapterForCausalLM']; got {architectures!r}")
        return from_json(cls, data)


def _texts(prefix: Prefix | None) -> Iterator[str]:
    if isinstance(prefix, str):
        yield prefix
    for message in () if prefix is None or isinstance(prefix, str) else prefix:
        yield from (message.role, message.content)


def _parse(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"config.json is not JSON (line {error.lineno}: {error.msg}); download the adapter again"
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise ConfigError(f"config.json is not JSON ({error}); download the adapter again") from None
    if not isinstance(data, dict) or data.get("model_type") != MODEL_TYPE:
        found = data.get("model_type") if isinstance(data, dict) else type(data).__name__
        raise NotAValueAdapterError(f"config.json has model_type {found!r}; a value adapter has {MODEL_TYPE!r}")
    return data


def upgrade(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """A parsed config of any version that there was, as one of this version.

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
    return _from_version_1(data) if version == 1 else data


def _from_version_1(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Version 1 has one scale for each base, and no weights besides the networks' coefficients.

    Every scale gives the logits that it gave: the weights are the coefficients, and the scale stays the scale.
    """
    if new := sorted(data.keys() & {"base_weight", "end_weight", "weights", "stop_strings"}):
        raise ConfigError(f"unknown key '{new[0]}' in config.json of format version 1")
    data = {**data, "format_version": 2}
    scales = data.pop("scales", [])
    keys = {"base_fingerprint", "base", "scale", "base_bits_per_byte", "adapted_bits_per_byte", "data", "num_examples"}
    if not isinstance(scales, list) or not all(isinstance(one, dict) and one.keys() == keys for one in scales):
        raise ConfigError(f"'scales' must be a list of objects with {', '.join(sorted(keys))}; got {str(scales)[:80]}")
    if not scales:
        return data
    given = data.get("networks")
    networks = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    each = {"base": 1.0, "networks": [one.get("coefficient", 1.0) for one in networks]}
    data["weights"] = [{**one, "weights": each, "ends_counted": False} for one in scales]
    return data
