"""An adapter's own network drafts tokens, and base and adapter verify several of them in one pass each.

Speculative decoding (Leviathan et al., ICML 2023, arXiv 2211.17192) whose assistant is a part of the model it assists:
the logits that drafting took are the network's own share of the sum, so that nothing runs twice. Knows no weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin
from transformers.generation import CandidateGenerator, UnbatchedClassifierFreeGuidanceLogitsProcessor

from valueadapter.adapter.causal_lm import logits_width
from valueadapter.compat import carried, installed
from valueadapter.errors import ConfigError, UnsupportedModeError
from valueadapter.forward.cache import ValueAdapterCache
from valueadapter.forward.one_pass import NetworkSaid
from valueadapter.forward.steps import has_read, keeps_cache, longest_alike
from valueadapter.forward.value_logits import Inputs, Term, in_base_vocabulary, said_by
from valueadapter.model.preparing import aligned, networks_of, own_steps, prefixes_of
from valueadapter.model.stopping import Guesses
from valueadapter.model.wrapped import WrappedModel

_MOST = 16
"""Tokens drafted in a round at most, where nobody says how many."""
_PRIOR = (7.0, 3.0)
"""Drafted tokens taken and refused that the first round is planned with."""
_MEMORY = 0.9
"""What an earlier round counts for, beside the next one."""


class OwnDraft(NamedTuple):
    """Which network drafts; stands where transformers takes an assistant model."""

    config: PreTrainedConfig
    """The base's: what is drafted are its tokens."""
    term: Term
    part: str
    """The network's name."""
    tokens: int | None
    """Tokens drafted in a round; None for as many as pay, by what has been taken so far."""

    @property
    def network(self) -> PreTrainedModel:
        """The one that drafts."""
        return self.term.networks[self.term.parts.index(self.part)]


def own_draft(model: WrappedModel, count: int | None, *, rows: int, others: Mapping[str, Any]) -> OwnDraft:
    """The network that drafts for a model as it acts now: the one that counts most of those that speak its vocabulary.

    Args:
        model: the model.
        count: tokens drafted in a round, where that is given.
        rows: prompts of the call.
        others: what else the call of `generate` was given.

    Raises:
        ConfigError: a number of tokens that is none.
        UnsupportedModeError: no network can draft, several prompts, or another way to guess besides.
    """
    if count is not None and (type(count) is not int or count < 0):
        raise ConfigError(f"num_assistant_tokens must be a whole number of at least 0; got {count!r}")
    also = [name for name in ("assistant_model", "prompt_lookup_num_tokens") if others.get(name) is not None]
    if also:
        raise UnsupportedModeError(f"speculative=True drafts by the adapter and {also[0]} by another; give one")
    several = max(rows, others.get("num_return_sequences") or 1)
    if several > 1 or (others.get("num_beams") or 1) > 1:
        what = f"{several} texts" if several > 1 else f"num_beams={others['num_beams']}"
        raise UnsupportedModeError(
            f"speculative=True writes one text at a time, greedily or sampled; got {what}. Leave it out, or call "
            "generate for each prompt"
        )
    _check_caches(list(aligned(model.base, model.attached.terms()).values()), others.get("use_cache"))
    found = [
        (term.scale * weight, term, part)
        for term in model.attached.terms()
        if not term.reads_text and not term.reads_prediction
        for part, weight in zip(term.parts, term.weights.networks, strict=True)
        if term.scale * weight > 0
    ]
    if not found:
        acting = ", ".join(term.name for term in model.attached.terms()) or "none"
        raise UnsupportedModeError(
            "speculative=True needs an adapter that acts, of the base's vocabulary, with a network that reads tokens "
            f"and counts positively; acting: {acting}. Leave it out, or activate one"
        )
    _, term, part = max(found, key=lambda one: one[0])
    return OwnDraft(model.base.config, term, part, count)


