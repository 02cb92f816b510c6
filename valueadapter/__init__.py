"""Value adapters: post-training as a small language model whose logits are added to any base model's.

Importing this package is light: torch and transformers load when a name that needs them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from valueadapter.version import __version__ as __version__

# public name -> module that defines it (a test holds the list sorted and every name resolvable)
_EXPORTS = {
    "AdapterNameError": "errors",
    "AlignmentError": "errors",
    "ArtifactError": "errors",
    "BestOf": "judge",
    "Calibration": "calibration",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "IncompatibleBaseError": "errors",
    "IncompatibleVersionError": "errors",
    "MissingFileError": "errors",
    "MissingExtraError": "errors",
    "NotAValueAdapterError": "errors",
    "RECORDED": "prefix",
    "UnsupportedModeError": "errors",
    "ValueAdapter": "adapter",
    "ValueAdapterCache": "cache",
    "ValueAdapterConfig": "config",
    "ValueAdapterError": "errors",
    "ValueAdapterForCausalLM": "modeling",
    "ValueTrainer": "training",
    "ValueTrainingArguments": "training",
    "VocabularyAlignment": "alignment",
    "build_network": "network",
    "calibrate_scale": "calibration",
}

__all__ = [*sorted(_EXPORTS)]

if TYPE_CHECKING:
    from valueadapter.adapter import ValueAdapter as ValueAdapter
    from valueadapter.alignment import VocabularyAlignment as VocabularyAlignment
    from valueadapter.cache import ValueAdapterCache as ValueAdapterCache
    from valueadapter.calibration import Calibration as Calibration
    from valueadapter.calibration import calibrate_scale as calibrate_scale
    from valueadapter.config import ValueAdapterConfig as ValueAdapterConfig
    from valueadapter.errors import AdapterNameError as AdapterNameError
    from valueadapter.errors import AlignmentError as AlignmentError
    from valueadapter.errors import ArtifactError as ArtifactError
    from valueadapter.errors import CheckpointError as CheckpointError
    from valueadapter.errors import ConfigError as ConfigError
    from valueadapter.errors import IncompatibleBaseError as IncompatibleBaseError
    from valueadapter.errors import IncompatibleVersionError as IncompatibleVersionError
    from valueadapter.errors import MissingExtraError as MissingExtraError
    from valueadapter.errors import MissingFileError as MissingFileError
    from valueadapter.errors import NotAValueAdapterError as NotAValueAdapterError
    from valueadapter.errors import UnsupportedModeError as UnsupportedModeError
    from valueadapter.errors import ValueAdapterError as ValueAdapterError
    from valueadapter.judge import BestOf as BestOf
    from valueadapter.modeling import ValueAdapterForCausalLM as ValueAdapterForCausalLM
    from valueadapter.network import build_network as build_network
    from valueadapter.prefix import RECORDED as RECORDED
    from valueadapter.training import ValueTrainer as ValueTrainer
    from valueadapter.training import ValueTrainingArguments as ValueTrainingArguments


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'valueadapter' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f"valueadapter.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
