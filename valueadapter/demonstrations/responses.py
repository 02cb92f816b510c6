"""The responses of demonstrations as what a model needs to score them: inputs, labels, bytes.

Knows nothing of models: what is done with the logits is the caller's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from valueadapter.demonstrations.encoding import asks, chat_prompt, opening_ids, prompt_ids
from valueadapter.demonstrations.messages import template_arguments, text_of
from valueadapter.demonstrations.record_checks import carries_loss, checked
from valueadapter.demonstrations.record_checks import shape_of as shape_of
from valueadapter.demonstrations.tokenized import IGNORED, SEPARATOR, Collator, encode, texts_before
from valueadapter.errors import ConfigError

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
    ends: torch.Tensor
    """(batch, kept - 1): whether it is the control token that ends a response."""


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
    ends = torch.stack([_ends(*row) for row in zip(labels != IGNORED, content, strict=True)])
    how = {**arguments, "logits_to_keep": keep}
    return Responses(how, labels.to(device), content.to(device), ends.to(device))


def _ends(labelled: torch.Tensor, content: torch.Tensor) -> torch.Tensor:
    """(kept - 1) of bool: the last control token of each run of labels."""
    found = torch.zeros_like(labelled)
    last: int | None = None
    for place, (is_labelled, is_content) in enumerate(zip(labelled.tolist(), content.tolist(), strict=True)):
        if is_labelled and not is_content:
            last = place
        elif not is_labelled and last is not None:
            found[last], last = True, None
    if last is not None:
        found[last] = True
    return found


def scored(batch: Sequence[Record], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> Responses:
    """`responses` with labels on the text and on the token that ends it, and on no other control token, since
    vocabularies disagree on them."""
    found = responses(batch, tokenizer, device)
    return found._replace(labels=found.labels.masked_fill(~(found.content | found.ends), IGNORED))


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that are no text: beginning and end of sequence, turns of a chat, padding."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {token for token, content in added.items() if content.special}


def response_bytes(records: Sequence[Record]) -> int:
    """UTF-8 bytes of all responses; calls of tools count as the JSON that they are."""
    return sum(len(text.encode()) for record in records for text in (*response_texts(record), *_calls(record)))


def response_texts(record: Record) -> list[str]:
    """The completion, the assistant's turns, or the text."""
    record = checked(record)
    shape = shape_of(record)
    if shape == "messages":
        return [text_of(message.get("content")) for message in record["messages"] if carries_loss(message)]
    return [record["completion" if shape == "prompt" else "text"]]


def separators(records: Iterable[Record]) -> tuple[str, ...]:
    """What ends an answer where examples are read as text: what stands between them; nothing if a response holds it."""
    texts = (text for record in records for text in response_texts(record))
    return () if any(SEPARATOR in text.strip() for text in texts) else (SEPARATOR,)


def _calls(record: Record) -> list[str]:
    messages = checked(record).get("messages") or ()
    calls = [message["tool_calls"] for message in messages if carries_loss(message) and message.get("tool_calls")]
    return [json.dumps(each, ensure_ascii=False) for each in calls]


def same_demonstration(record: Record) -> str:
    """A key that two records share if they are one demonstration, whatever else they carry."""
    record = checked(record)
    shape = shape_of(record)
    if shape != "messages":
        return repr((record["prompt"], record["completion"]) if shape == "prompt" else record[shape])
    turns = [(m["role"], text_of(m.get("content")), *filter(None, [m.get("tool_calls")])) for m in record[shape]]
    return repr(turns)


def question(record: Record, tokenizer: PreTrainedTokenizerBase, *, context: Sequence[Record] = ()) -> list[int] | None:
    """Token ids up to where the (last) response begins; None for what asks nothing, as plain text.

    Args:
        record: a demonstration.
        tokenizer: the model's.
        context: as in `responses`.
    """
    record = checked(record)
    shape = shape_of(record)
    if shape == "text":
        return None
    if shape == "prompt":
        return prompt_ids(_written_out(context) + record["prompt"], tokenizer)
    messages = _chat(record, context)
    last = max(index for index, turn in enumerate(messages) if carries_loss(turn))
    if not asks(messages[:last]):
        return None
    return chat_prompt(messages[:last], tokenizer, arguments=template_arguments(record))


def batches(records: Sequence[Record], size: int) -> Iterator[Sequence[Record]]:
    """Consecutive records, `size` at a time."""
    return (records[start : start + size] for start in range(0, len(records), size))


def _encode(record: Record, tokenizer: PreTrainedTokenizerBase, context: Sequence[Record]) -> dict[str, list[int]]:
    """`data.encode` with a context that carries no label."""
    if not context:
        return encode(record, tokenizer)
    record = checked(record)
    shape = shape_of(record)
    if shape == "messages":
        return encode({**record, "messages": _chat(record, context)}, tokenizer)
    if shape == "prompt":
        return encode({**record, "prompt": _written_out(context) + record["prompt"]}, tokenizer)
    row = encode({"prompt": _written_out(context), "completion": record["text"]}, tokenizer)
    if not opening_ids(tokenizer):  # the same tokens are scored as without the context, where nothing opens the text
        first = next(index for index, label in enumerate(row["labels"]) if label != IGNORED)
        row["labels"][first] = IGNORED
    return row


def _written_out(context: Sequence[Record]) -> str:
    """Demonstrations as one text before another."""
    context = [checked(one) for one in context]
    if any(shape_of(one) == "messages" for one in context):
        raise ConfigError("the context of a text must be texts, and it holds a chat; give records of one shape")
    return texts_before(context)


def _chat(record: Record, context: Sequence[Record]) -> list[Mapping[str, Any]]:
    """The turns of a context, whose answers do not count, and then a record's own, under its own system message."""
    own, context = list(record["messages"]), [checked(one) for one in context]
    if any(shape_of(one) != "messages" for one in context):
        raise ConfigError("the context of a chat must be chats, and it holds texts; give records of one shape")
    system = own[:1] if context and own[0]["role"] == "system" else []
    turns = [turn for one in context for turn in one["messages"] if turn["role"] != "system"]
    earlier = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in turns]
    return [*system, *earlier, *own[len(system) :]]
