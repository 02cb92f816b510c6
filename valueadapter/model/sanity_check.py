"""Whether an adapter does anything at all: its value logits on a few tokens, before it is put to use; knows no base."""

from __future__ import annotations

import logging

import torch

from valueadapter.adapter.causal_lm import execution_device
from valueadapter.adapter.value_adapter import ValueAdapter
from valueadapter.errors import ConfigError
from valueadapter.forward.cascade import read_embeddings

logger = logging.getLogger(__name__)

PROBE = "The answer is: 42"


@torch.no_grad()
def check_effect(adapter: ValueAdapter, name: str) -> None:
    """Runs the networks over a few tokens, and reports value logits that are of no use.

    Args:
        adapter: its networks on the device that they will run on.
        name: what it is called, for the message.

    Raises:
        ConfigError: a value logit is NaN or infinite. (All of them 0 is a warning: the adapter changes nothing.)
    """
    if any(execution_device(network).type == "meta" for network in adapter.networks):
        return  # weights that come later cannot be probed
    width = adapter.config.vocabulary.logits_width
    total = torch.zeros(1)
    for spec, network in zip(adapter.config.networks, adapter.networks, strict=True):
        tokens = adapter.tokenizer(PROBE, add_special_tokens=False)["input_ids"] or [0]
        ids = torch.tensor([tokens], device=execution_device(network))
        read = {"input_ids": ids}
        if adapter.config.connection != "residual":
            undecided = torch.zeros(*ids.shape, width, device=ids.device)
            read = {"inputs_embeds": read_embeddings(adapter.config.connection, network, ids, undecided, None)}
        logits = spec.coefficient * network(**read, use_cache=False, return_dict=True).logits.float().cpu()
        missing = width - logits.shape[-1]
        total = total + torch.nn.functional.pad(logits, (0, missing))
    if not torch.isfinite(total).all():
        raise ConfigError(
            f"the value logits of '{name}' are not finite on the text {PROBE!r}, so base + adapter would say nothing. "
            "Its weights are damaged, or too large for this dtype: load the base with dtype=torch.float32 or bfloat16, "
            "or ask the adapter's author"
        )
    if not total.any():
        logger.warning(
            "the value logits of '%s' are all 0 on the text %r: it changes nothing. It may not be trained yet",
            name,
            PROBE,
        )
