"""Chats that base and network read each by its own template; renders text to ids, and knows no models' logits."""

from __future__ import annotations

import copy
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.utils import get_json_schema

from valueadapter.demonstrations.tokenized import left_padded
from valueadapter.errors import ConfigError
from valueadapter.forward.cache import ValueAdapterCache
from valueadapter.forward.row_plan import Prompt
from valueadapter.forward.text_reader import TextReader
from valueadapter.forward.value_logits import Term
from valueadapter.model.chat_text import read_chat, rendered
from valueadapter.model.wrapped import WrappedModel
from valueadapter.vocabulary.text_encoder import TextEncoder

Messages = Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]]
"""One conversation, a list of `{"role": …, "content": …}`; or a list of conversations, one per row."""


class Chats(list[Any]):
    """What `chat_inputs` hands on to `generate`: the messages as they were, and what else the templates are given."""

    def __init__(self, messages: Messages, arguments: Mapping[str, Any] | None = None) -> None:
        super().__init__(messages)
        self.arguments = dict(arguments or {})


class ChatMethods(WrappedModel):
    """The part of `ValueAdapterForCausalLM` that concerns chats."""

    def chat_inputs(
        self,
        messages: Messages,
        *,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        **template: Any,
    ) -> BatchEncoding:
        """What `generate` needs to answer a chat: `generate(**model.chat_inputs(messages))`.

        The base reads the chat by its own template, and so does every network of another vocabulary by its own. (Given
        `input_ids` alone, such a network reads the base's prompt as text, without control tokens.)

        Args:
            messages: one conversation or several. A content may be text, parts of type text, or None.
            tools: what the model may call, as JSON schemas or functions, for both templates.
            template: anything else that a template takes (`documents`, `enable_thinking`, …), for both;
                `add_generation_prompt` and `continue_final_message` as in `apply_chat_template`.

        Returns:
            `input_ids` and `attention_mask`, (batch, seq), padded on the left, and `messages`, a copy.

        Raises:
            ConfigError: the base's tokenizer has no chat template, a template refuses the chat or takes no tools, a
                content that is no text, or an argument that no template takes.
        """
        if isinstance(messages, (str, Mapping)):
            raise ConfigError(
                "chat_inputs takes a chat, [{'role': 'user', 'content': …}], or a list of chats; got "
                f"{type(messages).__name__}. For a prompt as text: tokenizer(text, return_tensors='pt')"
            )
        tokenizer, terms = self.attached.tokenizer, self.attached.terms()
        if tokenizer is None or not tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer of base model '{self.base.name_or_path}' has no chat template; use a base that was "
                "tuned for chats, or give the prompt as text"
            )
        if tools:
            template["tools"] = [get_json_schema(tool) if callable(tool) else tool for tool in tools]
        _check_arguments(template, [tokenizer, *(term.tokenizer for term in terms)])
        chats = Chats(copy.deepcopy(messages), copy.deepcopy(template))
        rows = [_base_ids(tokenizer, one, chats.arguments) for one in conversations(chats)]
        if not rows:
            raise ConfigError("there is no conversation in `messages`; expected at least one message")
        for term in terms:
            prompts_of(
                chats, term, len(rows), tokenizer
            )  # so that what an adapter's template cannot do is said at once
        pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
        data = {"input_ids": left_padded(rows, pad), "attention_mask": left_padded([[1] * len(row) for row in rows])}
        inputs = BatchEncoding(data).to(self.device)
        inputs["messages"] = chats
        return inputs


_NOT_FOR_TEMPLATES = {
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    *inspect.signature(PreTrainedTokenizerBase.__call__).parameters,
} - {"tools", "documents", "add_generation_prompt", "continue_final_message", "kwargs"}
"""Arguments of `apply_chat_template` that say which template is taken, or what becomes of the text."""


