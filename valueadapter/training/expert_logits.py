"""What base and networks say at every token of labelled examples' responses, gone through again and again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from valueadapter.demonstrations.responses import Record, batches, scored
from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.forward.bounded_logits import pieces
from valueadapter.forward.sum import BASE_LOGITS
from valueadapter.model.modeling import ValueAdapterForCausalLM
from valueadapter.training import newton
from valueadapter.training.newton import Problem, Tokens

ON_DISK = 2**34
"""Bytes of logits that are kept in a temporary directory between passes, if it has four times as many free; with more
of them the models run again."""


class Reading:
    """What the models say at every token of the examples' responses; little of it is in memory at a time.

    A context manager: what it keeps on disk goes with the block, within which nothing drops out.

    Args:
        model: the base with the adapters, all of which act.
        names: of the adapters.
        examples: checked demonstrations.
        tokenizer: the base's.
        batch_size: rows per forward pass.
        on_progress: called with the number of examples read since the last call.
    """

    def __init__(
        self,
        model: ValueAdapterForCausalLM,
        names: Sequence[str],
        examples: Sequence[Record],
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int,
        on_progress: Callable[[int], None] | None,
    ) -> None:
        self.model, self.examples, self.tokenizer, self.batch_size = model, examples, tokenizer, batch_size
        counts = [len(model.adapters[name].networks) for name in names]
        networks = [f"{name}.{index}" for name, count in zip(names, counts, strict=True) for index in range(count)]
        self.columns = [BASE_LOGITS, *networks]
        self.on_progress = on_progress
        self._kept: list[Path] | None = None

    def __enter__(self) -> Reading:
        self._folder = tempfile.TemporaryDirectory(prefix="valueadapter-")
        self._room = min(ON_DISK, shutil.disk_usage(self._folder.name).free // 4)
        self._modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()
        for module, training in self._modes:
            module.training = training

    def tokens(self) -> Iterator[Tokens]:
        """Some tokens after the others, in the order of the examples."""
        if self._kept is not None:
            yield from (Tokens(*torch.load(path)) for path in self._kept)
            return
        kept: list[Path] | None = []
        held = 0
        for some in self._run():
            held += some.logits.nbytes
            if kept is not None and held <= self._room:
                kept.append(Path(self._folder.name, str(len(kept))))
                torch.save(tuple(some), kept[-1])
            elif kept is not None:
                for path in kept:
                    path.unlink()
                kept = None
            yield some
        self._kept = kept

    def _run(self) -> Iterator[Tokens]:
        first = 0
        for batch in batches(self.examples, self.batch_size):
            found = scored(batch, self.tokenizer, self.model.device)
            here = found.labels != IGNORED
            rows = here.nonzero()[:, 0].cpu() + first
            is_end = found.ends[here].cpu()
            for piece in pieces(self.model, found.inputs, found.labels, value_logits="networks"):
                places = piece.places.cpu()
                columns = [piece.each[name].cpu() for name in self.columns]
                yield newton.tokens_of(columns, piece.labels.cpu(), is_end[places], rows[places])
            first += len(batch)
            if self.on_progress is not None:
                self.on_progress(len(batch))


def nats_of_base(reading: Reading, problem: Problem) -> float:
    """Nats of the examples under the base as it is without adapters."""
    model, total = reading.model, 0.0
    with model.disable_adapter():
        for batch in batches(reading.examples, reading.batch_size):
            found = scored(batch, reading.tokenizer, model.device)
            is_end = found.ends[found.labels != IGNORED].cpu()
            for piece in pieces(model, found.inputs, found.labels):
                places = piece.places.cpu()
                some = newton.tokens_of([piece.logits.cpu()], piece.labels.cpu(), is_end[places], places)
                total += float(newton.nats(some, torch.tensor([1.0, 0.0]), problem).double().sum())
    return total
