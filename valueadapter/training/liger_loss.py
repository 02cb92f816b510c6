"""Liger's CUDA kernel for a linear layer with its cross-entropy, applied to two heads at once.

    z_b + s z_v = [h_b, s h_v] @ [W_b, W_v]ᵀ + (b_b + s b_v)

Knows when the kernel can take over. Knows nothing of penalties, nor of what replaces it elsewhere (`chunked_loss`).
"""

from __future__ import annotations

import importlib.util

import torch

from valueadapter.adapter.heads import Head, LazyLogits, joined, joined_hidden

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def usable(base: LazyLogits, value: LazyLogits) -> bool:
    """Whether `cross_entropy` can compute this: on a GPU, with Liger installed, the two vocabularies equally wide, and
    with gradients to make for the value's hidden states (without, Liger makes none for the head either)."""
    tensors = (base.hidden, base.head.weight, value.hidden, value.head.weight)
    return (
        all(tensor.is_cuda and tensor.device == tensors[0].device and tensor.dtype in _DTYPES for tensor in tensors)
        and len(base.head.weight) == len(value.head.weight)
        and torch.is_grad_enabled()
        and value.hidden.requires_grad
        and importlib.util.find_spec("liger_kernel") is not None
    )


def as_one(base: LazyLogits, value: LazyLogits, scale: float) -> LazyLogits:
    """`base + scale · value` as the logits of one head, in the dtype of the value's.

    Returns:
        Hidden states of (tokens, base_hidden + value_hidden) and their head; gradients reach the value's half only.
    """
    like, coefficients = value.head.weight, (1.0, scale)
    bias = None if base.head.bias is None else base.head.bias.detach().to(like)
    of_base = Head(base.head.weight.detach().to(like), bias)
    hidden = joined_hidden((base.hidden.detach().to(like), value.hidden.to(like)), coefficients)
    return LazyLogits(hidden, joined((of_base, value.head), coefficients))


def cross_entropy(
    base: LazyLogits, value: LazyLogits, *, labels: torch.Tensor, scale: float, label_smoothing: float
) -> torch.Tensor:
    """The sum over the tokens of the cross-entropy of `base + scale · value`, in nats, float32.

    Source: Hsu et al., "Liger Kernel: Efficient Triton Kernels for LLM Training", arXiv 2410.10989.
    """
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy  # an optional extra

    both = as_one(base, value, scale)
    loss: torch.Tensor = liger_fused_linear_cross_entropy(
        both.hidden,
        both.head.weight,
        labels,
        bias=both.head.bias,
        label_smoothing=label_smoothing,
        reduction="sum",
        accum_dtype=torch.float32,  # else the head's gradient is added up in its own dtype
    )
    return loss.float()
