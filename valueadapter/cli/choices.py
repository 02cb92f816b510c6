"""The words that options choose from, as `--help` shows them; what each means is said where it is taken up.

Enumerations of our own, since the oldest typer that may be installed knows no `Literal`; a test holds them against the
library's.
"""

from __future__ import annotations

from enum import StrEnum


class Dtype(StrEnum):
    """How numbers are held."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class TrainingDtype(StrEnum):
    """The same, where something is trained."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Network(StrEnum):
    """What is trained."""

    lora = "lora"
    full = "full"


class Start(StrEnum):
    """How a full network starts."""

    zero_head = "zero_head"
    pretrained = "pretrained"
    random = "random"


class Connection(StrEnum):
    """What a network reads."""

    residual = "residual"
    cascade = "cascade"
    cascade_with_text = "cascade_with_text"


class Penalty(StrEnum):
    """On the value logits."""

    none = "none"
    l1 = "l1"
    l2 = "l2"
    entropy = "entropy"


class Target(StrEnum):
    """What an adapter is exported to."""

    custom_generate = "custom_generate"
    logits_processor = "logits_processor"
    vllm = "vllm"
