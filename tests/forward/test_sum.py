"""The sum in one graph: what `torch.compile` makes of base + adapters must not fall apart where they are added."""

from __future__ import annotations

import pytest
import torch
from tiny import byte_tokenizer, tiny_model

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.forward.sum import summed
from valueadapter.forward.value_logits import Inputs

IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))


def wrapped(names: tuple[str, ...]) -> ValueAdapterForCausalLM:
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    for index, name in enumerate(names):
        networks = [tiny_model("llama", seed=2 + index)]
        adapter = ValueAdapter.from_networks(networks, byte_tokenizer(), base_model_name_or_path="a/b")
        model.add_adapter(adapter, name, scale=0.5 + index)
    model.set_adapter(names)
    return model.eval()


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_the_sum_is_one_graph(names: tuple[str, ...], apart: bool) -> None:
    """However many adapters act, and whether what each adds is asked for."""
    model = wrapped(names)
    terms = model.attached.terms()

    def total(base_logits: torch.Tensor) -> torch.Tensor:
        inputs = Inputs(IDS, None, None, 0, use_cache=False, cache=None, base_logits=base_logits.clone())
        logits, added = summed(terms, inputs, [None] * len(terms), apart=apart)
        return logits + sum(added.values())

    with torch.no_grad():
        base, both = model.base(IDS).logits, model(IDS).logits
        found = torch.compile(total, fullgraph=True, backend="eager")(base)
    torch.testing.assert_close(found, 2 * both - base if apart else both, rtol=1e-5, atol=1e-4)
