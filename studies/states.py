"""What a base computes for the scored responses, once: the last hidden state before every response token, on disk.

The base's logits are its head applied to them, so no cell runs a base's body again. Knows nothing of adapters.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from studies.store import Store
from studies.targets import Target
from studies.tasks import Record
from valueadapter.demonstrations.tokenized import IGNORED, encode
from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.prefix_tokens import prefix_ids

VERSION = 2
BATCH = 16
FIRST, MIDDLE, LAST = 0, 1, 2
"""Which token of its response a position predicts: the first, the end of sequence, or one between."""


@dataclass(frozen=True)
class Encoded:
    """An example in a tokenizer's tokens."""

    number: int
    """Its place in the list of examples."""
    ids: list[int]
    """Prompt and response."""
    positions: list[int]
    """Where the tokens of the response are predicted: one before each."""
    labels: list[int]
    """The tokens of the response."""


@dataclass(frozen=True)
class Tokens:
    """One row for each response token of all examples, in the order of the examples."""

    labels: torch.Tensor
    """(tokens) the token."""
    examples: torch.Tensor
    """(tokens) the example's number."""
    kinds: torch.Tensor
    """(tokens) FIRST, MIDDLE or LAST."""
    counted: torch.Tensor
    """(tokens) whether it is text; control tokens do not count in bits per byte."""

    @classmethod
    def of(cls, examples: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase) -> Tokens:
        """The rows of these examples."""
        control = set(tokenizer.all_special_ids)
        labels = [label for example in examples for label in example.labels]
        numbers = [example.number for example in examples for _ in example.labels]
        kinds = [kind for example in examples for kind in _kinds(len(example.labels))]
        counted = [label not in control for label in labels]
        return cls(torch.tensor(labels), torch.tensor(numbers), torch.tensor(kinds), torch.tensor(counted))

    def rows(self, examples: Sequence[int]) -> torch.Tensor:
        """The rows of these examples, in the order of the examples given."""
        return torch.cat([torch.nonzero(self.examples == number)[:, 0] for number in examples])


@dataclass(frozen=True)
class States:
    """What a base computes for the responses."""

    tokens: Tokens
    hidden: torch.Tensor
    """(tokens, hidden) the last hidden state before each token, fp16."""


def _kinds(count: int) -> list[int]:
    """A response of one token only ends."""
    return [FIRST, *[MIDDLE] * (count - 2), LAST][-count:]


def encoded(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    """The examples as `valueadapter.demonstrations.tokenized.encode` gives them, the end of sequence included."""
    found = []
    for number, record in enumerate(records):
        row = encode(record, tokenizer)
        after = [index for index, label in enumerate(row["labels"]) if label != IGNORED]
        positions = [index - 1 for index in after]
        found.append(Encoded(number, row["input_ids"], positions, [row["input_ids"][index] for index in after]))
    return found


def by_length(examples: Sequence[Encoded], size: int = BATCH) -> Iterator[list[Encoded]]:
    """Batches of examples of like length, the longest first, so that little is padding and memory shows at once."""
    order = sorted(examples, key=lambda example: -len(example.ids))
    return (order[start : start + size] for start in range(0, len(order), size))


def without_bos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a prompt that stands after a prefix."""
    return ids[1:] if ids and ids[0] == tokenizer.bos_token_id else ids


def states_of(target: Target, records: Sequence[Record], prefix: str | None, store: Store) -> States:
    """What a base computes for the responses of `records`, from disk if it is there.

    Args:
        target: the base.
        records: what is scored.
        prefix: text that the base reads before each prompt.
        store: where it is kept.

    Raises:
        UnsupportedModeError: the base's logits are not its head applied to its last hidden state.
    """
    sample = json.dumps([VERSION, target.fingerprint, prefix, [dict(r) for r in records]], sort_keys=True)
    name = f"{target.name}-{hashlib.sha256(sample.encode()).hexdigest()[:16]}"
    path = store.root / "bases" / f"{name}.safetensors"
    with store.locked(f"bases-{name}"):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            save_file({"hidden": compute_hidden(target.load(), target.tokenizer, records, prefix)}, partial)
            partial.rename(path)
    with safe_open(path, "pt") as file:
        return States(Tokens.of(encoded(records, target.tokenizer), target.tokenizer), file.get_tensor("hidden"))


@torch.no_grad()
def compute_hidden(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, records: Sequence[Record], prefix: str | None
) -> torch.Tensor:
    """`States.hidden`: one run of the base over the examples; over the prefix just once."""
    before = list(prefix_ids(prefix, tokenizer)) if prefix is not None else []
    shared = model(torch.tensor([before]), use_cache=True, logits_to_keep=1).cache if before else None
    found: dict[int, torch.Tensor] = {}
    for batch in by_length(encoded(records, tokenizer)):
        for example, hidden in zip(batch, _hidden(model, tokenizer, batch, shared, len(before)), strict=True):
            found[example.number] = hidden.half()
    return torch.cat([found[number] for number in sorted(found)])


def _hidden(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: list[Encoded], shared: Any, past: int
) -> list[torch.Tensor]:
    """For each example (response tokens, hidden): what the head is given."""
    rows = [without_bos(example.ids, tokenizer) if past else example.ids for example in batch]
    shifts = [len(example.ids) - len(row) for example, row in zip(batch, rows, strict=True)]
    width = max(map(len, rows))
    # padding stands at the right, where nothing that is kept sees it
    ids = torch.tensor([row + [tokenizer.pad_token_id or 0] * (width - len(row)) for row in rows])
    cache = None
    if past:
        cache = copy.deepcopy(shared)
        cache.batch_repeat_interleave(len(rows))
    begin = min(example.positions[0] - shift for example, shift in zip(batch, shifts, strict=True))
    seen: list[torch.Tensor] = []
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        kept = torch.arange(begin, width)
        all_seen = torch.ones(len(rows), past + width, dtype=torch.long)
        out = model(input_ids=ids, attention_mask=all_seen, cache=cache, use_cache=bool(past), logits_to_keep=kept)
    finally:
        hook.remove()
    if len(seen) != 1 or not torch.allclose(head(seen[0][0]), out.logits[0], atol=1e-3):
        raise UnsupportedModeError(
            f"{type(model).__name__} does more to its logits than its head, so its hidden states cannot be kept; "
            "score it with `evaluate`"
        )
    return [
        seen[0][row, [position - shift - begin for position in example.positions]]
        for row, (example, shift) in enumerate(zip(batch, shifts, strict=True))
    ]
