"""Value adapters: post-training as a small language model whose logits are added to any base model's.

Importing this package is light: torch and transformers load when a name that needs them is first used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from valueadapter.compat import check_installed
from valueadapter.version import __version__ as __version__

check_installed()

# public name -> module that defines it (a test holds the list sorted and every name resolvable)
_EXPORTS = {
    "AdapterNameError": "errors",
    "AlignmentError": "errors",
    "ArtifactError": "errors",
    "BestOf": "evaluation.judge",
    "Calibration": "training.calibration",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "IncompatibleBaseError": "errors",
    "IncompatibleVersionError": "errors",
    "MissingFileError": "errors",
    "MissingExtraError": "errors",
    "NotAValueAdapterError": "errors",
    "RECORDED": "artifact.config.prefix",
    "UnsupportedModeError": "errors",
    "ValueAdapter": "adapter.value_adapter",
    "ValueAdapterCache": "forward.cache",
    "ValueAdapterConfig": "artifact.config",
    "ValueAdapterError": "errors",
    "ValueAdapterForCausalLM": "model.modeling",
    "ValueTrainer": "training.trainer",
    "ValueTrainingArguments": "training.arguments",
    "VocabularyAlignment": "vocabulary.alignment",
    "Weights": "artifact.config",
    "best_of": "evaluation.judge",
    "build_lora_network": "adapter.lora",
    "build_network": "adapter.network_building",
    "calibrate": "training.calibration",
    "distill_into_lora": "training.distillation",
    "trace": "evaluation.trace",
    "value_score": "evaluation.judge",
}

__all__ = [*sorted(_EXPORTS)]

if TYPE_CHECKING:
    from valueadapter.adapter.lora import build_lora_network as build_lora_network
    from valueadapter.adapter.network_building import build_network as build_network
    from valueadapter.adapter.value_adapter import ValueAdapter as ValueAdapter
    from valueadapter.artifact.config import ValueAdapterConfig as ValueAdapterConfig
    from valueadapter.artifact.config import Weights as Weights
    from valueadapter.artifact.config.prefix import RECORDED as RECORDED
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
    from valueadapter.evaluation.judge import BestOf as BestOf
    from valueadapter.evaluation.judge import best_of as best_of
    from valueadapter.evaluation.judge import value_score as value_score
    from valueadapter.evaluation.trace import trace as trace
    from valueadapter.forward.cache import ValueAdapterCache as ValueAdapterCache
    from valueadapter.model.modeling import ValueAdapterForCausalLM as ValueAdapterForCausalLM
    from valueadapter.training.arguments import ValueTrainingArguments as ValueTrainingArguments
    from valueadapter.training.calibration import Calibration as Calibration
    from valueadapter.training.calibration import calibrate as calibrate
    from valueadapter.training.distillation import distill_into_lora as distill_into_lora
    from valueadapter.training.trainer import ValueTrainer as ValueTrainer
    from valueadapter.vocabulary.alignment import VocabularyAlignment as VocabularyAlignment


def lazy_face(package: str, exports: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names are imported when they are first asked for.

    Args:
        package: its dotted name.
        exports: public name -> module that defines it, as from inside the package.
    """

    def get(name: str) -> object:
        if name not in exports:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}; it offers {', '.join(sorted(exports))}"
            )
        return getattr(importlib.import_module(f".{exports[name]}", package), name)

    return get, lambda: sorted({*exports, *vars(sys.modules[package])})


__getattr__, __dir__ = lazy_face(__name__, _EXPORTS)
