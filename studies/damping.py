"""An adapter whose value logits are weaker for tokens that carry content; what it learned of form stays as it is.

Form is what responses share: the tokens that occur in many of them. Knows nothing of training or scoring.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from valueadapter import ValueAdapter
from valueadapter.demonstrations.responses import Record
from valueadapter.demonstrations.tokenized import IGNORED, encode

SHARED = 0.05
"""A token of at least this share of the responses is form."""


def form_tokens(adapter: ValueAdapter, records: Sequence[Record]) -> list[int]:
    """The tokens that at least SHARED of the responses have, ends of text among them; rising."""
    counts: Counter[int] = Counter()
    for record in records:
        counts.update(set(encode(record, adapter.tokenizer)["labels"]) - {IGNORED})
    return sorted(token for token, count in counts.items() if count >= SHARED * len(records))


@torch.no_grad()
def damp_content(adapter: ValueAdapter, records: Sequence[Record], weight: float) -> None:
    """Multiplies the value logits of all other tokens, after subtracting the mean over the vocabulary, with `weight`.

    Value logits are the head's rows times a hidden state, and so is their mean: the rows less their mean, weighted,
    are a head that gives just that.
    """
    weights = torch.full((len(adapter.tokenizer),), weight)
    weights[form_tokens(adapter, records)] = 1.0
    for network in adapter.networks:
        rows = network.get_output_embeddings().weight
        head = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
        factors = nn.functional.pad(weights, (0, len(rows) - len(weights)), value=weight)
        head.weight.copy_((rows - rows.mean(0)) * factors[:, None])
        network.config.tie_word_embeddings = False  # the embeddings keep the rows that they had
        network.set_output_embeddings(head)
