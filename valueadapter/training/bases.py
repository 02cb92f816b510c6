"""The bases of a training run: which one reads each demonstration, and whence its hidden states.

Knows nothing of the network or of the order of the data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.adapter.causal_lm import is_sharded
from valueadapter.adapter.heads import head_now, head_of
from valueadapter.adapter.model_state import Moment, moment
from valueadapter.adapter.tokenizer_loading import side_of
from valueadapter.errors import ConfigError, IncompatibleBaseError
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.training.batch_loss import BasePart
from valueadapter.training.state_store import BaseStates, Record, Say, sample_key
from valueadapter.vocabulary.spec import VocabularySpec

SAMPLES = "sample_keys"
"""Where a batch carries the keys of its demonstrations."""


class Keyed:
    """A collator that also says which demonstrations a batch holds, as `sample_keys`.

    Args:
        collator: makes the batch, a row for each record.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        """Records -> the collator's batch and a list of keys."""
        return {**self.collator(records), SAMPLES: [sample_key(record) for record in records]}


@dataclass
class TrainingBases:
    """Bases of one vocabulary, the training base first; each reads what it reads behind the same prefix."""

    bases: Sequence[PreTrainedModel]
    seed: int = 0
    """Decides which base reads which demonstration in which epoch."""
    prefix: BasePrefix | None = None
    """What stands before each demonstration."""
    stores: dict[int, BaseStates] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._relied_on: list[tuple[PreTrainedModel, Moment]] = []
        self._checked: int | None = -1
        for base in self.bases:
            _check_head(base)
        self._prefixes = [None if self.prefix is None else self.prefix.on(base) for base in self.bases]

    def cache(
        self, data: Sequence[Record], place: Path | None, *, vocabulary: VocabularySpec, batch_size: int, say: Say
    ) -> None:
        """Computes all hidden states, so that no base runs from here on; see `BaseStates.build`."""
        for index, (base, prefix) in enumerate(zip(self.bases, self._prefixes, strict=True)):
            self.stores[index] = BaseStates.build(
                base, data, place, vocabulary=vocabulary, prefix=prefix, batch_size=batch_size, say=say
            )
        self.rely_on(self.bases)

    def rely_on(self, models: Sequence[PreTrainedModel]) -> None:
        """Has it checked in each epoch that these models compute what they compute now."""
        self._relied_on += [(model, now) for model in models if (now := moment(model)) is not None]

    def _check_models(self) -> None:
        for model, then in self._relied_on:
            if is_sharded(model):  # by now in the hands of FSDP or ZeRO-3, and no process sees it whole
                continue
            now = moment(model)
            if now is None or (now.settings, now.content) != (then.settings, then.content):
                raise ConfigError(
                    f"'{model.name_or_path}' has changed since the trainer was made, which has kept its hidden states, "
                    "or has found that it cancels out; make the trainer when the base is as it is to be"
                )

    def release(self) -> None:
        """Gives back the memory of all weights but the output heads'; hidden states must be in the cache by then."""
        self._relied_on.clear()
        kept = {head_now(base).weight.data_ptr() for base in self.bases}
        for base in self.bases:
            for module in base.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and parameter.data_ptr() not in kept:
                        module._parameters[name] = torch.nn.Parameter(parameter.new_empty(0), requires_grad=False)

    def drawn(self, sample: str, epoch: int) -> int:
        """Which base reads a demonstration in an epoch: random, and the same whenever and wherever asked."""
        digest = hashlib.sha256(f"{self.seed}:{epoch}:{sample}".encode()).digest()
        return int.from_bytes(digest[:8], "big") % len(self.bases)

    def parts(self, samples: Sequence[str] | None, *, epoch: int | None) -> tuple[BasePart, ...]:
        """The bases of a batch.

        Args:
            samples: keys of its demonstrations, or of those first ones whose loss is wanted; None where they are not
                known, which suits one base without a cache.
            epoch: passes over the data that are complete; None has the first base read everything.
        """
        if epoch != self._checked:
            self._check_models()
            self._checked = epoch
        if samples is None or epoch is None or len(self.bases) == 1:
            return (self._part(0, None, samples),)
        drawn = [self.drawn(sample, epoch) for sample in samples]
        rows = {index: [row for row, one in enumerate(drawn) if one == index] for index in sorted(set(drawn))}
        return tuple(self._part(i, torch.tensor(at), [samples[row] for row in at]) for i, at in rows.items())

    def _part(self, index: int, rows: torch.Tensor | None, samples: Sequence[str] | None) -> BasePart:
        store, states = self.stores.get(index), None
        if store is not None and samples is not None and all(sample in store for sample in samples):
            states = torch.cat([store.nothing(), *(store[sample] for sample in samples)])
        return BasePart(self.bases[index], rows, states, self._prefixes[index])


def records_of(*data: Any) -> list[Record]:
    """The tokenized demonstrations of several data sets, which may be None or mappings of them.

    Raises:
        ConfigError: data without a length, or without `input_ids` and `labels`.
    """
    found: list[Record] = []
    for part in data:
        if isinstance(part, Mapping):
            found += records_of(*part.values())
        elif part is not None:
            if not hasattr(part, "__len__") or (len(part) and not {"input_ids", "labels"} <= set(part[0])):
                raise ConfigError(
                    "cache_base needs data with a length whose records have 'input_ids' and 'labels'; "
                    f"got {type(part).__name__}. Pass a datasets.Dataset, or train without cache_base"
                )
            found += [part[index] for index in range(len(part))]
    return found


def same_vocabulary(model: ValueAdapterForCausalLM, other: PreTrainedModel) -> PreTrainedModel:
    """Another base beside that of `model`, frozen, once its vocabulary is known to be the adapter's.

    Raises:
        IncompatibleBaseError: it is not, or its tokenizer was not found.
    """
    wrapper = other if isinstance(other, ValueAdapterForCausalLM) else ValueAdapterForCausalLM(other)
    name, adapter = wrapper.base.name_or_path, model.adapters[model.only_adapter()]
    if adapter.connect(wrapper.attached.base_side(), name) is not None:
        raise IncompatibleBaseError(
            f"'{name}' has another vocabulary than the training base '{model.base.name_or_path}'; bases that take part "
            "in one run must have the same. Train on one of them; the adapter works on the other all the same"
        )
    return wrapper.base


def tokenizer_of_base(model: ValueAdapterForCausalLM, given: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer of what the training base reads: the base's own, or one of its vocabulary that is given.

    Raises:
        IncompatibleBaseError: the one given has another vocabulary.
    """
    own = model.attached.base_tokenizer()
    if given is None or given is own:
        return own
    side = model.attached.base_side()
    if wrong := side.vocabulary.differences(side.width, side_of(given, side.width).vocabulary, side.width):
        raise IncompatibleBaseError(
            f"processing_class is not the tokenizer of base model '{model.base.name_or_path}', which would read other "
            f"text than the demonstrations': {'; '.join(wrong)}. Leave it out, or give the base's"
        )
    return given


def public_name(model: PreTrainedModel) -> str:
    """A model's name for a record: its Hub ID, or of a path only the last part."""
    name = str(model.name_or_path)
    return Path(name).name if Path(name).exists() or Path(name).is_absolute() else name


def _check_head(base: PreTrainedModel) -> None:
    if head_of(base) is None:
        raise ConfigError(
            f"the logits of base '{base.name_or_path}' are not its last hidden state times its output head, so it can "
            "neither take part beside other bases nor be cached; train on it alone, without cache_base"
        )
