"""An adapter as a judge: how much likelier post-training made an answer, and the best of several by that measure.

Asks the model for likelihoods with and without its adapters; knows nothing of how either comes about.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation import StopStringCriteria

from valueadapter.artifact.config.number import whole
from valueadapter.demonstrations.encoding import response_ids, response_text
from valueadapter.demonstrations.messages import render
from valueadapter.demonstrations.tokenized import IGNORED, left_padded
from valueadapter.errors import AdapterNameError, ConfigError
from valueadapter.evaluation.question import Prompt, Question, as_read
from valueadapter.forward.bounded_logits import pieces
from valueadapter.forward.stops import as_set, stop_tokens
from valueadapter.model.modeling import ValueAdapterForCausalLM


@dataclass(frozen=True)
class BestOf:
    """Several answers to one prompt, and the one that the adapter likes best."""

    text: str
    """The best answer."""
    scores: tuple[float, ...]
    """Of every answer, in nats, in the order of `responses`."""
    responses: tuple[str, ...]
    """Every answer as it was sampled, without control tokens."""
    best: int
    """Index of the best answer; the first where several are equal."""


def value_score(
    model: ValueAdapterForCausalLM,
    prompt: Prompt,
    responses: Sequence[str],
    *,
    adapter_name: str | None = None,
    per_token: bool = False,
    end_of_sequence: bool = True,
    batch_size: int = 8,
) -> list[float]:
    """How much likelier the adapter makes each response: log p(y | x; base + adapter) - log p(y | x; base), nats.

    This is the implicit reward of the post-training that the adapter holds (Rafailov et al. 2023, arXiv
    2305.18290, with β = 1; Mitchell et al. 2023, arXiv 2310.12962). Positive where post-training made the response
    likelier. Scores of different prompts do not compare: what the prompt alone
    makes up is not taken out.

    The base's likelihood is the base's own, as within `disable_adapter()`.

    Args:
        model: base + adapters.
        prompt: text, or one conversation.
        responses: continuations of the prompt, tokenised as demonstrations are for training: behind the prompt's
            own tokens, and as the text goes on.
        adapter_name: this adapter alone, at its scale; by default the active ones as they stand.
        per_token: divide by the number of tokens. The sum favours long responses where the adapter likes most
            tokens, and short ones where it likes few.
        end_of_sequence: whether a response ends where its text does. False leaves that out, for responses that
            were cut off.
        batch_size: responses per forward pass; there are two for each, one of them of the base alone.

    Returns:
        A score for each response, in their order.

    Raises:
        ConfigError: no responses, an empty one, an empty prompt, a base without chat template for a chat, or one
            without end-of-sequence token.
        AdapterNameError: no such adapter, or none is active.
    """
    tokenizer = _tokenizer(model)
    batch_size = whole("batch_size", batch_size, least=1)
    question = as_read(model, prompt, tokenizer)
    answers = _encoded(responses, question, tokenizer)
    if end_of_sequence:
        end = _end_of_answer(model, question, tokenizer)
        answers = [ids if ids[-1] == end else [*ids, end] for ids in answers]
    with _judged_by(model, adapter_name):
        return _score(model, question, answers, per_token=per_token, batch_size=batch_size)


def best_of(
    model: ValueAdapterForCausalLM,
    prompt: Prompt,
    n: int,
    *,
    adapter_name: str | None = None,
    per_token: bool = False,
    from_base: bool = False,
    seed: int | None = None,
    **generation: Any,
) -> BestOf:
    """Samples n answers, scores each as `value_score` does, and returns the best.

    What is scored is what was sampled, token for token: the end of an answer counts if it was reached, and does
    not if `max_new_tokens` cut the answer off.

    Args:
        model: base + adapters.
        prompt: text, or one conversation.
        n: how many answers.
        adapter_name: sample and score with this adapter alone; by default with the active ones as they stand.
        per_token: score by the mean over tokens.
        from_base: sample from the base alone, and score with the adapter.
        seed: draws the same answers each time, and leaves torch's generators as they were.
        generation: for `generate`: `max_new_tokens`, `temperature`, `top_p`, `generation_config`, …

    Raises:
        ConfigError: n is not positive, an empty prompt, or a base without chat template for a chat.
        AdapterNameError: no such adapter, or none is active.
    """
    n = whole("n, how many answers are sampled,", n, least=1)
    seed = None if seed is None else whole("seed", seed)
    tokenizer = _tokenizer(model)
    question = as_read(model, prompt, tokenizer)
    with _judged_by(model, adapter_name):
        with model.disable_adapter() if from_base else contextlib.nullcontext(), _seeded(seed, model.device):
            answers = _sample(model, question, n, tokenizer, generation)
        scores = _score(model, question, answers, per_token=per_token)
    texts = tuple(response_text(answer, tokenizer, prompt=question.ids) for answer in answers)
    best = max(range(n), key=scores.__getitem__)
    return BestOf(texts[best], tuple(scores), texts, best)


def _tokenizer(model: ValueAdapterForCausalLM) -> PreTrainedTokenizerBase:
    if model.base_tokenizer is None:
        raise ConfigError(
            "the base's tokenizer is not known; attach an adapter, or pass tokenizer= to ValueAdapterForCausalLM"
        )
    return model.base_tokenizer


@contextlib.contextmanager
def _judged_by(model: ValueAdapterForCausalLM, adapter_name: str | None) -> Iterator[None]:
    """Within the block the named adapter acts alone, or those that are active do."""
    if adapter_name is not None:
        model.attached.get(adapter_name)
        with model.only(adapter_name, scale=model.scales[adapter_name]):
            yield
        return
    if not model.active_adapters:
        raise AdapterNameError(
            f"no adapter is active, so that every score would be 0; attached are {list(model.adapters) or 'none'}. "
            "Name one with adapter_name=, or activate one with set_adapter"
        )
    yield


def _end_of_answer(model: ValueAdapterForCausalLM, question: Question, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer; in a chat the one after it in the template at which `generate` stops."""
    if question.messages is not None:
        answered = [*question.messages, {"role": "assistant", "content": "."}]
        text = render(answered, tokenizer, generation=False)
        after = tokenizer(text, add_special_tokens=False)["input_ids"][len(question.ids) :]
        stops = stop_tokens(model, tokenizer)
        for token in after:
            if token in stops:
                return int(token)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the base's tokenizer has no end-of-sequence token; set eos_token, or score with end_of_sequence=False"
        )
    return int(tokenizer.eos_token_id)


