"""The settings of a `ValueTrainer`: the Trainer's with the recipe's defaults, and what value adapters need besides."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import SchedulerType, TrainingArguments

from valueadapter.artifact.config import Initialisation, PenaltyKind, Regularisation
from valueadapter.artifact.config.number import finite, whole
from valueadapter.compat import require
from valueadapter.errors import ConfigError


@dataclass
class ValueTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults that `valueadapter train` has for its LoRA pair, and a few fields more.

    The defaults are two passes in batches of 8, and a cosine from 1e-3 after 5 steps of warmup; the loss is logged
    twenty times. A full network (`build_network`) learns at `learning_rate=1e-4`, in one pass. All else is the
    Trainer's.

    Raises:
        ConfigError: an unknown penalty, or a number that is none or out of range.
    """

    # -- the recipe's ------------------------------------------------------------------------------------------------
    num_train_epochs: float = field(default=2.0, metadata={"help": "Passes over the demonstrations."})
    """Passes over the demonstrations."""
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak of the learning rate."})
    """Peak of the schedule; that of a LoRA."""
    lr_scheduler_type: SchedulerType | str = field(default="cosine", metadata={"help": "How the learning rate falls."})
    """How the learning rate falls from its peak."""
    warmup_steps: float = field(
        default=5, metadata={"help": "Steps in which the learning rate rises; below 1 a share of all."}
    )
    """Steps in which it rises to its peak; below 1 a share of all."""
    logging_steps: float = field(default=0.05, metadata={"help": "Log after so many steps; below 1 a share of all."})
    """The loss is logged after so many steps; below 1 a share of all."""
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step, too."})
    """Whether the loss of the first step is logged, which the record names."""
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator picks its columns."})
    """The collator picks its columns, so that none must be removed."""

    # -- of value adapters -------------------------------------------------------------------------------------------
    max_length: int | None = field(default=1024, metadata={"help": "Tokens kept of a demonstration."})
    """Tokens kept of a demonstration; None keeps all."""
    penalty: PenaltyKind = field(
        default="none", metadata={"help": "Penalty on the value logits: none, l1, l2, entropy."}
    )
    """Penalty on the value logits at the response tokens: `none`, `l1` (mean |v|), `l2` (mean v²) or `entropy`."""
    penalty_coefficient: float = field(default=1.0, metadata={"help": "Weight of the penalty, 0 or more."})
    """Weight of the penalty beside the cross-entropy, 0 or more."""
    centred: bool = field(default=True, metadata={"help": "Take the penalty after subtracting the vocabulary's mean."})
    """Whether the penalty is taken after subtracting the mean over the vocabulary."""
    cache_base: bool = field(default=False, metadata={"help": "Compute the base's hidden states once, to disk."})
    """Whether the base's hidden states at the response tokens are computed once, to disk (of a full network)."""
    cache_base_dir: str | None = field(default=None, metadata={"help": "Where to; in the Hugging Face home if None."})
    """Where to; None is in the Hugging Face home."""
    release_base: bool = field(
        default=False,
        metadata={"help": "After caching, give back the memory of the base's body: the model only trains."},
    )
    """Whether the memory of the base's body is given back after caching: the model then only trains."""
    overwrite_card: bool = field(default=False, metadata={"help": "Replace a hand-written model card on the Hub."})
    """Whether a model card on the Hub that a person wrote or edited is replaced."""

    # -- for the record ----------------------------------------------------------------------------------------------
    data_name: str = field(default="unnamed", metadata={"help": "Hub ID or name of the data, for the record."})
    """Hub ID or name of the data."""
    initialisation: Initialisation | None = field(
        default=None, metadata={"help": "For the record: how the network started."}
    )
    """How the network started: `zero_head`, `pretrained` or `random`. None is `pretrained` for a LoRA, and otherwise
    `zero_head`, as `build_network` has it."""
    initialised_from: str | None = field(default=None, metadata={"help": "For the record: Hub ID of the body."})
    """Hub ID of the model whose body it started from."""
    num_layers: int | None = field(default=None, metadata={"help": "For the record: layers kept of the body."})
    """Layers kept of that body; None is all."""
    lora_rank: int | None = field(default=None, metadata={"help": "For the record: rank of the LoRA, if it is one."})
    """Rank of the LoRA; None is the network's own, where it is one."""

    def __post_init__(self) -> None:
        require("train", "accelerate", "datasets")  # whoever trains makes these first
        super().__post_init__()
        self.penalty_coefficient = finite("penalty_coefficient", self.penalty_coefficient, least=0)
        for name in ("max_length", "num_layers", "lora_rank"):
            if (given := getattr(self, name)) is not None:
                setattr(self, name, whole(name, given, least=1))
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
