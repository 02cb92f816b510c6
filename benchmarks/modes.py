"""`python -m benchmarks.modes`: how near each alignment mode comes to the exact chain, on four domains.

The base is gemma-3-270m. The value logits are the log-likelihood ratio of two models of one vocabulary, SmolLM2-135M-
Instruct and the same without four layers: a residual that says something of every kind of text, and whose exact chain
is known, the ratio of the likelihoods of a candidate's own tokens. For each position of the responses: the distribution
over the base's 24 likeliest tokens with the exact chain's values, and its KL divergence (nats) to those with no value
logits and with each mode's. And bits per byte of the responses with each, at the scale given.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging

from testkit.reference_models import gemma_3_270m, smollm2_derived, smollm2_instruct
from testkit.texts import sample_records
from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.demonstrations.responses import response_bytes, scored
from valueadapter.demonstrations.tokenized import IGNORED
from valueadapter.forward.alignment_modes import Centring

DOMAINS = ("english", "gsm8k", "python", "chinese")
MODES = ("none", "static", "chain", "exact")
CANDIDATES = 24


def main() -> None:
    """Measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=6, help="records of each domain")
    parser.add_argument("--characters", type=int, default=100, help="of each response, at most")
    parser.add_argument("--scale", type=float, default=0.5)
    wanted = parser.parse_args()
    logging.disable_progress_bar()
    model = _model()
    print(f"Scale {wanted.scale:g}; {wanted.records} records of each domain.\n")
    print(f"| domain | positions | KL: {' | '.join(MODES[:-1])} | bits per byte: {' | '.join(MODES)} |")
    print("| --- " * (2 + 2 * len(MODES) - 1) + "|")
    for domain in DOMAINS:
        records = [
            {**record, "completion": record["completion"][: wanted.characters]}
            for record in sample_records(domain, count=wanted.records)
        ]
        Console(stderr=True).print(f"{domain} …")
        print(_row(domain, model, records, wanted.scale), flush=True)


class LikelihoodRatio(LlamaForCausalLM):
    """Logits that are log p - log p of a reference model of the same vocabulary."""

    def forward(self, **inputs: Any) -> CausalLMOutputWithPast:
        """Both models over the same tokens; without cache."""
        own, other = super().forward(**inputs).logits, self.reference(**inputs).logits
        return CausalLMOutputWithPast(logits=own.log_softmax(-1) - other.log_softmax(-1))


def _model() -> ValueAdapterForCausalLM:
    folder = smollm2_instruct()
    network = LikelihoodRatio.from_pretrained(folder)
    object.__setattr__(network, "reference", AutoModelForCausalLM.from_pretrained(smollm2_derived()))
    adapter = ValueAdapter.from_networks(
        [network], AutoTokenizer.from_pretrained(folder), base_model_name_or_path="smollm2"
    )
    return ValueAdapterForCausalLM.from_pretrained(str(gemma_3_270m()), adapter, scale=1.0)


@torch.no_grad()
def _row(domain: str, model: ValueAdapterForCausalLM, records: list[dict[str, str]], scale: float) -> str:
    adapter = model.adapters["default"]
    divergence, nats, positions = dict.fromkeys(MODES, 0.0), dict.fromkeys(MODES, 0.0), 0
    for record in records:
        inputs, labels = scored([record], model.base_tokenizer, model.device)
        here = labels[0] != IGNORED
        sums = {}
        for mode in MODES:
            if mode == "none":
                with model.disable_adapter():
                    sums[mode] = model(**inputs, use_cache=False).logits[0, :-1][here]
                continue
            model.set_alignment_mode("default", "chain" if mode == "exact" else mode)
            if mode == "exact":
                attached = model.attached.get("default")
                attached.refinement = Centring(adapter.side.vocabulary, adapter.side.width, centred=True)
            out = model(**inputs, use_cache=False, output_value_logits=True)
            sums[mode] = sums["none"] + scale * out.value_logits[0, :-1][here]
        likeliest = sums["none"].topk(CANDIDATES).indices
        chain = sums["exact"].gather(1, likeliest).log_softmax(-1)
        for mode in MODES:
            this = sums[mode].gather(1, likeliest).log_softmax(-1)
            divergence[mode] += float((chain.exp() * (chain - this)).sum())
            nats[mode] += float(torch.nn.functional.cross_entropy(sums[mode], labels[0][here], reduction="sum"))
        positions += int(here.sum())
    size = response_bytes(records)
    kl = " | ".join(f"{divergence[mode] / positions:.4f}" for mode in MODES[:-1])
    bits = " | ".join(f"{nats[mode] / math.log(2) / size:.3f}" for mode in MODES)
    return f"| {domain} | {positions} | {kl} | {bits} |"


if __name__ == "__main__":
    main()
