"""Demonstrations as token ids with a loss on the responses; knows nothing of models.

Three shapes of record: `prompt` and `completion`; `messages` (chat, loss on assistant turns); `text` (loss on all).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from valueadapter.compat import require
from valueadapter.demonstrations.encoding import chat_row, ended, prompt_ids, response_ids, text_ids
from valueadapter.demonstrations.messages import template_arguments, text_of
from valueadapter.demonstrations.record_checks import carries_loss, checked, shape_of
from valueadapter.demonstrations.sources import Demonstrations, Source, as_record, of_datasets
from valueadapter.demonstrations.sources import load_demonstrations as load_demonstrations
from valueadapter.errors import ConfigError

if TYPE_CHECKING:
    from datasets import IterableDataset  # an extra, which what generates does without

IGNORED = -100
"""The label of a position without loss, as everywhere in transformers."""
SEPARATOR = "\n\n"
"""What stands after each demonstration in a context of texts, and so what ends the answers of a model that read it."""
_CHUNK = 1000


def encode(
    record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
) -> dict[str, list[int]]:
    """One demonstration as `input_ids` and `labels` (-100 where there is no loss).

    A completion is followed by the tokenizer's end-of-sequence token, so that the network learns to stop. Text beyond
    `max_length` tokens is cut off at its end. What the ids are is `valueadapter.demonstrations.encoding`'s.

    Raises:
        ConfigError: it is no record, the tokenizer cannot render it, or nothing of the response is left to learn from.
    """
    record = checked(record)
    shape = shape_of(record)
    if shape == "messages":
        messages = record["messages"]
        ids, learned = chat_row(
            messages, tokenizer, learned=[carries_loss(m) for m in messages], arguments=template_arguments(record)
        )
        labels = [token if counts else IGNORED for token, counts in zip(ids, learned, strict=True)]
    elif shape == "prompt":
        prompt = prompt_ids(record["prompt"], tokenizer)
        response = ended(response_ids(record["completion"], tokenizer, prompt=record["prompt"]), tokenizer)
        ids, labels = prompt + response, [IGNORED] * len(prompt) + response
    else:
        ids, opening = text_ids(record["text"], tokenizer)
        labels = [IGNORED] * opening + ids[opening:]
    ids, labels = ids[:max_length], labels[:max_length]
    labels[:1] = [IGNORED]  # nothing comes before it, and in a padded batch a padding position would
    if all(label == IGNORED for label in labels):
        shown = str(record.get("prompt") or record.get("text") or record.get("messages"))[:80]
        raise ConfigError(
            f"no response token is left within max_length={max_length} tokens of {shown!r}; raise max_length"
        )
    return {"input_ids": ids, "labels": labels}


SEPARATOR = "\n\n"
"""What stands after each demonstration of a context of texts."""


def as_context(records: Sequence[Mapping[str, Any]]) -> str | list[Mapping[str, str]]:
    """Demonstrations as what stands before a prompt: their text, a blank line after each, or the turns of their chats.

    Of chats, a system message that all of them begin with comes first, once; others are left out, since templates have
    no place for one in the midst.

    Raises:
        ConfigError: no records, chats among others, or chats with tools in use.
    """
    records = [checked(record) for record in records]
    shapes = {shape_of(record) for record in records}
    if shapes == {"messages"}:
        return _turns_before(records)
    if not shapes or "messages" in shapes:
        raise ConfigError(
            f"demonstrations of one shape are needed for a context; got {', '.join(sorted(shapes)) or 'none'}. Train "
            "without a prefix of examples (base_prefix_examples=0)"
        )
    return texts_before(records)


def texts_before(records: Sequence[Mapping[str, Any]]) -> str:
    """Checked demonstrations, of which none is a chat, as one text: a blank line after each."""
    texts = (r["prompt"] + r["completion"] if shape_of(r) == "prompt" else r["text"] for r in records)
    return "".join(f"{text}{SEPARATOR}" for text in texts)


def _turns_before(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, str]]:
    chats = [[_plain_turn(turn) for turn in record["messages"]] for record in records]
    first = chats[0][0]
    shared = [first] if first["role"] == "system" and all(chat[0] == first for chat in chats) else []
    return [*shared, *(turn for chat in chats for turn in chat if turn["role"] != "system")]


def _plain_turn(turn: Mapping[str, Any]) -> dict[str, str]:
    if turn.get("tool_calls") or turn["role"] == "tool":
        raise ConfigError(
            "a context of chats holds texts alone, and one of these demonstrations calls tools; train without a prefix "
            "of examples (base_prefix_examples=0), or give one of your own (base_prefix)"
        )
    return {"role": turn["role"], "content": text_of(turn.get("content"))}


def tokenize(
    data: Source | IterableDataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
) -> Any:
    """All demonstrations as token ids, checked before; data that has `input_ids` already is returned as it is.

    Returns:
        A `datasets.Dataset` with `input_ids` and `labels`; of a stream, a stream.

    Raises:
        ConfigError: a record that cannot be learned, with its place.
        MissingExtraError: `datasets` is not installed.
    """
    require("train", "datasets")
    if of_datasets(data, "IterableDataset"):
        return _tokenized_stream(data, tokenizer, max_length)
    first = data[0] if (of_datasets(data, "Dataset") or isinstance(data, (list, tuple))) and len(data) else None
    if isinstance(first, Mapping) and "input_ids" in first:
        return data
    records = load_demonstrations(data)
    chunks = [range(begin, min(begin + _CHUNK, len(records))) for begin in range(0, len(records), _CHUNK)]
    rows = ([_encoded(records, index, tokenizer, max_length) for index in chunk] for chunk in chunks)
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    columns = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    return concatenate_datasets([Dataset.from_list(chunk, features=columns) for chunk in rows])


def _encoded(
    records: Demonstrations, index: int, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> dict[str, list[int]]:
    try:
        return encode(records[index], tokenizer, max_length=max_length)
    except ConfigError as error:
        raise ConfigError(f"{records.place(index)}: {error}") from error


def _tokenized_stream(
    data: IterableDataset, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> IterableDataset:
    """Each record is checked when it is read."""
    columns = data.column_names or list(next(iter(data), {}))  # a stream may know its columns only when it is read
    if "input_ids" in columns:
        return data

    def read(row: dict[str, Any], index: int) -> dict[str, list[int]]:
        record = as_record(row, data.features)
        return _encoded(Demonstrations([record], numbers=[index]), 0, tokenizer, max_length)

    return data.map(read, with_indices=True, remove_columns=columns)


def left_padded(rows: Sequence[Sequence[int]], value: int = 0) -> torch.Tensor:
    """Rows of different length as one tensor, (batch, longest), with `value` before the shorter ones."""
    width = max(map(len, rows))
    return torch.tensor([[value] * (width - len(row)) + list(row) for row in rows])


class Collator:
    """Pads a batch on the left, so that responses end together and one number says which logits are needed.

    Args:
        pad_token_id: id to pad with; masked, so any id serves.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, records: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """Records of different length -> `input_ids, attention_mask, position_ids, labels`, each (batch, seq)."""
        width = max(len(record["input_ids"]) for record in records)
        lengths = torch.tensor([[width - len(record["input_ids"])] for record in records])
        positions = torch.arange(width) - lengths
        return {
            "input_ids": left_padded([record["input_ids"] for record in records], self.pad_token_id),
            "attention_mask": (positions >= 0).long(),
            "position_ids": positions.clamp(min=0),
            "labels": left_padded([record["labels"] for record in records], IGNORED),
        }
