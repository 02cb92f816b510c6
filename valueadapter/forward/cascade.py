"""What a value network reads: tokens, the base's prediction of the next one, or both; knows no value logits.

    residual            E[ids]                               the token embedding
    cascade             softmax(base_logits) @ E             the mean embedding of what the base expects next
    cascade_with_text   E[ids] + softmax(base_logits) @ E    both

E is the network's input embedding as its module gives it (Gemma's is scaled), positions are the network's own business.
The base's logits carry no gradient; E takes one. Source: Lu et al. 2025, "Transferable Post-training via Inverse Value
Learning", arXiv 2410.21027.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from valueadapter.adapter.causal_lm import execution_device
from valueadapter.artifact.config import Connection
from valueadapter.vocabulary.alignment import VocabularyAlignment


def read_embeddings(
    connection: Connection,
    network: PreTrainedModel,
    ids: torch.Tensor,
    base_logits: torch.Tensor,
    alignment: VocabularyAlignment | None = None,
) -> torch.Tensor:
    """What a network of a cascade reads, in place of the embeddings of its tokens.

    The probabilities are taken over all of the base's columns, in float32. Columns that the network has no embedding
    for are padding of the base's logits and are left out.

    Args:
        connection: `cascade` or `cascade_with_text`.
        network: the value network.
        ids: (batch, seq) tokens under the network's ids.
        base_logits: (batch, seq, base_vocab), at every position.
        alignment: where the base has the same tokens under other ids.

    Returns:
        (batch, seq, hidden) for `inputs_embeds`, in the dtype of the network's embedding.
    """
    embedding = cast(nn.Embedding, network.get_input_embeddings())
    probabilities = base_logits.detach().to(execution_device(network)).softmax(dim=-1, dtype=torch.float32)
    if alignment is not None:
        probabilities = _under_value_ids(probabilities, alignment)
    mean = _mean_embedding(embedding, probabilities).to(embedding.weight.dtype)
    return mean if connection == "cascade" else embedding(ids.to(mean.device)) + mean


def _under_value_ids(probabilities: torch.Tensor, alignment: VocabularyAlignment) -> torch.Tensor:
    """Probabilities moved to the value side's ids; those of tokens that it lacks are dropped."""
    width = alignment.value.logits_width
    to = torch.from_numpy(alignment.source).to(probabilities.device) % (width + 1)  # -1, for none, is the last column
    moved = probabilities.new_zeros(*probabilities.shape[:-1], width + 1)
    return moved.index_add_(-1, to, probabilities)[..., :width]


def _mean_embedding(embedding: nn.Embedding, probabilities: torch.Tensor) -> torch.Tensor:
    """(batch, seq, hidden): probabilities @ E; widths that differ by padding are cut to the common one."""
    weight = embedding.weight
    width = min(weight.shape[0], probabilities.shape[-1])
    weights = probabilities[..., :width].to(weight.dtype)
    factor = None if weight.is_meta else _factor(embedding)  # of offloaded rows a look-up alone gives the values
    if factor is None:
        return weights @ cast(torch.Tensor, embedding(torch.arange(width, device=weights.device)))
    return weights @ weight[:width] * factor


def _factor(embedding: nn.Module) -> torch.Tensor | float | None:
    """What a module multiplies the rows of its weight with; None where it does something else to them.

    Looking up every row only to multiply it costs many times the product with the weight, at every token.
    """
    if not isinstance(embedding, nn.Embedding) or embedding.max_norm is not None:
        return None
    if type(embedding) is nn.Embedding:
        return 1.0
    only_scales = [name for name, _ in embedding.named_parameters()] == ["weight"]
    factor: torch.Tensor | float | None = getattr(embedding, "embed_scale", None) if only_scales else None
    return factor.to(embedding.weight.dtype) if isinstance(factor, torch.Tensor) else factor