def _check_arguments(template: Mapping[str, Any], tokenizers: Sequence[PreTrainedTokenizerBase]) -> None:
    """That each argument is for a chat template, and that one takes it."""
    texts = [json.dumps(tokenizer.chat_template, ensure_ascii=False) for tokenizer in tokenizers]
    for name in template:
        if name in _NOT_FOR_TEMPLATES:
            raise ConfigError(
                f"chat_inputs takes what chat templates take, and '{name}' is for the tokenizer; it renders each "
                "chat by the base's own template and the adapter's, and pads the ids on the left. Leave it out"
            )
        used = any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts)
        if not used and name not in ("add_generation_prompt", "continue_final_message"):
            raise ConfigError(
                f"no chat template takes '{name}', neither the base's nor an adapter's; leave it out, or check how "
                "it is spelled"
            )


def prompts_of(
    messages: Messages | None,
    term: Term,
    batch: int,
    base_tokenizer: PreTrainedTokenizerBase | None,
    cache: ValueAdapterCache | None = None,
) -> list[Prompt] | None:
    """Each row's prompt in both forms, or None where it is read as text.

    Args:
        messages: one conversation, or as many as go into the batch.
        term: the adapter whose networks read them.
        batch: rows.
        base_tokenizer: of which the base's form comes.
        cache: prompts that its rows have read already are not rendered again.

    Raises:
        ConfigError: conversations that do not go into the batch, or that a template cannot take.
    """
    if messages is None or term.link is None or term.link.reading is None or base_tokenizer is None:
        return None
    tokenizer = term.tokenizer
    if not tokenizer.chat_template:
        return None
    chats = conversations(messages)
    if not chats or batch % len(chats):
        raise ConfigError(f"got {len(chats)} conversations in `messages` for {batch} rows of input_ids")
    repeats = batch // len(chats)
    rows = cast(TextReader, cache.parts[term.parts[0]]).rows if cache is not None else []
    arguments = messages.arguments if isinstance(messages, Chats) else {}
    prompts = []
    for index, chat in enumerate(chats):
        made_of = _written_out(chat, arguments, base_tokenizer, tokenizer)
        known = rows[index * repeats].prompt if rows else None
        if known is None or made_of is None or known.made_of != made_of:
            ids = _base_ids(base_tokenizer, chat, arguments)
            try:
                read = read_chat(chat, tokenizer, term.link.reading.encoder, arguments)
            except ConfigError as error:
                raise ConfigError(f"adapter '{term.name}' cannot read this chat: {error}") from error
            known = Prompt(ids, read.ids, read.open_text, read.after, made_of)
        prompts += [known] * repeats
    return prompts


def conversations(messages: Messages) -> list[list[Mapping[str, Any]]]:
    """Always a list of conversations."""
    one = bool(messages) and isinstance(messages[0], Mapping)
    return [list(messages)] if one else [list(each) for each in messages]  # type: ignore[arg-type]


def of_rows(messages: Messages, rows: Sequence[int], batch: int) -> Messages:
    """The conversations of some rows of a batch, of which each conversation may have several.

    Raises:
        ConfigError: they do not go into the rows.
    """
    chats = conversations(messages)
    if not chats or batch % len(chats):
        raise ConfigError(f"got {len(chats)} conversations in `messages` for {batch} rows of input_ids")
    repeats = batch // len(chats)
    arguments = messages.arguments if isinstance(messages, Chats) else {}
    return Chats([chats[row // repeats] for row in rows], arguments)


def value_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], encoder: TextEncoder
) -> list[int]:
    """A chat as the network reads it: control tokens of its own template, and none that a user has spelled out.

    Where nobody has spelled any, these are the tokenizer's own ids of the rendered chat, as in training.

    Args:
        tokenizer: the network's tokenizer.
        messages: one conversation.
        encoder: how that tokenizer splits plain text.
    """
    return read_chat(messages, tokenizer, encoder, {}).ids


def _base_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any]
) -> list[int]:
    ids: list[int] = tokenizer(rendered(messages, tokenizer, arguments), add_special_tokens=False)["input_ids"]
    return ids


def _written_out(
    chat: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any], *tokenizers: PreTrainedTokenizerBase
) -> str | None:
    """All that a prompt is made of, as text; None where something in it cannot be written out."""
    templates = [(tokenizer.chat_template, tokenizer.special_tokens_map) for tokenizer in tokenizers]
    try:
        return json.dumps([chat, arguments, templates])
    except (TypeError, ValueError, RecursionError):
        return None
