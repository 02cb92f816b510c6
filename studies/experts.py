"""What base, tuned and plain model cost together at every token, over a grid of weights, and what one sees of them
before the token; knows nothing of how weights are chosen.

The logits of the examples are gone through once, and a table stays: nats of every token under each weights of `GRID`.
The end's weight needs no grid: with Z the log of the sum over all tokens and Z_r over those that it raises,
log(exp Z + exp Z_r (exp w - 1)) is the sum under w.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from studies.cell import Cell, key_of
from studies.running import NAME, Say, attached, trained
from studies.store import Store
from studies.targets import TARGETS
from studies.tasks import examples_of, load_task
from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.demonstrations.responses import Record, response_texts
from valueadapter.forward.stops import end_tokens
from valueadapter.training.expert_logits import Reading
from valueadapter.training.newton import Tokens

BASE, TUNED, PLAIN = (0.0, 0.6, 0.7, 0.8, 0.9, 1.0), (0.0, 0.4, 0.5, 0.6, 0.8, 1.0), (0.0, 0.1, 0.2, 0.3)
GRID = tuple(itertools.product(BASE, TUNED, PLAIN))
"""Weights of base, tuned and plain model; the plain one's is subtracted."""
ENDS = (0.0, 1.0, 2.0, 3.0)
"""Weights of the end."""
TOKENS = 600
"""About so many tokens of a split are gone through."""


class Look(NamedTuple):
    """A split of one task on one base, token by token."""

    nats: torch.Tensor
    """(tokens, len(GRID), len(ENDS))"""
    features: torch.Tensor
    """(tokens, features) what is known before the token: entropies of base, tuned and plain model (nats); the logs of
    their likeliest tokens' probabilities; what the tuned model adds to the likeliest token beyond the plain one; and 0
    or 1 for whether base and tuned model, base and plain one, tuned and plain one would choose the same token."""
    examples: torch.Tensor
    """(tokens,) number of the example."""
    sizes: torch.Tensor
    """(examples,) UTF-8 bytes of each."""

    def bits_per_byte(self, nats: torch.Tensor) -> float:
        """Of (tokens,) nats, ends included."""
        return float(nats.double().sum()) / math.log(2) / int(self.sizes.sum())


def look(cell: Cell, base: str, store: Store, say: Say, *, held_out: bool) -> Look:
    """The table of a cell's adapter on a base, from disk if it is there."""
    what = hashlib.sha256(repr([key_of(cell), base, held_out, GRID, ENDS, TOKENS]).encode()).hexdigest()[:16]
    path = store.root / "experts" / f"{cell.task}-{base}-{what}.safetensors"
    with store.locked(f"experts-{path.stem}"):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            adapter, _ = trained(cell, store, say)
            _write(path, _looked(cell, adapter, base, held_out=held_out))
    return Look(**load_file(path))


def _write(path: Path, found: Look) -> None:
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in found._asdict().items()}, partial)
    partial.rename(path)


@torch.no_grad()
def _looked(cell: Cell, adapter: ValueAdapter, base: str, *, held_out: bool) -> Look:
    target, examples = TARGETS[base], examples_of(cell, load_task(cell.task))
    model = attached(cell, adapter, target, target.load(), examples)
    records = _first(examples.held_out if held_out else load_task(cell.task).calibration, target.tokenizer)
    ends, raised = (_ends(model, texts, records) for texts in (examples.stop_strings, ()))
    with Reading(model, [NAME], records, target.tokenizer, 8, None) as reading:
        parts = [(*_of(some, ends, raised), some.examples) for some in reading.tokens()]
    nats, features, numbers = (torch.cat(column) for column in zip(*parts, strict=True))
    sizes = [len("".join(response_texts(record)).encode()) for record in records]
    return Look(nats, features, numbers, torch.tensor(sizes))


def _first(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[Record]:
    """As many as come to `TOKENS` tokens or a little more."""
    counts = [len(tokenizer.encode("".join(response_texts(one)))) for one in records]
    total = [0, *itertools.accumulate(counts)]
    return [record for record, before in zip(records, total, strict=False) if before < TOKENS]


def _ends(model: ValueAdapterForCausalLM, texts: Sequence[str], records: Sequence[Record]) -> torch.Tensor:
    """The tokens that end an answer, these texts among them."""
    answers = [text for record in records for text in response_texts(record)]
    tokenizer = cast(PreTrainedTokenizerBase, model.base_tokenizer)
    width = int(cast(Any, model.base).get_output_embeddings().weight.shape[0])
    return torch.tensor(sorted(end_tokens(model.base, tokenizer, texts, width=width, answers=answers)))


def _of(some: Tokens, ends: torch.Tensor, raised: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Nats and features of some tokens."""
    nats = torch.empty(len(some.labels), len(GRID), len(ENDS))
    own = torch.isin(some.labels, raised) & ~some.is_end
    for column, (base, tuned, plain) in enumerate(GRID):
        weights = torch.tensor([base, tuned, -plain])
        logits = torch.einsum("m,tmv->tv", weights, some.logits)
        total, of_raised, of_ends = (logits[:, i].logsumexp(-1) for i in (slice(None), raised, ends))
        right = torch.where(some.is_end, of_ends, torch.zeros(()))
        for place, end in enumerate(ENDS):
            more = math.expm1(end)
            up = torch.where(some.is_end, _with_more(right, of_raised, more), right + own * end)
            nats[:, column, place] = _with_more(total, of_raised, more) - up
    return nats, _features(some.logits)


def _with_more(total: torch.Tensor, part: torch.Tensor, more: float) -> torch.Tensor:
    """log(exp total + more · exp part)."""
    return torch.logaddexp(total, part + math.log(more)) if more > 0 else total


def _features(logits: torch.Tensor) -> torch.Tensor:
    logs = logits.log_softmax(-1)
    entropies = -(logs.exp() * logs).sum(-1)
    top, first = logs.max(-1)
    gained = logs[:, 1].gather(1, first[:, 1:2]) - logs[:, 2].gather(1, first[:, 1:2])
    agree = torch.stack([first[:, a] == first[:, b] for a, b in ((0, 1), (0, 2), (1, 2))], dim=1)
    return torch.cat([entropies, top, gained, agree.float()], dim=1)
