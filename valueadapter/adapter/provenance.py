"""Which weights a record speaks of: what was measured or trained in one state of an adapter says nothing of another.

Records (`weights`, `evaluation`, `training` of the configuration) are kept beside what the adapter computed with when
they were put into it. Knows nothing of how a record was made.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from valueadapter.adapter.model_state import plain_tensors
from valueadapter.artifact.config import (
    EvaluationRecord,
    RecommendedWeights,
    TrainingRecord,
    ValueAdapterConfig,
    Weights,
)

logger = logging.getLogger(__name__)

Record = EvaluationRecord | RecommendedWeights | TrainingRecord
States = Sequence[Mapping[str, torch.Tensor]]
_WORDS = 1024
"""Words of eight bytes that are added up; what they come to is hashed."""
_SOME = 256


class Mark(NamedTuple):
    """What a tensor holds, in little room."""

    dtype: torch.dtype
    digest: str
    """Of all elements."""
    some: torch.Tensor
    """Elements from all over it, by which it is known again in another dtype."""

    def same(self, other: Mark) -> bool:
        """Whether two tensors hold the same, but for the rounding to a dtype that one of them was moved to."""
        if self.dtype == other.dtype:
            return self.digest == other.digest
        return any(_equal(a.some.to(b.dtype), b.some) for a, b in ((self, other), (other, self)))


@dataclass(frozen=True)
class Standing:
    """What an adapter computes with at a moment."""

    marks: Mapping[str, Mark | None]
    """`<index>.<tensor>` of each network in the artifact -> what it holds; None where that is out of reach."""
    reading: tuple[Any, ...]
    """What else decides what it adds to a base: what is read, and the prefix."""
    defaults: Weights
    """What it counts for on a base that nobody measured."""

    @classmethod
    def of(
        cls, config: ValueAdapterConfig, networks: Sequence[PreTrainedModel], states: States | None = None
    ) -> Standing:
        """How an adapter stands.

        Args:
            config: of the adapter.
            networks: its networks.
            states: for each network weights in the place of its own.
        """
        marks: dict[str, Mark | None] = {}
        for index, (spec, network) in enumerate(zip(config.networks, networks, strict=True)):
            if spec.path is not None:  # what is pinned on the Hub is not saved
                state = network.state_dict() if states is None else states[index]
                marks |= {f"{index}.{name}": _mark(tensor) for name, tensor in state.items()}
        read = tuple(spec.reads_prefix for spec in config.networks)
        reading = read, config.connection, config.vocabulary, config.base_prefix
        return cls(marks, reading, config.default_weights)

    def holds(self, record: Record, then: Standing, *, partly: bool) -> bool:
        """Whether a record of what stood then holds now.

        A training is that of the networks' parameters alone. What names the weights that it speaks of does not depend
        on the default ones.

        Args:
            record: the record.
            then: what stood when it was made.
            partly: whether tensors may be missing now (tied ones, of a state that was gathered).
        """
        if not isinstance(record, TrainingRecord) and then.reading != self.reading:
            return False
        of_defaults = isinstance(record, EvaluationRecord) and record.weights is None
        if of_defaults and then.defaults != self.defaults:
            return False
        if self.marks.keys() - then.marks.keys() or (then.marks.keys() - self.marks.keys() and not partly):
            return False
        pairs = [(self.marks[name], then.marks[name]) for name in self.marks.keys() & then.marks.keys()]
        return all(now is None or old is None or now.same(old) for now, old in pairs)


class Provenance:
    """The records of an adapter, each with what stood when it was put into the configuration.

    Args:
        config: of the adapter.
        networks: its networks.
        known: of the adapter that it was made from; records that this one has not are taken to speak of `networks`.
    """

    def __init__(
        self, config: ValueAdapterConfig, networks: Sequence[PreTrainedModel], known: Provenance | None = None
    ) -> None:
        self.stood: list[tuple[Record, Standing | None]]
        then = {id(record): standing for record, standing in known.stood} if known is not None else {}
        records = _records_of(config)
        now = Standing.of(config, networks) if any(id(record) not in then for record in records) else None
        self.stood = [(record, then.get(id(record), now)) for record in records]

    def true_records(
        self, config: ValueAdapterConfig, networks: Sequence[PreTrainedModel], states: States | None = None
    ) -> ValueAdapterConfig:
        """The configuration without the records that speak of what the adapter no longer is, which is logged.

        Args:
            config: the adapter's.
            networks: its networks.
            states: for each network weights in the place of its own.
        """
        if not self.stood:
            return config
        now = Standing.of(config, networks, states)
        gone = [
            record
            for record, then in self.stood
            if then is not None and not now.holds(record, then, partly=states is not None)
        ]
        if not gone:
            return config
        logger.warning(
            "the adapter has changed since these records were made, so they are left out: %s. Measure it anew",
            "; ".join(map(_in_words, gone)),
        )
        return _without(config, gone)


def _records_of(config: ValueAdapterConfig) -> list[Record]:
    """The records of a configuration that speak of its weights."""
    return [*config.weights, *config.evaluation, *([config.training] if config.training is not None else [])]


def _without(config: ValueAdapterConfig, gone: Sequence[Record]) -> ValueAdapterConfig:
    """The configuration without some of its records."""
    lost = {id(record) for record in gone}
    training = None if id(config.training) in lost else config.training
    weights = tuple(one for one in config.weights if id(one) not in lost)
    evaluation = tuple(one for one in config.evaluation if id(one) not in lost)
    return replace(config, weights=weights, evaluation=evaluation, training=training)


def _in_words(record: Record) -> str:
    """A record, for a message."""
    if isinstance(record, RecommendedWeights):
        return f"weights fitted on '{record.base}'"
    if isinstance(record, EvaluationRecord):
        return f"evaluation on '{record.base}' with {record.data}"
    return f"training on {record.data}, {record.steps} steps"


def _mark(tensor: torch.Tensor) -> Mark | None:
    """None for a tensor whose elements are out of reach."""
    digest, some = hashlib.sha256(), []
    try:
        for part in plain_tensors(tensor):
            flat = (part.clone() if part.storage_offset() else part.contiguous()).reshape(-1)  # words must be aligned
            some.append(flat[:: max(1, len(flat) // _SOME)].cpu().clone())
            data = flat.view(torch.uint8)
            whole = len(data) - len(data) % (8 * _WORDS)
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(_buffer(data[:whole].view(torch.int64).reshape(-1, _WORDS).sum(1)))
            digest.update(_buffer(data[whole:]))
    except (RuntimeError, NotImplementedError, TypeError):
        return None
    return Mark(tensor.dtype, digest.hexdigest(), some[0] if len(some) == 1 else torch.empty(0))


def _buffer(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.cpu().numpy()
    return memoryview(array)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.numel() > 0 and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
