"""What a training step costs in time and memory, beside the step that writes every logit out (P5 and P8).

Weights are random: they change no time. Knows nothing of how ratios are taken or shown.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy, linear
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.harness import Measured, peak_memory, ratios
from valueadapter.adapter.heads import Head, LazyLogits, head_of, last_hidden_state
from valueadapter.artifact.config import Regularisation
from valueadapter.forward.sum import add_value_logits
from valueadapter.training.chunked_loss import summed_loss

Step = Callable[[], object]
TOKENS, VOCABULARY, HIDDEN = 2048, 49_152, 576
NO_PENALTY = Regularisation("none", 0.0)
SMOLLM2_135M = {"hidden_size": HIDDEN, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}


def loss_head() -> Measured:
    """P5: loss and gradients of two heads over 2,048 tokens, fused / with the logits written out."""
    time = ratios({name: loss_head_step(name) for name in ("naive", "fused")}, number=5)["fused"]
    naive, fused = (peak_memory(loss_head_step, name) for name in ("naive", "fused"))
    memory = (fused.peak - fused.prepared) / (naive.peak - naive.prepared)
    return {
        "P5 loss head, memory / naive": ((memory, memory, memory), 0.14),
        "P5 loss head, time / naive": (time, 0.95),
    }


def uncached_step() -> Measured:
    """P8: forward and backward of 12 layers on a frozen base of 30, fused / with the logits written out."""
    time = ratios({name: two_model_step(name) for name in ("naive", "fused")}, number=3)["fused"]
    naive, fused = (peak_memory(two_model_step, name) for name in ("naive", "fused"))
    memory = (fused.peak - fused.prepared) / (naive.peak - naive.prepared)
    return {
        "P8 uncached step, memory / naive": ((memory, memory, memory), 0.56),
        "P8 uncached step, time / naive": (time, 0.93),
    }


GROUPS = (loss_head, uncached_step)


def loss_head_step(variant: str) -> Step:
    """Loss and gradients from hidden states, those of the base in half precision as a cache holds them."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    base = LazyLogits(torch.randn(TOKENS, HIDDEN, generator=generator).half(), _head(generator))
    value = LazyLogits(torch.randn(TOKENS, HIDDEN, generator=generator), _head(generator))
    labels = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    trained = (value.hidden.requires_grad_(), value.head.weight.requires_grad_())

    def step() -> None:
        if variant == "fused":
            loss = summed_loss(base, value, labels=labels, scale=1.0, penalty=NO_PENALTY).total
        else:
            base_logits = linear(base.hidden.float(), base.head.weight)
            logits = add_value_logits(base_logits, linear(value.hidden, value.head.weight), 1.0)
            loss = cross_entropy(logits.float(), labels, reduction="sum")
        torch.autograd.backward(loss / TOKENS)
        for tensor in trained:
            tensor.grad = None

    return step


def two_model_step(variant: str) -> Step:
    """Loss and gradients of the network from 8 rows of 128 ids, the base run without gradients."""
    torch.set_num_threads(1)
    base, network = _model(30).requires_grad_(False), _model(12)
    ids = torch.randint(VOCABULARY, (8, 129), generator=torch.Generator().manual_seed(0))
    heads = head_of(base), head_of(network)

    def step() -> None:
        read, labels = {"input_ids": ids[:, :-1], "use_cache": False}, ids[:, 1:].flatten()
        if variant == "fused":
            with torch.no_grad():
                hidden = last_hidden_state(base, **read).flatten(0, 1)
            sides = (hidden, last_hidden_state(network, **read).flatten(0, 1))
            lazy = [LazyLogits(states, head) for states, head in zip(sides, heads, strict=True) if head is not None]
            loss = summed_loss(*lazy, labels=labels, scale=1.0, penalty=NO_PENALTY).total
        else:
            with torch.no_grad():
                base_logits = base(**read).logits
            logits = add_value_logits(base_logits, network(**read).logits, 1.0)
            loss = cross_entropy(logits.flatten(0, 1).float(), labels, reduction="sum")
        torch.autograd.backward(loss / len(labels))
        network.zero_grad()

    return step


def _head(generator: torch.Generator) -> Head:
    return Head(0.02 * torch.randn(VOCABULARY, HIDDEN, generator=generator))


def _model(layers: int) -> PreTrainedModel:
    config = LlamaConfig(
        **SMOLLM2_135M, vocab_size=VOCABULARY, num_hidden_layers=layers, tie_word_embeddings=layers == 30
    )
    return LlamaForCausalLM(config).eval()
