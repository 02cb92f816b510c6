"""What a base prefix costs once its keys and values are there: the time to the first token.

gemma-3-270m with the first 12 layers of itself as network, a prefix of four questions and a prompt of one. The baseline
is plain transformers doing the same by hand: the base continues a copy of a cache that holds the prefix, the network
reads the prompt, and the logits are added.
"""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import DynamicCache

from benchmarks.harness import Measured, ratios
from testkit.demonstrations import jeopardy
from testkit.reference_models import gemma_3_270m
from valueadapter import ValueAdapter, ValueAdapterForCausalLM, build_network
from valueadapter.demonstrations.tokenized import as_context
from valueadapter.forward.prefix_tokens import prefix_ids


@torch.no_grad()
def first_token() -> Measured:
    """Time to the first token behind a prefix / the same by hand with a ready cache (goal: within 5 %)."""
    torch.set_num_threads(1)
    folder = gemma_3_270m()
    base, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    network = build_network(folder, initialisation="pretrained", num_layers=12)
    questions = jeopardy()
    prefix = as_context(questions.train[:4])
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="bench/base", base_prefix=prefix)
    model.add_adapter(adapter, "default")
    model.eval()
    prompt = tokenizer(questions.held_out[0]["prompt"], return_tensors="pt")["input_ids"]
    before = torch.tensor([prefix_ids(model.base_prefix, tokenizer)])
    cache = DynamicCache(config=base.config)
    base(before, cache=cache, use_cache=True, logits_to_keep=1)

    def by_hand() -> torch.Tensor:
        kept = {"use_cache": True, "logits_to_keep": 1}
        added: torch.Tensor = network(prompt, cache=DynamicCache(config=network.config), **kept).logits
        found: torch.Tensor = base(prompt[:, 1:], cache=copy.deepcopy(cache), **kept).logits + added
        return found

    variants = {"by hand": by_hand, "wrapper": lambda: model(prompt, use_cache=True, logits_to_keep=1).logits}
    torch.testing.assert_close(variants["wrapper"](), by_hand(), rtol=1e-3, atol=1e-3)
    return {
        f"first token behind a prefix of {before.shape[1]} tokens / by hand with a ready cache": (
            ratios(variants, number=9)["wrapper"],
            1.05,
        )
    }


GROUPS = (first_token,)
