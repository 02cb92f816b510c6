"""How an adapter came to be and what was measured of it: records that change nothing of what it computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal

from valueadapter.artifact.config.number import finite, hold
from valueadapter.artifact.config.parts import Initialisation, PenaltyKind, Weights
from valueadapter.errors import ConfigError
from valueadapter.vocabulary.spec import SHA256
from valueadapter.vocabulary.strict_json import OMIT


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
        object.__setattr__(self, "coefficient", finite("'coefficient' of the penalty", self.coefficient, least=0))


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
    learning_rate: float | None = field(default=None, metadata=OMIT)
    """Peak of the learning-rate schedule."""
    epochs: float | None = field(default=None, metadata=OMIT)
    """Passes over the demonstrations."""
    lora_rank: int | None = field(default=None, metadata=OMIT)
    """Rank of the LoRA that was trained; null where all weights of the network were."""
    other_bases: tuple[str, ...] = field(default=(), metadata=OMIT)
    """Hub IDs of bases that took part in training besides the training base."""

    def __post_init__(self) -> None:
        for name in ("num_examples", "num_response_tokens", "steps"):
            if getattr(self, name) < 0:
                raise ConfigError(f"'{name}' must be 0 or more; got {getattr(self, name)}")
        if self.num_layers is not None and self.num_layers < 1:
            raise ConfigError(f"'num_layers' must be at least 1 or null; got {self.num_layers}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ConfigError(f"'lora_rank' must be at least 1 or null; got {self.lora_rank}")
        hold(self, finite, "loss_first", "loss_last", "learning_rate", "epochs")


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
    fewshot_bits_per_byte: float | None = field(default=None, metadata=OMIT)
    """The base with `num_fewshot` demonstrations in its prompt and no adapter; null where not measured."""
    fewshot_exact_match: float | None = field(default=None, metadata=OMIT)
    """Exact match of the same."""
    num_fewshot: int | None = field(default=None, metadata=OMIT)
    """Demonstrations in the prompt of the few-shot arm."""
    finetuned_bits_per_byte: float | None = field(default=None, metadata=OMIT)
    """The base fine-tuned directly, with LoRA, on the demonstrations; null where not measured."""
    finetuned_exact_match: float | None = field(default=None, metadata=OMIT)
    """Exact match of the same."""
    gain_recovered: float | None = field(default=None, metadata=OMIT)
    """(base - adapted) / (base - finetuned) in bits per byte: 1 where the adapter is worth a fine-tuning."""
    weights: Weights | None = field(default=None, metadata=OMIT)
    """What each summand counted for in the adapted arm; null in records of format version 1: the coefficients."""
    base_total_bits_per_byte: float | None = field(default=None, metadata=OMIT)
    """Bits of the responses and of what ends them, the base alone; null where not measured."""
    base_ends: float | None = field(default=None, metadata=OMIT)
    """Share of answers that end by themselves, 0 to 1, of the base alone; null where not measured."""
    fewshot_total_bits_per_byte: float | None = field(default=None, metadata=OMIT)
    """The same with demonstrations in its prompt."""
    fewshot_ends: float | None = field(default=None, metadata=OMIT)
    """The same."""
    donor_total_bits_per_byte: float | None = field(default=None, metadata=OMIT)
    """Of the small tuned model alone."""
    donor_ends: float | None = field(default=None, metadata=OMIT)
    """The same."""
    adapted_total_bits_per_byte: float | None = field(default=None, metadata=OMIT)
    """Of base + adapter."""
    adapted_ends: float | None = field(default=None, metadata=OMIT)
    """The same."""
    finetuned_total_bits_per_byte: float | None = field(default=None, metadata=OMIT)
    """Of the base fine-tuned directly."""
    finetuned_ends: float | None = field(default=None, metadata=OMIT)
    """The same."""

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ConfigError(f"'num_examples' must be at least 1; got {self.num_examples}")
        arms = ("base", "fewshot", "donor", "adapted", "finetuned")
        bits = [f"{arm}_{metric}" for arm in arms for metric in ("bits_per_byte", "total_bits_per_byte")]
        hold(self, finite, "scale", "gain_recovered", *bits)
        for name in (f"{arm}_{metric}" for arm in arms for metric in ("exact_match", "ends")):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"'{name}' must lie between 0 and 1; got {value}")


def same_base(one: str, other: str) -> bool:
    """Whether two names may be of one base: the same, or one Hub ID and a directory that is called so."""
    return PurePath(one).name == PurePath(other).name


@dataclass(frozen=True)
class RecommendedWeights:
    """The weights that served best on a base, and the figures that say so. Bits are per UTF-8 byte of the responses."""

    base_fingerprint: str
    """SHA-256 over (id, bytes, special) of the base's tokens, as in `vocabulary.byte_fingerprint`; 64 hex."""
    base: str
    """Hub ID or name of the base they were fitted on."""
    weights: Weights
    """What each summand counts for on that base."""
    data: str
    """Hub ID or name of the calibration examples."""
    num_examples: int
    """How many there were; 0 where the weights are those of the training, which left none to measure on."""
    base_bits_per_byte: float | None = None
    """Bits of the calibration examples' responses, ends included: the base alone; null without examples."""
    adapted_bits_per_byte: float | None = None
    """The same for base + adapter with these weights."""
    expected_gain: float | None = field(default=None, metadata=OMIT)
    """Bits that examples which were not fitted on cost less than at the adapter's default weights, by
    cross-validation; null where too few were there to tell."""
    expected_gain_low: float | None = field(default=None, metadata=OMIT)
    """Lower end of its 95 % interval."""
    expected_gain_high: float | None = field(default=None, metadata=OMIT)
    """Upper end."""
    ends_counted: bool = True
    """Whether the bits hold the tokens that end a response; false in records of format version 1."""
    for_vocabulary: bool = True
    """Whether other bases of this vocabulary that nobody measured get these weights too; false on the training base,
    where the tuned network counts for more than elsewhere."""
    scale: float = 1.0
    """The scale to act at; 1 but in records of format version 1."""

    def __post_init__(self) -> None:
        if not SHA256.fullmatch(self.base_fingerprint):
            raise ConfigError(f"'base_fingerprint' must be 64 hex digits; got {self.base_fingerprint!r}")
        least = 0 if self.ends_counted else 1
        if self.num_examples < least:
            raise ConfigError(f"'num_examples' must be at least {least}; got {self.num_examples}")
        if self.num_examples and None in (self.base_bits_per_byte, self.adapted_bits_per_byte):
            raise ConfigError(
                "'base_bits_per_byte' and 'adapted_bits_per_byte' must be numbers where there are examples"
            )
        gains = ("expected_gain", "expected_gain_low", "expected_gain_high")
        hold(self, finite, "scale", "base_bits_per_byte", "adapted_bits_per_byte", *gains)

    @property
    def found_on(self) -> str:
        """Where the weights come from, for people."""
        if not self.num_examples or self.base_bits_per_byte is None or self.adapted_bits_per_byte is None:
            return "as in training"
        gained = f"{self.base_bits_per_byte:.3f} -> {self.adapted_bits_per_byte:.3f} bits per byte"
        return f"fitted on {self.num_examples} examples of {self.data} ({gained})"
