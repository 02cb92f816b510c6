"""What networks of their own cost in `generate`, beside the base and beside proxy-tuning (P1 to P3, P10 to P12)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, LogitsProcessor
from transformers.cache_utils import DynamicCache

from benchmarks.harness import Measured, interval, rounds
from testkit.reference_models import gemma_3_270m, smollm2_instruct
from valueadapter import ValueAdapter, ValueAdapterForCausalLM, build_network
from valueadapter.compat import cache_in

IDS = torch.randint(3, 49_000, (1, 32), generator=torch.Generator().manual_seed(0))
TEXT = "The committee met again on Tuesday, but nobody could explain why the bridge had been closed; its engineers said"
GREEDY = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
SMOLLM2_360M = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}
SHALLOW = 4
"""Layers of a network of few layers."""
SEVERAL = 3
"""Adapters of bodies of their own."""


def decoding() -> Measured:
    """A base of 360M shape and networks of 135M and of four layers.

    P1: (t_wrapper - t_base - t_value) / t_base. P2: with one network / with two, each model for itself, as
    proxy-tuning (Liu et al. 2024, arXiv 2401.08565) runs them. P3: with a network of few layers / the base alone.
    P10: what a further adapter adds / a network alone.
    """
    network = AutoModelForCausalLM.from_pretrained(smollm2_instruct())
    shape = {**SMOLLM2_360M, "vocab_size": 49_152, "num_attention_heads": 15, "num_key_value_heads": 5}
    base = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True)).eval()
    shallow = build_network(smollm2_instruct(), initialisation="pretrained", num_layers=SHALLOW)
    others = [AutoModelForCausalLM.from_pretrained(smollm2_instruct()) for _ in range(SEVERAL - 1)]
    for index, other in enumerate(others):
        other.model.norm.weight.data *= 1 + (index + 1) / 8  # another model than the first
    wrapper, few, several = (_wrapped(base, networks) for networks in ([network], [shallow], [network, *others]))
    variants = {
        "base": lambda: base.generate(IDS, **GREEDY),
        "value": lambda: network.generate(IDS, **GREEDY),
        "wrapper": lambda: wrapper.generate(IDS, **GREEDY),
        "shallow": lambda: few.generate(IDS, **GREEDY),
        "several": lambda: several.generate(IDS, **GREEDY),
        "proxy": lambda: base.generate(IDS, **GREEDY, logits_processor=[_ProxyTuning(network, others[0])]),
    }
    done = rounds(variants, number=7)
    added = [(r["wrapper"] - r["base"] - r["value"]) / r["base"] for r in done]
    few_layers = [r["shallow"] / r["base"] for r in done]
    further = [(r["several"] - r["wrapper"]) / (SEVERAL - 1) / r["value"] for r in done]
    return {
        "P1 decode overhead / base": (interval(added), 0.02),
        "P2 one network / proxy-tuning with two": (interval([r["wrapper"] / r["proxy"] for r in done]), 0.78),
        f"P3 a network of {SHALLOW} layers / the base alone": (interval(few_layers), 1.15),
        "P10 one more adapter / its network alone": (interval(further), 1.0),
    }


def _wrapped(base: Any, networks: list[Any]) -> ValueAdapterForCausalLM:
    """A base with an adapter of each network, all of them acting."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_instruct())
    wrapper = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    for index, network in enumerate(networks):
        adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base")
        wrapper.add_adapter(adapter, f"a{index}")
    wrapper.set_adapter([f"a{index}" for index in range(len(networks))])
    return wrapper.eval()


class _ProxyTuning(LogitsProcessor):
    """Adds what an expert says and takes away what its counterpart says, each with a cache of its own."""

    def __init__(self, expert: Any, counterpart: Any) -> None:
        self.models = [(expert, 1.0, DynamicCache()), (counterpart, -1.0, DynamicCache())]

    @torch.no_grad()
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(1, seq) and (1, vocab) -> (1, vocab)."""
        for model, weight, cache in self.models:
            new = input_ids[:, cache.get_seq_length() :]
            scores = scores + weight * model(new, cache=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        return scores


def other_vocabulary() -> Measured:
    """P11: projection / decode step. P12: (t_wrapper - t_base - F · t_value) / t_base, where F is the network's tokens
    per base token. gemma-3-270m with 12 layers of SmolLM2, reading and writing the same text."""
    folder, target = smollm2_instruct(), gemma_3_270m()
    network = build_network(folder, initialisation="pretrained", num_layers=12)
    tokenizer, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(target)
    base = AutoModelForCausalLM.from_pretrained(target)
    wrapper = ValueAdapterForCausalLM(base, tokenizer=theirs)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base")
    wrapper.add_adapter(adapter, "default", scale=1e-3)
    wrapper.eval()
    prompt = theirs(TEXT, return_tensors="pt")["input_ids"]
    out = wrapper.generate(prompt, **GREEDY, return_dict_in_generate=True)
    (reader,) = (part for name, part in cache_in(out).parts.items() if name != "base")
    read = len(reader.rows[0].text.ids) - len(tokenizer(TEXT)["input_ids"])
    steps = out.sequences.shape[1] - prompt.shape[1] - 1
    value_prompt = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    as_many = {**GREEDY, "max_new_tokens": read + 1, "min_new_tokens": read + 1}
    alignment = wrapper.attached.terms()[0].link.alignment
    logits = torch.randn(1, 1, alignment.value.logits_width)
    variants = {
        "base": lambda: base.generate(prompt, **GREEDY),
        "value": lambda: network.generate(value_prompt, **as_many),
        "wrapper": lambda: wrapper.generate(prompt, **GREEDY),
        "project": lambda: [alignment.project(logits) for _ in range(steps)],
    }
    done = rounds(variants, number=7)
    return {
        "P11 projection / decode step": (interval([r["project"] / r["wrapper"] for r in done]), 0.01),
        f"P12 other vocabulary, overhead / base (F = {read / steps:.2f})": (
            interval([(r["wrapper"] - r["base"] - r["value"]) / r["base"] for r in done]),
            0.05,
        ),
    }


GROUPS = (decoding, other_vocabulary)
