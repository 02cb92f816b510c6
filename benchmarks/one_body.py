"""Networks of one body: what the default adapter, and further ones of its body, cost in time and memory.

The adapters are those of the default recipe, a LoRA of rank 16 less its body, which reads a prefix; their weights are
random, which costs what trained ones do.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.harness import Interval, Measured, interval, ratios, rounds
from testkit.reference_models import gemma_3_270m, smollm2_derived, smollm2_instruct
from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.adapter.lora import build_lora_network
from valueadapter.adapter.shared_tensors import held_bytes

PREFIX = "Question: In which year did the committee first meet in the capital?\nAnswer: 1905\n\n" * 8
PROMPT = "Question: Who explained on Tuesday why the bridge had been closed?\nAnswer:"
GREEDY = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "stop_strings": None}
COUNTS = (1, 2, 4, 8)


def default_adapter() -> Measured:
    """P13: the default adapter on a base / the base alone in `generate`; and what it holds, in bodies."""
    found: Measured = {}
    for name, folder, goal in (("SmolLM2", smollm2_instruct(), 2.1), ("gemma-3-270m", gemma_3_270m(), 1.6)):
        model = _model(str(folder), 1)
        ids = model.base_tokenizer(PROMPT, return_tensors="pt")
        alone = {key: value for key, value in GREEDY.items() if key != "stop_strings"}
        variants = {
            "base": lambda m=model, i=ids, a=alone: m.base.generate(**i, **a),
            "adapter": lambda m=model, i=ids: m.generate(**i, **GREEDY),
        }
        each = [done["adapter"] / done["base"] for done in rounds(variants, number=7)]
        found[f"P13 default adapter on {name} / {name} alone"] = interval(each), goal
        found[f"P13 held beside {name} / one body"] = _exactly(_bodies(model)), 1.05
    found["P13 held beside its training base / one body"] = _exactly(_bodies(_model(str(smollm2_derived()), 1))), 0.05
    return found


def adapters_of_one_body() -> Measured:
    """P14: what a further adapter of the same body adds to a step / a step of the body; k = 1, 2, 4, 8."""
    models = {count: _model(str(smollm2_instruct()), count) for count in COUNTS}
    ids = models[1].base_tokenizer(PROMPT, return_tensors="pt")
    alone = {key: value for key, value in GREEDY.items() if key != "stop_strings"}
    variants: dict[str, Any] = {
        str(count): lambda m=model: m.generate(**ids, **GREEDY) for count, model in models.items()
    }
    body = AutoModelForCausalLM.from_pretrained(smollm2_derived())
    variants["body"] = lambda: body.generate(**ids, **alone)
    done = rounds(variants, number=5)
    slopes = [(one[str(COUNTS[-1])] - one["1"]) / (COUNTS[-1] - 1) / one["body"] for one in done]
    found: Measured = {"P14 one more adapter of the same body / a step of the body": (interval(slopes), 0.15)}
    extra = held_bytes([models[8]]) - held_bytes([models[1]])
    found["P14 held for seven more / seven bodies"] = _exactly(extra / 7 / held_bytes([body])), 0.05
    return found


def mixed_batch() -> Measured:
    """P15: a batch of eight rows, of which each two have one of three adapters or none / the same rows with one."""
    model = _model(str(smollm2_instruct()), 3)
    ids = model.base_tokenizer([PROMPT] * 8, return_tensors="pt")
    variants = {
        "one": lambda: model.generate(**ids, adapter_names=["a0"] * 8, **GREEDY),
        "four": lambda: model.generate(**ids, adapter_names=["a0", "a1", "a2", None] * 2, **GREEDY),
    }
    return {"P15 eight rows with four choices / with one": (ratios(variants, number=5)["four"], 1.3)}


def products() -> Measured:
    """Products of several rows with the body's weights / of one row, which no pass of several rows can be below."""
    body = AutoModelForCausalLM.from_pretrained(smollm2_derived())
    linears = [module for module in body.modules() if isinstance(module, torch.nn.Linear)]
    goals = {2: 1.07, 4: 1.3}
    inputs = {rows: {one.in_features: torch.randn(rows, one.in_features) for one in linears} for rows in (1, *goals)}
    variants = {
        str(rows): lambda given=given: [one(given[one.in_features]) for one in linears]
        for rows, given in inputs.items()
    }
    with torch.no_grad():
        found = ratios(variants, number=15)
    return {f"products of {rows} rows / of one row": (found[str(rows)], goal) for rows, goal in goals.items()}


def with_default_adapter(base: str) -> ValueAdapterForCausalLM:
    """A base with one adapter of the default recipe."""
    return _model(base, 1)


def _model(base: str, count: int) -> ValueAdapterForCausalLM:
    return with_adapters(AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base), count)


def with_adapters(base: PreTrainedModel, its: PreTrainedTokenizerBase, count: int) -> ValueAdapterForCausalLM:
    """A base with so many adapters of one body, all of them active."""
    folder = smollm2_derived()
    body = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ValueAdapterForCausalLM(base, tokenizer=its)
    for index in range(count):
        network = build_lora_network(body, rank=16, name="bench/body")
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=1e-3)
        adapter = ValueAdapter.from_networks(
            [network, copy.deepcopy(body)],
            tokenizer,
            base_model_name_or_path="bench/body",
            coefficients=[0.6 / count, -0.3 / count],
            base_weight=1 - 0.3 / count,
            base_prefix=PREFIX,
            reads_prefix=[True, True],
        )
        model.add_adapter(adapter, f"a{index}")
    model.set_adapter([f"a{index}" for index in range(count)])
    return model.eval()


def _bodies(model: ValueAdapterForCausalLM) -> float:
    """What is held beside the base, in bodies."""
    body = AutoModelForCausalLM.from_pretrained(smollm2_derived())
    return (held_bytes([model]) - held_bytes([model.base])) / held_bytes([body])


def _exactly(value: float) -> Interval:
    return value, value, value


GROUPS = (default_adapter, adapters_of_one_body, mixed_batch, products)
