"""How `generate` stops at texts that end an answer, each row at its own; knows no logits, and not whose texts they are.

transformers' own `stop_strings` hold for all rows of a batch, take text of the prompt for a part of the answer, and
read the whole vocabulary at each call (half a second for 262,000 tokens).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from valueadapter.artifact.config.prefix import Recorded
from valueadapter.errors import ConfigError
from valueadapter.forward.cache import BASE, ValueAdapterCache
from valueadapter.forward.stops import padding
from valueadapter.model.registry import AttachedAdapters

_GUESSES: ContextVar[Guesses | None] = ContextVar("valueadapter_guesses", default=None)
"""The call of `generate` that guesses here; its candidate generator is told of no criterion."""


class AnswerEnds(StoppingCriteria):
    """Whether a row's answer has come to one of its texts. What the prompt says does not count.

    Args:
        rows: the texts of each prompt; none for one that nothing ends.
        tokenizer: that of the answers.
        begin: tokens of a prompt, padding included; the answer stands behind.
    """

    eos_token_id = None
    """transformers fills finished rows up where a criterion has this, and goes on with them where none has."""

    def __init__(self, rows: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase, *, begin: int) -> None:
        self.rows, self.tokenizer, self.begin = rows, tokenizer, begin
        longest = max((len(text.encode()) for row in rows for text in row), default=0)
        self.window = longest + 1  # a token is a byte at least; and decoding may drop a space before the first one

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """(rows, seq) prompts and answers so far -> (rows,) of bool. A prompt has its rows one after the other."""
        said = input_ids[:, self.begin :][:, -self.window :].tolist()
        repeats = len(said) // len(self.rows)
        over = [self._is_over(ids, self.rows[index // repeats]) for index, ids in enumerate(said)]
        return torch.tensor(over, dtype=torch.bool, device=input_ids.device)

    def _is_over(self, ids: list[int], texts: Sequence[str]) -> bool:
        if not texts:
            return False
        said = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return any(text in said for text in texts)


class Guesses:
    """A call of `generate` in which tokens are guessed and then verified.

    Args:
        criteria: where a text is over.
        settings: of the call, its own copy.
        cache: what all models have read.
    """

    def __init__(self, criteria: StoppingCriteriaList, settings: GenerationConfig, cache: Any) -> None:
        self.criteria, self.settings = criteria, settings
        self.cache = cache if isinstance(cache, ValueAdapterCache) else None
        self._longest = settings.max_length
        self._settled = 0 if self.cache is None else self.cache.read_by(BASE)

    def is_over(self, text: torch.Tensor) -> bool:
        """Whether (1, seq) ids end here."""
        return bool(self.criteria(text, None).any())

    def _begin_round(self) -> None:
        """What all models have read by now is settled."""
        self.settings.max_length = self._longest
        if self.cache is not None:
            self._settled = self.cache.read_by(BASE)

    def cutting(self, generator: Any) -> Any:
        """The same candidate generator, whose guesses break off behind the first one that ends the text."""
        guess = generator.get_candidates

        def get_candidates(input_ids: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
            self._begin_round()
            ids, logits = guess(input_ids, **given)
            ids = self._cut(ids, input_ids.shape[1])
            return ids, None if logits is None else logits[:, : ids.shape[1] - input_ids.shape[1]]

        generator.get_candidates = get_candidates  # of this one; transformers looks at what kind a generator is
        return generator

    def _cut(self, ids: torch.Tensor, before: int) -> torch.Tensor:
        """Guesses up to the first one behind which the text is over, and nothing is accepted behind that one.

        transformers cuts what it accepts at stop tokens and at the longest length alone, so that is where this one is.
        The guess stays: were it left out for what it is, sampling would hardly ever end a text.
        """
        for end in range(before + 1, ids.shape[1] + 1):
            if self.is_over(ids[:, :end]):
                self.settings.max_length = end
                return ids[:, :end]
        return ids

    def take_back(self) -> None:
        """Takes back what was read of guesses, after an error."""
        if self.cache is not None:
            self.cache.take_back(self._settled)


def ends_of(
    attached: AttachedAdapters,
    rows: Sequence[Collection[str] | None],
    stop_strings: str | Sequence[str] | Recorded | None,
    *,
    ids: torch.Tensor | None,
    arguments: Mapping[str, Any],
) -> AnswerEnds | None:
    """Where the answers of a call of `generate` are over, besides the tokens that end them; None where no text does.

    Args:
        attached: the adapters that there are.
        rows: for each prompt the names of its adapters; None for those that are active.
        stop_strings: what the caller gave; RECORDED for what the adapters of each prompt record.
        ids: (batch, seq) the prompts.
        arguments: all others of the call, by name.

    Raises:
        ConfigError: what the caller gave are no texts, or empty ones.
    """
    if isinstance(stop_strings, Recorded):
        named = getattr(arguments.get("generation_config"), "stop_strings", None)
        texts = [] if named else [attached.stop_strings(names) for names in rows]
    else:
        given = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings or ())
        if not all(isinstance(text, str) and text for text in given):
            raise ConfigError(f"stop_strings must be texts that are not empty; got {list(given)!r}. None is no stop")
        texts = [given]
    if not any(texts):
        return None
    # without a prompt transformers begins with a token of its own, or with embeddings that it has no ids of
    begin = ids.shape[1] if ids is not None else int(arguments.get("inputs_embeds") is None)
    return AnswerEnds(texts, arguments.get("tokenizer") or attached.base_tokenizer(), begin=begin)


def stopping(arguments: dict[str, Any], ends: AnswerEnds | None, settings: Sequence[Any]) -> dict[str, Any]:
    """What to call `generate` with, so that it stops where an answer is over.

    Args:
        arguments: of the call, all by name.
        ends: where an answer is over; None leaves the arguments as they are.
        settings: the generation settings that hold in the call, in which a padding token may be named.
    """
    if ends is not None:
        given = arguments.get("stopping_criteria") or ()
        arguments = {**arguments, "stopping_criteria": StoppingCriteriaList([*given, ends])}
        if all(getattr(one, "pad_token_id", None) is None for one in settings):
            _set_padding(arguments, padding(ends.tokenizer))
    return arguments


def _set_padding(arguments: dict[str, Any], token: int) -> None:
    """Names what finished rows are filled up with: in the settings where some are given, which must be all there is."""
    if arguments.get("generation_config") is None:
        arguments.setdefault("pad_token_id", token)
    else:
        arguments["generation_config"] = copy.copy(arguments["generation_config"])
        arguments["generation_config"].pad_token_id = token


@contextmanager
def guessing(criteria: StoppingCriteriaList, settings: GenerationConfig, cache: Any) -> Iterator[None]:
    """Within the block tokens are guessed; arguments as `Guesses`. An error leaves no guess in the cache."""
    guesses = Guesses(criteria, settings, cache)
    token = _GUESSES.set(guesses)
    try:
        yield
    except BaseException:
        guesses.take_back()
        raise
    finally:
        _GUESSES.reset(token)


def guesses_here() -> Guesses | None:
    """The call of `generate` that guesses here; None where none does."""
    return _GUESSES.get()