def check_no_state(models: Iterable[PreTrainedModel], what: str) -> None:
    """Raises where a model keeps a state from which no tokens can be taken back, as guesses need.

    Args:
        models: those that read a token for each of the base's.
        what: how tokens are guessed.

    Raises:
        UnsupportedModeError: one does. transformers refuses such a model alone, and looks at no others.
    """
    for one in models:
        if any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in DynamicCache(config=one.config).layers):
            raise UnsupportedModeError(
                f"{what} takes tokens back, and a {type(one).__name__} keeps a state from which none can be taken. "
                "Leave it out"
            )


def _check_caches(models: Sequence[PreTrainedModel], use_cache: bool | None) -> None:
    """Raises unless all models keep a cache from which tokens can be taken back."""
    lacking = [one for one in models if not keeps_cache(one)]
    if lacking or use_cache is False:
        why = f"a {type(lacking[0]).__name__} keeps none of transformers' kind" if lacking else "use_cache is False"
        raise UnsupportedModeError(f"speculative=True goes on from a cache, and {why}. Leave it out")
    check_no_state(models, "speculative=True")
    for one in models:
        layers = DynamicCache(config=one.config).layers
        if installed("transformers") < (5, 18) and any(layer.is_sliding for layer in layers):
            raise UnsupportedModeError(
                f"speculative=True needs transformers 5.18 or newer where a model attends to a window, as a "
                f"{type(one).__name__} does: before, steps that follow one another are not read as one by one. Update "
                "it, or leave it out"
            )


