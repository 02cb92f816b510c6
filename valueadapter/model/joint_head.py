"""Base and networks shown as one body with one output head, for trainers that never call `forward`.

    [h_b, h_1, …] @ [(1 + s (w_b - 1)) W_b, s w_1 W_1, …]ᵀ + s w_end [end of text]

TRL's trainers run `model.base_model` and multiply with `model.get_output_embeddings().weight` themselves; what they
compute is then the wrapper's sum. Knows nothing of TRL, losses or caches.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from valueadapter.adapter.causal_lm import execution_device, fit_width, is_sharded, logits_width, moved
from valueadapter.adapter.heads import Head, head_of, joined, joined_bias, last_hidden_state
from valueadapter.adapter.model_state import settings_of
from valueadapter.errors import UnsupportedModeError
from valueadapter.forward.prefix_reading import BasePrefix
from valueadapter.forward.value_logits import Term, readable
from valueadapter.model.wrapped import WrappedModel

_plain: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
"""Models whose logits are their last hidden state times their head, as a probe has found -> how each was set then."""


class Part(NamedTuple):
    """One of the models, and what its logits count for."""

    model: PreTrainedModel
    weight: float


class OutputHead(nn.Module):
    """The one head of base and networks, without parameters of its own: `logits = hidden @ weight.T + bias`.

    `hidden` is what `Backbone` gives, (…, Σ hidden sizes). The matrix is put together anew each time it is asked for,
    from the models' own, so that gradients reach a head that is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        self.parts: tuple[Part, ...] = ()
        self.ends: Sequence[tuple[Sequence[int], float]] = ()

    @property
    def logits_width(self) -> int:
        """Rows of the matrix, which are the base's."""
        return len(self._linears()[0][0].weight)

    @property
    def weight(self) -> torch.Tensor:
        """(base_vocab, Σ hidden sizes); networks' rows are cut or filled up with their mean to the base's number."""
        linears = self._linears()
        width = len(linears[0][0].weight)
        # the bodies' hidden states come as they are, so each model's weight stands in its columns of the matrix
        heads = [Head(_rows(weight * one.weight if weight != 1 else one.weight, width)) for one, weight in linears]
        return joined(heads, [1.0] * len(heads)).weight

    @property
    def bias(self) -> torch.Tensor | None:
        """(base_vocab,), where a model has a bias or an end is weighted; without the matrix, which is large."""
        linears = self._linears()
        width = len(linears[0][0].weight)
        biases = [None if one.bias is None else fit_width(one.bias[None], width)[0] for one, _ in linears]
        bias = joined_bias(biases, [weight for _, weight in linears])
        for tokens, weight in self.ends:
            bias = linears[0][0].weight.new_zeros(width) if bias is None else bias.clone()
            bias[list(tokens)] += weight
        return bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, Σ hidden sizes) to logits of (…, base_vocab)."""
        return nn.functional.linear(hidden, self.weight, self.bias)

    def _linears(self) -> list[tuple[nn.Linear, float]]:
        return [(part.model.get_output_embeddings(), part.weight) for part in self.parts]


class Backbone:
    """The body of base and networks together; everything else that is asked of it, the base answers."""

    def __init__(self, owner: HeadMethods) -> None:
        self._owner = owner

    def __call__(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        """Runs the bodies, without cache and logits.

        Args:
            args: `input_ids` of (batch, seq) may come by position.
            kwargs: `input_ids, attention_mask, position_ids`; `use_cache` is passed over, others go to every model.

        Returns:
            `last_hidden_state` of (batch, seq, Σ hidden sizes), which `get_output_embeddings()` turns into logits.

        Raises:
            UnsupportedModeError: an adapter whose logits are no head times a hidden state over the base's own tokens.
        """
        return BaseModelOutputWithPast(last_hidden_state=self._owner.hidden_states(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        if name == "_owner":  # asked for before there is one, while it is copied
            raise AttributeError(name)
        return getattr(self._owner.base, name)

    def __repr__(self) -> str:
        return f"Backbone({type(self._owner.base).__name__} and the networks that act; model.base is the base alone)"


class HeadMethods(WrappedModel):
    """The part of `ValueAdapterForCausalLM` that shows it as one body and one head."""

    output_head: OutputHead

    @property
    def base_model(self) -> Backbone:
        """Base and networks as one body, as transformers names what stands before the head; `base` is the base."""
        return Backbone(self)

    def get_output_embeddings(self) -> nn.Module:
        """The output head: the base's, or while adapters act one for base and networks together, see `base_model`."""
        terms = self.attached.terms()
        if not terms or self._why_no_head(terms):
            return cast(nn.Module, self.base.get_output_embeddings())
        self.output_head.parts = (Part(self.base, 1 + sum(term.of_base for term in terms)), *_parts(terms))
        self.output_head.ends = [(term.ends, term.of_end) for term in terms if term.of_end]
        return self.output_head

    def _why_no_head(self, terms: list[Term]) -> str | None:
        for term in terms:
            if term.link is not None:
                return f"base and adapter '{term.name}' have different vocabularies"
            if term.connection != "residual":
                return f"the networks of '{term.name}' read what the base expects (connection {term.connection})"
        if is_sharded(self.base) or any(is_sharded(network) for term in terms for network in term.networks):
            return "each process has a part of the weights (FSDP or ZeRO-3)"
        models = [("base", self.base), *((f"network of '{t.name}'", network) for t in terms for network in t.networks)]
        return next(
            (
                f"the {what}'s logits are not its last hidden state times its head"
                for what, m in models
                if not _simple(m)
            ),
            None,
        )

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The last hidden states of base and networks side by side, (batch, seq, Σ hidden sizes); see `Backbone`.

        Raises:
            UnsupportedModeError: an adapter whose logits are no head times a hidden state over the base's own tokens.
        """
        self.check_base()
        terms, prefix = self.attached.terms(), self.attached.acting_prefix()
        if why := self._why_no_head(terms) if terms else None:
            raise UnsupportedModeError(
                f"this trainer takes logits from hidden states and one output head, and here {why}. Train with "
                "ValueTrainer, or on logits: model(input_ids, labels=…)"
            )
        self.attached.note_training()
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
        read = {key: value for key, value in given.items() if value is not None}
        with torch.no_grad():
            if prefix is None:
                hidden = [last_hidden_state(self.base, **read, use_cache=False)]
            else:
                hidden = [_after(prefix, **read)]
        width = logits_width(self.base)
        for term in terms:
            for part, network in zip(term.parts, term.networks, strict=True):
                ids = readable(input_ids, network, width)
                own = moved({**read, "input_ids": ids}, execution_device(network))
                before = term.prefix_of(part)
                said = last_hidden_state(network, **own, use_cache=False) if before is None else _after(before, **own)
                hidden.append(said.to(hidden[0].device))
        return torch.cat(hidden, dim=-1)


def _parts(terms: list[Term]) -> list[Part]:
    return [
        Part(network, term.scale * weight)
        for term in terms
        for network, weight in zip(term.networks, term.weights.networks, strict=True)
    ]


def _simple(model: PreTrainedModel) -> bool:
    """Whether logits are last hidden state times head; the probe runs once for each model and way to set it."""
    if type(model.get_output_embeddings()) is not nn.Linear:
        return False
    setting = settings_of(model)
    if _plain.get(model) == setting:
        return True
    _plain.pop(model, None)
    if simple := head_of(model) is not None:
        _plain[model] = setting
    return simple


def _after(prefix: BasePrefix, **read: Any) -> torch.Tensor:
    mask, positions = read.pop("attention_mask", None), read.pop("position_ids", None)
    if mask is None and positions is not None:
        raise UnsupportedModeError(
            "rows that are several texts (packing, padding_free) cannot be read behind a base prefix; switch both off, "
            "or train with set_base_prefix(None) and record the prefix afterwards"
        )
    return prefix.hidden(read.pop("input_ids"), mask, positions, **read)


def _rows(weight: torch.Tensor, count: int) -> torch.Tensor:
    return weight if len(weight) == count else fit_width(weight.T, count).T
