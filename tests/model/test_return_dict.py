"""`return_dict=False` gives a tuple of values, as in transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model

from valueadapter import ValueAdapterForCausalLM, value_score
from valueadapter.forward.cache import ValueAdapterCache

IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
CALLS: dict[str, dict[str, Any]] = {
    "adapters": {},
    "names": {"adapter_names": ["default", None]},
    "one name": {"adapter_names": ["default", "default"]},
    "labels": {"labels": IDS},
    "labels and names": {"labels": IDS, "adapter_names": ["default", None]},
    "no cache": {"use_cache": False},
    "states": {"output_hidden_states": True, "output_value_logits": "each"},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("said", ["argument", "configuration"])
def test_a_tuple_of_what_there_is(wrapped: Callable[..., ValueAdapterForCausalLM], call: str, said: str) -> None:
    """Loss first where there are labels, then logits, cache and the rest: as the output object holds them."""
    model = wrapped("llama", "gpt2")
    expected = model(IDS, **CALLS[call], return_dict=True)
    model.config.return_dict = said == "argument"
    found = model(IDS, **CALLS[call], **({"return_dict": False} if said == "argument" else {}))
    assert isinstance(found, tuple)
    assert len(found) == len(expected.to_tuple())
    fields = [field.name for field in dataclasses.fields(expected) if field.name in expected]
    assert list(expected) == fields
    first = 1 if "labels" in CALLS[call] else 0
    if first:
        assert torch.equal(found[0], expected.loss)
    assert torch.equal(found[first], expected.logits)
    if CALLS[call].get("use_cache", True):
        assert isinstance(found[first + 1], ValueAdapterCache) or "adapter_names" in CALLS[call]
    assert torch.equal(model(IDS, **CALLS[call], return_dict=True).logits, expected.logits)


def test_what_the_library_calls_itself_does_not_depend_on_it(wrapped: Callable[..., ValueAdapterForCausalLM]) -> None:
    """A model that is set to give tuples generates and scores as any other."""
    plain = wrapped("llama", "gpt2")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=plain.base_tokenizer).eval()
    model.config.return_dict = False
    model.add_adapter(plain.adapters["default"].copy(), "default", scale=1.0)
    assert isinstance(model(IDS), tuple)
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    for names in ({}, {"adapter_names": ["default", None]}):
        assert torch.equal(model.generate(IDS, **how, **names), plain.generate(IDS, **how, **names))
    asked = {"end_of_sequence": False}
    assert value_score(model, "AB", ["CD"], **asked) == value_score(plain, "AB", ["CD"], **asked)
