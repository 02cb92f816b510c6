"""The settings of a `ValueTrainer`: the Trainer's, and what value adapters need besides."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from valueadapter.artifact.config import Initialisation, PenaltyKind, Regularisation
from valueadapter.errors import ConfigError


@dataclass
class ValueTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what value adapters need besides."""

    penalty: PenaltyKind = field(
        default="none", metadata={"help": "Penalty on the value logits: none, l1, l2, entropy."}
    )
    penalty_coefficient: float = field(default=1.0, metadata={"help": "Weight of the penalty, 0 or more."})
    max_length: int | None = field(default=1024, metadata={"help": "Tokens kept of a demonstration."})
    data_name: str = field(default="unnamed", metadata={"help": "Hub ID or name of the data, for the record."})
    initialisation: Initialisation = field(default="zero_head", metadata={"help": "For the record: how it started."})
    initialised_from: str | None = field(default=None, metadata={"help": "For the record: Hub ID of the body."})
    num_layers: int | None = field(default=None, metadata={"help": "For the record: layers kept of the body."})
    centred: bool = field(default=True, metadata={"help": "Take the penalty after subtracting the vocabulary's mean."})
    cache_base: bool = field(default=False, metadata={"help": "Compute the base's hidden states once, to disk."})
    cache_base_dir: str | None = field(default=None, metadata={"help": "Where to; in the Hugging Face home if None."})
    release_base: bool = field(
        default=False,
        metadata={"help": "After caching, give back the memory of the base's body: the model then only trains."},
    )
    lora_rank: int | None = field(default=None, metadata={"help": "For the record: rank of the LoRA, if it is one."})
    overwrite_card: bool = field(default=False, metadata={"help": "Replace a hand-written model card on the Hub."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator picks its columns."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.regularisation()

    def regularisation(self) -> Regularisation:
        """The penalty as the artifact records it.

        Raises:
            ConfigError: unknown kind or a coefficient out of range.
        """
        if self.penalty not in ("none", "l1", "l2", "entropy"):
            raise ConfigError(f"penalty must be none, l1, l2 or entropy; got {self.penalty!r}")
        coefficient = 0.0 if self.penalty == "none" else self.penalty_coefficient
        return Regularisation(self.penalty, coefficient, centred=self.centred)
