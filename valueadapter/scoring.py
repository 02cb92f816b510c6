"""The responses of demonstrations as what a model needs to score them: inputs, labels, bytes.

Knows nothing of models: what is done with the logits is the caller's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from valueadapter.data import IGNORED, Collator, encode
from valueadapter.record_checks import carries_loss
from valueadapter.record_checks import shape_of as shape_of

Record = Mapping[str, Any]
"""A demonstration: `prompt` and `completion`, `messages`, or `text`; perhaps `choices` and `answer`."""


class Responses(NamedTuple):
    """A batch of demonstrations, ready for `forward`; it gives logits of (batch, kept, vocab)."""

    inputs: dict[str, Any]
    """Arguments of `forward`."""
    labels: torch.Tensor
    """(batch, kept - 1): the token that follows each kept position but the last; -100 outside the responses."""
    content: torch.Tensor
    """(batch, kept - 1): whether that token is one of the response, and no control token."""


def responses(
    batch: Sequence[Record],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str = "cpu",
    *,
    context: Sequence[Record] = (),
) -> Responses:
    """What a model needs to score the responses of a batch, control tokens (the end of sequence) included.

    Args:
        batch: demonstrations.
        tokenizer: the model's.
        device: where the model reads.
        context: demonstrations that stand before each of the batch and are not scored: for a prompt, each as prompt,
            completion and an empty line; for a chat, as earlier turns.

    Raises:
        ConfigError: a record of no known shape, or one that the tokenizer cannot render.
    """
    encoded = [_encode(record, tokenizer, context) for record in batch]
    inputs = Collator(tokenizer.pad_token_id or 0)(encoded)
    labels = inputs.pop("labels")
    keep = labels.shape[1] - int((labels != IGNORED).any(dim=0).int().argmax()) + 1
    labels = labels[:, 1:][:, -keep + 1 :]
    content = (labels != IGNORED) & ~torch.isin(labels, torch.tensor(sorted(control_tokens(tokenizer))))
    arguments: dict[str, Any] = {key: value.to(device) for key, value in inputs.items()}
    return Responses({**arguments, "logits_to_keep": keep}, labels.to(device), content.to(device))


def scored(
    batch: Sequence[Record], tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> tuple[dict[str, Any], torch.Tensor]:
    """`responses` without a context, and without labels on control tokens, since vocabularies disagree on them.

    Returns:
        Arguments of `forward`; labels, (batch, kept - 1).
    """
    found = responses(batch, tokenizer, device)
    return found.inputs, found.labels.masked_fill(~found.content, IGNORED)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that are no text: beginning and end of sequence, turns of a chat, padding."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {token for token, content in added.items() if content.special}


def response_bytes(records: Sequence[Record]) -> int:
    """UTF-8 bytes of all responses."""
    return sum(len(text.encode()) for record in records for text in response_texts(record))


def response_texts(record: Record) -> list[str]:
    """The completion, the assistant's turns, or the text."""
    shape = shape_of(record)
    if shape == "messages":
        return [message["content"] for message in record["messages"] if carries_loss(message)]
    return [record["completion" if shape == "prompt" else "text"]]


def same_demonstration(record: Record) -> str:
    """A key that two records share if they are one demonstration, whatever else they carry."""
    shape = shape_of(record)
    parts = (record["prompt"], record["completion"]) if shape == "prompt" else record[shape]
    return repr([(m["role"], m["content"]) for m in parts] if shape == "messages" else parts)


def question(record: Record, tokenizer: PreTrainedTokenizerBase, *, context: Sequence[Record] = ()) -> list[int] | None:
    """Token ids up to where the (last) response begins; None for plain text, which asks nothing.

    Args:
        record: a demonstration.
        tokenizer: the model's.
        context: as in `responses`.
    """
    shape = shape_of(record)
    if shape == "text":
        return None
    if shape == "prompt":
        asked: list[int] = tokenizer(_written_out(context) + record["prompt"])["input_ids"]
        return asked
    messages, _ = _chat(record, context)
    last = max((i for i, turn in enumerate(messages) if turn["role"] == "assistant"), default=len(messages))
    text: Any = tokenizer.apply_chat_template(messages[:last], tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def batches(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    """Consecutive records, `size` at a time."""
    return (records[start : start + size] for start in range(0, len(records), size))


def _encode(record: Record, tokenizer: PreTrainedTokenizerBase, context: Sequence[Record]) -> dict[str, list[int]]:
    """`data.encode` with a context that carries no label."""
    alone = encode(record, tokenizer)
    if not context:
        return alone
    shape = shape_of(record)
    if shape == "messages":
        messages, before = _chat(record, context)
        row = encode({"messages": messages}, tokenizer)
        text: Any = tokenizer.apply_chat_template(messages[:before], tokenize=False)
        skipped = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    elif shape == "prompt":
        return encode({**record, "prompt": _written_out(context) + record["prompt"]}, tokenizer)
    else:
        row = encode({"prompt": _written_out(context), "completion": record["text"]}, tokenizer)
        # the same tokens are scored as without the context, where nothing may come before the first
        skipped = len(row["labels"]) - sum(label != IGNORED for label in alone["labels"])
    return {**row, "labels": [IGNORED] * skipped + row["labels"][skipped:]}


def _written_out(context: Sequence[Record]) -> str:
    """Demonstrations as one text, an empty line after each."""
    pieces = [("" if shape_of(one) == "text" else one["prompt"]) + response_texts(one)[0] for one in context]
    return "".join(f"{piece}\n\n" for piece in pieces)


def _chat(record: Record, context: Sequence[Record]) -> tuple[list[Mapping[str, str]], int]:
    """The turns of a context and then a record's own, under its system message; how many of them come before its own.

    Returns:
        The messages; how many of them lead up to the record's own first turn.
    """
    own = list(record["messages"])
    system = own[:1] if context and own[0]["role"] == "system" else []
    earlier = [turn for one in context for turn in one["messages"] if turn["role"] != "system"]
    return [*system, *earlier, *own[len(system) :]], len(system) + len(earlier)
