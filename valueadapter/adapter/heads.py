"""Where a causal language model's logits come from: its body's last hidden state and its output head.

Knows nothing of losses, caches or the sum of two models; only whether `logits = hidden @ weight.T + bias` holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from valueadapter.adapter.causal_lm import in_its_words

_PROBE_LENGTH = 8
_PROBE_RANGE = 300.0
"""Far beyond what soft-capping leaves as it is (caps in use are 15 to 50)."""


@dataclass(frozen=True)
class Head:
    """An output head: logits = hidden @ weight.T + bias."""

    weight: torch.Tensor
    """(vocab, hidden), the model's own parameter and perhaps its embedding's too."""
    bias: torch.Tensor | None = None
    """(vocab,)."""


@dataclass(frozen=True)
class LazyLogits:
    """Logits that nobody has computed yet."""

    hidden: torch.Tensor
    """(tokens, hidden)."""
    head: Head

    def rows(self, rows: slice, width: int | None = None) -> torch.Tensor:
        """Logits of some of the tokens, (rows, vocab), in the head's dtype whatever the hidden states'.

        Args:
            rows: which tokens.
            width: only the first columns of the vocabulary; None computes all.
        """
        weight, bias = self.head.weight[:width], None if self.head.bias is None else self.head.bias[:width]
        return nn.functional.linear(self.hidden[rows].to(weight.dtype), weight, bias)


def joined(heads: Sequence[Head], coefficients: Sequence[float]) -> Head:
    """One head for Σ c · logits of several, which reads what `joined_hidden` makes of their hidden states.

        Σ c (h Wᵀ + b) = [c h, …] @ [W, …]ᵀ + Σ c b

    So several networks are one with as many hidden units as they have together.
    """
    if len(heads) == 1 and (heads[0].bias is None or coefficients[0] == 1):
        return heads[0]
    weights = [head.weight for head in heads]
    weight = torch.cat(weights, dim=-1) if len(weights) > 1 else weights[0]
    return Head(weight, joined_bias([head.bias for head in heads], coefficients))


def joined_bias(biases: Sequence[torch.Tensor | None], coefficients: Sequence[float]) -> torch.Tensor | None:
    """The bias of the `joined` head, (vocab,), where one of the heads has one."""
    weighted = [c * bias for bias, c in zip(biases, coefficients, strict=True) if bias is not None]
    return torch.stack(weighted).sum(0) if weighted else None


def joined_hidden(states: Sequence[torch.Tensor], coefficients: Sequence[float]) -> torch.Tensor:
    """Hidden states, each (…, hidden), side by side as the `joined` head reads them: (…, Σ hidden)."""
    weighted = [one if c == 1 else c * one for one, c in zip(states, coefficients, strict=True)]
    return torch.cat(weighted, dim=-1) if len(weighted) > 1 else weighted[0]


def head_of(model: PreTrainedModel) -> Head | None:
    """The head of a model whose logits are its body's last hidden state times the head, and nothing else.

    A probe decides, not a list of architectures: the model reads a few ids while a hook puts large numbers of our own
    in the place of the head's output. The logits must be those numbers (no soft cap, no scaling, whatever the weights:
    a head of zeros would hide both), and what the head reads must be the body's last hidden state.

    Args:
        model: a causal language model, plain or a `PeftModel`. Modes of its modules are restored.

    Returns:
        The head, sharing the model's parameters; None where the logits come about in another way, or where the head
        is more than a `torch.nn.Linear` (LoRA on it, quantized).
    """
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear:  # a subclass may compute something else from the same weight
        return None
    put = _PROBE_RANGE * torch.linspace(-1, 1, linear.out_features, device=linear.weight.device)
    read: list[torch.Tensor] = []

    said: list[torch.Tensor] = []

    def replace(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        read.append(inputs[0])
        said.append(put.to(output.dtype).expand_as(output))
        return said[0]

    ids = (torch.arange(_PROBE_LENGTH, device=model.device) % linear.out_features)[None]
    handle = linear.register_forward_hook(replace)
    try:
        with _evaluating(model), _own_forward(model), torch.autocast(model.device.type, enabled=False):
            logits = model(input_ids=ids, use_cache=False, return_dict=True).logits
            hidden = last_hidden_state(model, input_ids=ids, use_cache=False)
    finally:
        handle.remove()
    same_output = len(said) == 1 and said[0].shape == logits.shape and torch.equal(logits, said[0].to(logits.dtype))
    same_output &= logits.shape[:2] == ids.shape
    same_input = len(read) == 1 and read[0].shape == hidden.shape and _close(read[0], hidden)
    return Head(linear.weight, linear.bias) if same_output and same_input else None


def head_now(model: PreTrainedModel) -> Head:
    """The head of a model of which `head_of` has found one, with the parameters that it has at this moment.

    What shards a model (FSDP) puts others in their place, and whole ones for the time in which they are needed.
    """
    linear = cast(Any, model.get_output_embeddings())
    if hasattr(linear, "unshard"):  # of FSDP, which does it by itself only where the layer's own forward runs
        linear.unshard()
    return Head(linear.weight, linear.bias)


def last_hidden_state(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    """What the output head would read, without computing logits.

    Args:
        model: a causal language model, plain or a `PeftModel`.
        inputs: as for the model's forward: `input_ids` or `inputs_embeds`, `attention_mask`, `position_ids`, `cache`,
            `use_cache`, …

    Returns:
        (batch, seq, hidden), after the last norm.
    """
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = in_its_words(plain.base_model, inputs)
    return cast(torch.Tensor, plain.base_model(**inputs, return_dict=True).last_hidden_state)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for the order in which a device adds up."""
    error = (a.float() - b.float()).abs().max()
    return bool(error <= 10 * torch.finfo(a.dtype).eps * b.float().abs().max())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; then every module as it was, which `train()` could not restore."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _own_forward(model: nn.Module) -> Iterator[None]:
    """The model without a `forward` that a trainer has put over its own, perhaps under autocast; accelerate's stays."""
    put_over = None if hasattr(model, "_hf_hook") else vars(model).pop("forward", None)
    try:
        yield
    finally:
        if put_over is not None:
            vars(model)["forward"] = put_over
