"""What a served directory's config.json says beside the base's own settings; knows neither tensors nor vLLM."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from valueadapter.errors import ConfigError, IncompatibleVersionError

KEY = "value_adapter"
"""Of the block in config.json."""
SCALE_KEY = "value_adapter_scale"
"""Beside it, so that `--hf-overrides '{"value_adapter_scale": 0.5}'` changes it."""
WEIGHTS = "value_networks.safetensors"
"""The tensors that are the adapters' own, each under `voice_<index>/<its name>`."""
DRAFT = "draft"
"""Directory of the tuned network as a model of its own, which drafts."""
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """Where the weights of a model lie."""

    name: str
    """Hub ID, or a directory of this machine."""
    revision: str | None = None
    """Commit on the Hub."""


@dataclass(frozen=True)
class Voice:
    """A network as it runs: a body, perhaps with a LoRA, and its weight in the sum."""

    config: dict[str, Any]
    """The config.json of its model."""
    weight: float
    """Of its logits."""
    body: Checkpoint | None
    """Whose weights it has, which voices of the same body hold once; None where they lie in the directory."""
    lora_ranks: dict[str, int] = dataclasses.field(default_factory=dict)
    """Module, as transformers names it, -> rank of its LoRA; empty where it has none."""


@dataclass(frozen=True)
class Served:
    """The sum that the engine computes: `base + scale · ((base_weight - 1) · base + Σ weight · voice + end)`."""

    base: Checkpoint
    architectures: tuple[str, ...]
    """Of the base."""
    voices: tuple[Voice, ...]
    base_weight: float
    """Of the base's logits."""
    end_weight: float
    """Added to the logits of the tokens that end a text, in nats."""
    ends: tuple[int, ...]
    """Those tokens."""
    context: int | None
    """The most positions that every model reads; None where none says."""
    stop_strings: tuple[str, ...] = ()
    """Texts that end an answer."""
    adapters: tuple[str, ...] = ()
    """What it was made of, for people."""

    def to_json(self) -> dict[str, Any]:
        """The block of config.json."""
        return {"version": _VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Served:
        """The block of config.json, read.

        Raises:
            IncompatibleVersionError: it was written by a later valueadapter.
            ConfigError: it is not what `valueadapter export --to vllm` writes.
        """
        if (version := data.get("version")) != _VERSION:
            raise IncompatibleVersionError(
                f"'{KEY}' in config.json has version {version!r}; this valueadapter serves version {_VERSION}. Export "
                "the adapter again (valueadapter export --to vllm), or install a newer valueadapter"
            )
        try:
            given = {key: value for key, value in data.items() if key != "version"}
            voices = tuple(
                Voice(**{**voice, "body": voice["body"] and Checkpoint(**voice["body"])}) for voice in given["voices"]
            )
            lists = {key: tuple(given[key]) for key in ("architectures", "ends", "stop_strings", "adapters")}
            return cls(**{**given, **lists, "voices": voices, "base": Checkpoint(**given["base"])})
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"'{KEY}' in config.json is not what `valueadapter export --to vllm` writes ({error}); export it again"
            ) from None