class DraftedCandidates(CandidateGenerator):
    """What one network says comes next, token by token, and its logits for the sum.

    Args:
        model: the model that is drafted for.
        draft: by which of its networks.
        settings: of the call of `generate`.
        processors: what turns logits into those that a token is chosen by, of the network as of the sum.
        guesses: the call.
    """

    requires_model_outputs = True
    model_kwargs_overrides: Mapping[str, Any] = {}

    def __init__(
        self,
        model: WrappedModel,
        draft: OwnDraft,
        settings: GenerationConfig,
        processors: LogitsProcessorList,
        guesses: Guesses,
    ) -> None:
        if any(isinstance(one, UnbatchedClassifierFreeGuidanceLogitsProcessor) for one in processors):
            raise UnsupportedModeError("guidance_scale runs the model on a text of its own; leave speculative=True out")
        self.model, self.draft, self.settings, self.processors = model, draft, settings, processors
        self.guesses = guesses
        self.taken, self.refused = _PRIOR
        self._drafted = 0
        self._cost = _cost(model, draft)
        self._alike = _longest_alike(model)
        self._width = logits_width(model.base)

    def get_candidates(
        self, input_ids: torch.Tensor, *, model_kwargs: Mapping[str, Any], **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Drafts until enough or until the text is over.

        Args:
            input_ids: (1, seq) the text so far.
            model_kwargs: what `generate` carries: the cache, mask and positions.

        Returns:
            (1, seq + drafted) ids, and (1, drafted, base_vocab) what they were chosen by, or None without any.
        """
        cache: ValueAdapterCache = model_kwargs[carried()]
        text, scores, said = input_ids, [], []
        left = self.how_many(text.shape[1])
        while (one := self._says(text, cache, model_kwargs)) is not None:
            said.append(one.logits)
            if left == 0:
                break
            own = in_base_vocabulary(self.draft.term, one, self._width)[:, -1].float().to(text.device)
            chosen_by = self.processors(text, own)
            text = torch.cat([text, self._choose(chosen_by)], dim=-1)
            scores.append(chosen_by)
            left = 0 if self.guesses.is_over(text) else left - 1
        if len(said) == len(scores) and scores:  # the network wants to read all anew: what it has not read is no draft
            text = text[:, :-1]
            scores.pop()
        if said:
            cache.ahead[self.draft.part] = NetworkSaid(torch.cat(said, dim=1))
        self._drafted = len(scores)
        return text, torch.stack(scores, dim=1) if scores else None

    def how_many(self, length: int) -> int:
        """Tokens to draft behind a text of this length: as given, or as many as bring most tokens for their cost.

        None where a model turns positions by the length of the text: several read at once are not what one by one is.
        """
        room = min(int(self.settings.max_length), self._alike) - length - 1
        if self.draft.tokens is not None:
            return int(max(0, min(self.draft.tokens, room)))
        rate = self.taken / (self.taken + self.refused)
        each = [sum(rate**taken for taken in range(count + 1)) for count in range(_MOST + 1)]
        best = max(range(1, _MOST + 1), key=lambda count: each[count] / (1 + (count + 1) * self._cost))
        return int(max(0, min(best, room)))

    def update_candidate_strategy(self, input_ids: torch.Tensor, scores: torch.Tensor, num_matches: int) -> None:
        """Learns from how many of the last draft were taken."""
        if self._drafted:
            self.taken = _MEMORY * self.taken + int(num_matches)
            self.refused = _MEMORY * self.refused + (int(num_matches) < self._drafted)

    def _says(self, text: torch.Tensor, cache: ValueAdapterCache, given: Mapping[str, Any]) -> NetworkSaid | None:
        """What the network says behind a text, (1, 1, value_vocab); None where it wants to read everything anew."""
        part, length = self.draft.part, text.shape[1]
        count = length - cache.read_by(part) if has_read(cache.parts[part]) else None
        mask, positions = _longer(given.get("attention_mask"), given.get("position_ids"), length)
        how: dict[str, Any] = {"attention_mask": mask, "position_ids": positions, "cache": cache}
        how |= {"use_cache": True, "logits_to_keep": 1, "is_first_iteration": count is None}
        steps, anew = own_steps(self.model, text, count, only=(part,), **how)
        if anew:
            return None
        new = text if count is None else text[:, -count:]
        inputs = Inputs(
            input_ids=new,
            attention_mask=mask,
            position_ids=None if positions is None else positions[..., -new.shape[1] :],
            logits_to_keep=1,
            use_cache=True,
            cache=cache,
            base_logits=torch.empty(1, 0, self._width),
            steps=steps,
        )
        return said_by(self.draft.term, inputs, part)

    def _choose(self, scores: torch.Tensor) -> torch.Tensor:
        """(1, vocab) -> (1, 1)."""
        if self.settings.do_sample:
            return torch.multinomial(scores.softmax(dim=-1), num_samples=1)
        return scores.argmax(dim=-1, keepdim=True)


def _longer(
    mask: torch.Tensor | None, positions: torch.Tensor | None, length: int
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Mask and positions of a text that drafted tokens have made longer."""
    if mask is not None:
        mask = pad(mask, (0, length - mask.shape[-1]), value=1)
    if positions is not None:
        more = torch.arange(1, length - positions.shape[-1] + 1, device=positions.device, dtype=positions.dtype)
        positions = torch.cat([positions, positions[..., -1:] + more.expand(*positions.shape[:-1], -1)], dim=-1)
    return mask, positions


def _longest_alike(model: WrappedModel) -> float:
    """Tokens up to which each model reads several as it reads one by one."""
    terms = model.attached.terms()
    leads = {part: len(prefix.ids) for part, prefix in prefixes_of(model, terms).items()}
    limits = [(longest_alike(one), leads.get(part, 0)) for part, one in aligned(model.base, terms).items()]
    return min((limit - lead for limit, lead in limits if limit is not None), default=math.inf)


def _cost(model: WrappedModel, draft: OwnDraft) -> float:
    """A step of the network that drafts / a pass that verifies, by the weights that are read."""
    others = [model.base, *networks_of(model.attached.terms()).values()]
    verifying = {id(one): one for one in others if one is not draft.network}
    return _weights(draft.network) / sum(map(_weights, verifying.values()))


def _weights(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
