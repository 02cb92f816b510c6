"""A prompt as callers give it, text or a chat, and as the base reads it; asks the model for no logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from valueadapter.demonstrations.encoding import prompt_ids
from valueadapter.demonstrations.messages import render
from valueadapter.errors import ConfigError
from valueadapter.model.modeling import ValueAdapterForCausalLM

Prompt = str | Sequence[Mapping[str, str]]
"""Text, or one conversation of `{"role": …, "content": …}` that a response answers."""


class Question(NamedTuple):
    """A prompt as the base reads it, and the chat that it was, if it was one."""

    text: str
    ids: list[int]
    messages: Sequence[Mapping[str, str]] | None


def as_read(model: ValueAdapterForCausalLM, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> Question:
    """A prompt in the base's tokens, a chat by its template up to where an answer begins.

    Args:
        model: base + adapters.
        prompt: text, or one conversation.
        tokenizer: the base's.

    Raises:
        ConfigError: neither, empty, or a chat for a base without chat template.
    """
    if isinstance(prompt, str):
        question = Question(prompt, prompt_ids(prompt, tokenizer), None)
    elif not isinstance(prompt, Iterable) or not isinstance(next(iter(prompt), None), Mapping):
        raise ConfigError(
            f"prompt must be text, or one conversation of {{'role': …, 'content': …}}; got {str(prompt)[:80]}"
        )
    else:
        text = render(prompt, tokenizer, generation=True)
        question = Question(text, model.chat_inputs(prompt)["input_ids"][0].tolist(), prompt)
    if not question.ids:
        raise ConfigError(
            "the prompt is empty, and the base's tokenizer puts no token at the beginning, so that the first "
            "token of a response has no likelihood; expected a prompt of at least one token"
        )
    return question
