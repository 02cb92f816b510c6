"""What a model answers, greedily, up to where an answer ends; knows no record and no score.

Whoever has scored right answers knows how decoding begins: as they do, as far as their tokens were the likeliest, and
then with what was likelier. Only the rest is decoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from valueadapter.demonstrations.encoding import prompt_ids
from valueadapter.demonstrations.tokenized import Collator
from valueadapter.forward.bounded_logits import decodes_as_it_reads, rows_at_once
from valueadapter.forward.stops import padding, stop_tokens, until
from valueadapter.model.stopping import AnswerEnds

_CHANGE_NO_LOGITS = {
    *("transformers_version", "_from_model_config", "bos_token_id", "eos_token_id", "pad_token_id"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("max_length", "max_new_tokens", "use_cache", "cache_implementation"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
}
"""Generation settings with which decoding that does not sample still says the likeliest token."""
_DECODING = (
    *("generate", "_sample", "prepare_inputs_for_generation"),
    *("_get_logits_processor", "_prepare_generation_config"),
)
"""What of transformers' decoding decides which token is said."""


class Said(NamedTuple):
    """An answer."""

    text: str
    """Up to its end, without it."""
    ended: bool
    """Whether it came to an end within the limit."""


class Asked(NamedTuple):
    """A prompt."""

    prompt: Sequence[int]
    begun: Sequence[int] = ()
    """The tokens with which greedy decoding answers, as far as they are known."""


@torch.no_grad()
def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 16,
    stop_strings: Sequence[str] = (),
) -> list[str]:
    """What the model says to each prompt, greedily, up to its end or the first of some texts."""
    rows = [Asked(prompt_ids(prompt, tokenizer)) for prompt in prompts]
    found = answers(model, tokenizer, rows, max_new_tokens=max_new_tokens, stop_strings=stop_strings)
    return [one.text for one in found]


def begun(prompt: Sequence[int], text: Sequence[int], predicted: Mapping[int, int]) -> list[int]:
    """The tokens with which greedy decoding goes on from a prompt, as far as a reading of the right answer shows it.

    Args:
        prompt: token ids.
        text: those of the prompt with the right answer.
        predicted: place in the text -> the likeliest token there, after those before it.

    Returns:
        Tokens that are right, and the first that is not; none where the text does not begin with the prompt.
    """
    found: list[int] = []
    if list(text[: len(prompt)]) != list(prompt):
        return found
    for place in range(len(prompt), len(text)):
        if place not in predicted:
            break
        found.append(predicted[place])
        if predicted[place] != text[place]:
            break
    return found


def says_the_likeliest(model: Any) -> bool:
    """Whether greedy decoding says at each place what is likeliest there when the whole text is read.

    Not where a generation setting changes what is likely, where a model decodes in a way of its own, nor where it may
    say another thing of a token once later ones are there.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or not set(settings.to_diff_dict()) <= _CHANGE_NO_LOGITS:
        return False
    if settings.cache_implementation == "quantized" or any(name in vars(model) for name in _DECODING):
        return False
    base = model.base if hasattr(model, "attached") else model
    base = base.get_base_model() if hasattr(base, "get_base_model") else base
    usual = all(getattr(type(base), name, None) is getattr(GenerationMixin, name) for name in _DECODING)
    return usual and not any(name in vars(base) for name in _DECODING) and decodes_as_it_reads(model)


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Asked],
    *,
    max_new_tokens: int,
    stop_strings: Sequence[str],
) -> list[Said]:
    """What the model says to each prompt, greedily, up to where it, its tokenizer or a text says that it ends.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        rows: the prompts; what is known of an answer must be what this model says.
        max_new_tokens: length of an answer at most.
        stop_strings: texts that end an answer.
    """
    stops = stop_tokens(model, tokenizer)
    said = [list(row.begun)[:max_new_tokens] for row in rows]
    open_rows = [
        index
        for index, ids in enumerate(said)
        if len(ids) < max_new_tokens and not _said(tokenizer, ids, stops, stop_strings).ended
    ]
    size = rows_at_once(model, max((len(rows[index].prompt) for index in open_rows), default=1) + max_new_tokens)
    for start in range(0, len(open_rows), size):
        some = open_rows[start : start + size]
        longest, least = max(len(rows[index].prompt) for index in some), min(len(said[index]) for index in some)
        for index in some:  # so that no row comes further than it would without what is known
            said[index] = said[index][: longest + least - len(rows[index].prompt)]
        texts = [[*rows[index].prompt, *said[index]] for index in some]
        more = _generate(model, tokenizer, texts, max_new_tokens - least, stops, stop_strings)
        for index, ids in zip(some, more, strict=True):
            said[index] = [*said[index], *ids][:max_new_tokens]
    return [_said(tokenizer, ids, stops, stop_strings) for ids in said]


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[list[int]],
    length: int,
    stops: set[int],
    stop_strings: Sequence[str],
) -> list[list[int]]:
    """With what the model goes on from each text."""
    own = {"stop_strings": None} if hasattr(model, "attached") else {}  # for every model those that are given alone
    inputs = Collator(padding(tokenizer))([{"input_ids": text, "labels": text} for text in texts])
    begin = inputs["input_ids"].shape[1]
    out = model.generate(
        input_ids=inputs["input_ids"].to(model.device),
        attention_mask=inputs["attention_mask"].to(model.device),
        max_new_tokens=length,
        do_sample=False,
        pad_token_id=padding(tokenizer),
        eos_token_id=sorted(stops) or None,
        stopping_criteria=StoppingCriteriaList([AnswerEnds([stop_strings], tokenizer, begin=begin)]),
        **own,
    )
    found: list[list[int]] = out[:, begin:].tolist()
    return found


def _said(tokenizer: PreTrainedTokenizerBase, ids: list[int], stops: set[int], stop_strings: Sequence[str]) -> Said:
    """An answer up to its first end. Not every token that ends one is one that decoding leaves out."""
    place = next((place for place, token in enumerate(ids) if token in stops), len(ids))
    text: str = tokenizer.decode(ids[:place], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    shown = until(text, stop_strings)
    return Said(shown.strip(), place < len(ids) or len(shown) < len(text))