@torch.no_grad()
def _score(
    model: ValueAdapterForCausalLM,
    question: Question,
    answers: Sequence[list[int]],
    *,
    per_token: bool,
    batch_size: int = 8,
) -> list[float]:
    scores: list[float] = []
    for start in range(0, len(answers), batch_size):
        some = answers[start : start + batch_size]
        adapted = _log_likelihoods(model, question, some)
        with model.disable_adapter():
            alone = _log_likelihoods(model, question, some)
        totals = (adapted - alone).double().sum(dim=-1).tolist()
        scores += [t / len(ids) if per_token else t for t, ids in zip(totals, some, strict=True)]
    return scores


def _log_likelihoods(model: ValueAdapterForCausalLM, question: Question, answers: Sequence[list[int]]) -> torch.Tensor:
    """Of each answer's tokens, in nats, (batch, longest answer), padded on the left with 0."""
    ids = left_padded([question.ids + answer for answer in answers]).to(model.device)
    mask = left_padded([[1] * (len(question.ids) + len(answer)) for answer in answers]).to(model.device)
    own = left_padded([[1] * len(answer) for answer in answers]).bool().to(model.device)
    longest = own.shape[1]
    inputs: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(dim=-1) - 1).clamp(min=0),
    }
    if question.messages is not None:
        inputs["messages"] = question.messages
    found = torch.zeros(int(own.sum()), device=model.device)
    for piece in pieces(model, inputs, ids[:, -longest:].masked_fill(~own, IGNORED)):
        nats = torch.nn.functional.cross_entropy(piece.logits, piece.labels, reduction="none")
        found[piece.places.to(found.device)] = -nats.to(found)
    return found.new_zeros(own.shape).masked_scatter(own, found)


def _sample(
    model: ValueAdapterForCausalLM,
    question: Question,
    n: int,
    tokenizer: PreTrainedTokenizerBase,
    generation: dict[str, Any],
) -> list[list[int]]:
    """The ids of n answers, each up to and with the token that ends it."""
    given = generation.pop("generation_config", None)
    config = copy.deepcopy(given or model.generation_config) or GenerationConfig()
    if config.eos_token_id is None or (given is None and "eos_token_id" not in generation):
        config.eos_token_id = sorted(stop_tokens(model, tokenizer)) or None
    rest = config.update(
        **{**generation, "do_sample": True, "num_return_sequences": n, "return_dict_in_generate": False}
    )
    stops = as_set(config.eos_token_id)
    if config.pad_token_id is None:  # what stands behind an answer is cut off by its length, whatever it is
        config.pad_token_id = min(stops, default=0)
    criteria = StoppingCriteriaList(rest.pop("stopping_criteria", None) or [])
    if config.stop_strings is not None:
        criteria.append(StopStringCriteria(rest.pop("tokenizer", None) or tokenizer, config.stop_strings))
        config.stop_strings = None
    lengths = _Lengths(criteria, n)
    ids = torch.tensor([question.ids], device=model.device)
    if question.messages is not None:
        rest["messages"] = question.messages
    mask = torch.ones_like(ids)
    rest["stopping_criteria"] = StoppingCriteriaList([lengths])
    out = model.generate(input_ids=ids, attention_mask=mask, **rest, generation_config=config)
    rows = [row[: length or None] for row, length in zip(out.tolist(), lengths.found, strict=True)]
    return [until_end(row[len(question.ids) :], stops) for row in rows]


class _Lengths(StoppingCriteria):
    """Asks other criteria, and keeps at what length each row was stopped by them; 0 where it was not."""

    def __init__(self, criteria: StoppingCriteriaList, rows: int) -> None:
        self.criteria, self.found = criteria, [0] * rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if not self.criteria:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        done = self.criteria(cast(Any, input_ids), scores, **kwargs)
        self.found = [
            found or (input_ids.shape[1] if stopped else 0)
            for found, stopped in zip(self.found, done.tolist(), strict=True)
        ]
        return cast(torch.Tensor, done)


def _encoded(responses: Sequence[str], question: Question, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if isinstance(responses, str) or not responses:
        raise ConfigError(f"responses must be a list of at least one text; got {responses!r}")
    encoded = [response_ids(text, tokenizer, prompt=question.text) for text in responses]
    if [] in encoded:
        raise ConfigError(
            f"response {encoded.index([])} is empty, so that there is nothing to score; expected text. Leave it out"
        )
    return encoded


def until_end(ids: list[int], stops: set[int]) -> list[int]:
    """The answer with the token that ended it, without what makes rows of a batch equally long."""
    return next((ids[: index + 1] for index, token in enumerate(ids) if token in stops), ids)


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Within the block torch draws from this seed; afterwards as if nothing had been drawn."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
