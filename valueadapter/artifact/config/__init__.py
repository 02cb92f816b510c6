"""What `config.json` of an adapter says, as frozen dataclasses; knows nothing of files, tensors or the Hub.

`docs/format.md` is the normative description. A field is documented once, by the string under it.
"""

from valueadapter.artifact.config.history import (
    EvaluationRecord,
    RecommendedWeights,
    Regularisation,
    TrainingRecord,
    same_base,
)
from valueadapter.artifact.config.parts import Connection, Initialisation, NetworkSpec, PenaltyKind, Weights
from valueadapter.artifact.config.prefix import Message, Prefix, prefix_size, prefix_text
from valueadapter.artifact.config.whole import FORMAT_VERSION, MODEL_TYPE, ValueAdapterConfig, upgrade

__all__ = [
    "FORMAT_VERSION",
    "MODEL_TYPE",
    "Connection",
    "EvaluationRecord",
    "Initialisation",
    "Message",
    "NetworkSpec",
    "PenaltyKind",
    "Prefix",
    "RecommendedWeights",
    "Regularisation",
    "TrainingRecord",
    "ValueAdapterConfig",
    "Weights",
    "prefix_size",
    "prefix_text",
    "same_base",
    "upgrade",
]
