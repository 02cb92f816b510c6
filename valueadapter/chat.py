"""Chats that base and network read each by its own template; renders text to ids, and knows no models' logits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from valueadapter.devices import execution_device
from valueadapter.errors import ConfigError
from valueadapter.plan import Prompt
from valueadapter.text_encoder import TextEncoder
from valueadapter.value_logits import Term

Messages = Sequence[Mapping[str, str]] | Sequence[Sequence[Mapping[str, str]]]
"""One conversation, a list of `{"role": …, "content": …}`; or a list of conversations, one per row."""

_CHATS_KEPT = 16
"""Lists of conversations whose prompts are remembered from step to step."""


class ChatMethods:
    """The part of `ValueAdapterForCausalLM` that concerns chats."""

    base: PreTrainedModel
    base_tokenizer: PreTrainedTokenizerBase | None
    _chats: dict[int, tuple[Messages, dict[str, list[Prompt]]]]

    def chat_inputs(self, messages: Messages) -> BatchEncoding:
        """What `generate` needs to answer a chat: `generate(**model.chat_inputs(messages))`.

        The base reads the chat by its own template, and so does every network of another vocabulary by its own. (Given
        `input_ids` alone, such a network reads the base's prompt as text, without control tokens.)

        Args:
            messages: one conversation or several.

        Returns:
            `input_ids` and `attention_mask`, (batch, seq), padded on the left, and `messages`.

        Raises:
            ConfigError: the base's tokenizer has no chat template.
        """
        tokenizer = self.base_tokenizer
        if tokenizer is None or not tokenizer.chat_template:
            raise ConfigError(
                f"the tokenizer of base model '{self.base.name_or_path}' has no chat template; use a base that was "
                "tuned for chats, or give the prompt as text"
            )
        rows = [_base_ids(tokenizer, one) for one in conversations(messages)]
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        width = max(map(len, rows))
        data = {
            "input_ids": [[pad] * (width - len(row)) + row for row in rows],
            "attention_mask": [[0] * (width - len(row)) + [1] * len(row) for row in rows],
        }
        inputs = BatchEncoding(data, tensor_type="pt").to(execution_device(self.base))
        inputs["messages"] = messages
        return inputs

    def _prompts(self, messages: Messages | None, term: Term, batch: int) -> list[Prompt] | None:
        """Each row's prompt in both forms, or None where it is read as text."""
        if messages is None or term.link is None or term.link.reading is None or self.base_tokenizer is None:
            return None
        for old in list(self._chats)[:-_CHATS_KEPT]:
            del self._chats[old]
        known = self._chats.setdefault(id(messages), (messages, {}))[1]
        if term.parts[0] not in known:
            tokenizer = self._tokenizer_of(term)
            if not tokenizer.chat_template:
                return None
            known[term.parts[0]] = [
                Prompt(_base_ids(self.base_tokenizer, one), value_ids(tokenizer, one, term.link.reading.encoder))
                for one in conversations(messages)
            ]
        prompts = known[term.parts[0]]
        if batch % len(prompts):
            raise ConfigError(f"got {len(prompts)} conversations in `messages` for {batch} rows of input_ids")
        return [prompts[row // (batch // len(prompts))] for row in range(batch)]

    def _tokenizer_of(self, term: Term) -> PreTrainedTokenizerBase:
        raise NotImplementedError


def conversations(messages: Messages) -> list[list[Mapping[str, str]]]:
    """Always a list of conversations."""
    one = bool(messages) and isinstance(messages[0], Mapping)
    return [list(messages)] if one else [list(each) for each in messages]  # type: ignore[arg-type]


def value_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], encoder: TextEncoder
) -> list[int]:
    """A chat as the network reads it: control tokens of its own template, and none that a user has spelled out.

    Args:
        tokenizer: the network's tokenizer.
        messages: one conversation.
        encoder: how that tokenizer splits plain text.
    """
    controls = {content: token for token, content in _controls(tokenizer).items()}
    spelled = re.compile("|".join(re.escape(name) for name in sorted(controls, key=len, reverse=True)) or "(?!)")
    found: list[str] = []

    def hide(match: re.Match[str]) -> str:
        found.append(match.group())
        return f"\ue000{len(found) - 1}\ue001"

    def shown(text: str) -> str:
        return re.sub("\ue000(\\d+)\ue001", lambda match: found[int(match.group(1))], text)

    hidden = [{**message, "content": spelled.sub(hide, message["content"])} for message in messages]
    text = tokenizer.apply_chat_template(hidden, tokenize=False, add_generation_prompt=True)
    ids: list[int] = []
    end = 0
    for match in spelled.finditer(str(text)):
        ids += encoder.encode(shown(text[end : match.start()]), start=not ids)
        ids.append(controls[match.group()])
        end = match.end()
    return ids + encoder.encode(shown(text[end:]), start=not ids)


def _controls(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {token: str(added.content) for token, added in tokenizer.added_tokens_decoder.items() if added.special}


def _base_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> list[int]:
    text: Any = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
