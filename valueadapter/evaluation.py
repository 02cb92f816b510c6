"""Measures a model on held-out demonstrations: bits per UTF-8 byte of the response, and exact match.

Knows nothing of adapters: every arm (base alone, small tuned model alone, base + adapter) is just a model here.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.data import IGNORED, Collator, encode, record_shape

Record = Mapping[str, Any]
"""A demonstration: `prompt` and `completion`, `messages`, or `text`."""


@dataclass(frozen=True)
class Score:
    """What was measured of one model."""

    bits_per_byte: float
    """Bits per UTF-8 byte of the responses; lower is better. Control tokens (the end of sequence) do not count."""
    exact_match: float | None
    """Share of responses, 0 to 1, that match after normalisation; None where not asked for."""
    answers: tuple[str, ...]
    """What the model said to each prompt; empty where exact match was not asked for."""


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    *,
    generate: bool = True,
    batch_size: int = 16,
    on_progress: Callable[[int], None] | None = None,
) -> Score:
    """Scores a model on prompts with known completions.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        records: held-out demonstrations.
        generate: also let it answer greedily and compare; needs `prompt` and `completion`.
        batch_size: rows per forward pass.
        on_progress: called with the number of records done since the last call.
    """
    nats, answers = 0.0, []
    for batch in batches(records, batch_size):
        nats += _nats(model, tokenizer, batch)
        if generate:
            answers += answer(model, tokenizer, [record["prompt"] for record in batch])
        if on_progress is not None:
            on_progress(len(batch))
    size = response_bytes(records)
    hits = [
        normalised(said) == normalised(record["completion"]) for said, record in zip(answers, records, strict=False)
    ]
    return Score(nats / math.log(2) / size, sum(hits) / len(hits) if hits else None, tuple(answers))


def _nats(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: Sequence[Record]) -> float:
    """Negative log-likelihood of the responses of a batch, control tokens left out."""
    inputs, labels = scored(batch, tokenizer, model.device)
    logits = model(**inputs, use_cache=False).logits
    return float(
        torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
    )


def scored(
    batch: Sequence[Record], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[dict[str, Any], torch.Tensor]:
    """What a model needs to score the responses of a batch, and the labels of what it gives but for the last position.

    Control tokens carry no label, since vocabularies disagree on them.

    Returns:
        Arguments of `forward`; labels, (batch, kept - 1).
    """
    encoded = [encode(record, tokenizer) for record in batch]
    control = set(tokenizer.all_special_ids)
    for row in encoded:
        row["labels"] = [IGNORED if label in control else label for label in row["labels"]]
    inputs = Collator(tokenizer.pad_token_id or 0)(encoded)
    labels = inputs.pop("labels")
    keep = labels.shape[1] - int((labels != IGNORED).any(dim=0).int().argmax()) + 1
    arguments: dict[str, Any] = {key: value.to(device) for key, value in inputs.items()}
    return {**arguments, "logits_to_keep": keep}, labels[:, 1:][:, -keep + 1 :].to(device)


def response_bytes(records: Sequence[Record]) -> int:
    """UTF-8 bytes of all responses."""
    return sum(len(text.encode()) for record in records for text in _responses(record))


def _responses(record: Record) -> list[str]:
    shape = record_shape([key for key, value in record.items() if value is not None])
    if shape == "messages":
        return [message["content"] for message in record["messages"] if message["role"] == "assistant"]
    return [record["completion" if shape == "prompt" else "text"]]


@torch.no_grad()
def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, max_new_tokens: int = 16
) -> list[str]:
    """The first line of what the model says to each prompt, greedily."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    inputs = Collator(pad)([{"input_ids": row, "labels": row} for row in rows])
    out = model.generate(
        input_ids=inputs["input_ids"].to(model.device),
        attention_mask=inputs["attention_mask"].to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=pad,
        eos_token_id=[tokenizer.eos_token_id],
    )
    texts = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip().split("\n")[0].strip() for text in texts]


def normalised(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (as SQuAD's script does, Rajpurkar et al. 2016)."""
    text = "".join(" " if c in string.punctuation else c for c in text.lower())
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def batches(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    """Consecutive records, `size` at a time."""
    return (records[start : start + size] for start in range(0, len(records), size))
