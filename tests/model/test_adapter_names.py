"""A name that torch's modules cannot take is refused before anything is loaded or built."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import byte_tokenizer, tiny_model
from torch import nn

from valueadapter import AdapterNameError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.cli.models import _name
from valueadapter.model.adapter_names import check_name

TAKEN = sorted({*dir(nn.ModuleDict()), *vars(nn.ModuleDict()), *dir(nn.ModuleDict), *dir(type)})


def adapter() -> ValueAdapter:
    return ValueAdapter.from_networks(
        [tiny_model("llama", seed=2)], byte_tokenizer(), base_model_name_or_path="alice/base"
    )


@pytest.mark.parametrize("name", TAKEN)
def test_what_modules_have_is_no_name(name: str) -> None:
    """Methods, and attributes that only instances have."""
    with pytest.raises(AdapterNameError, match="cannot name an adapter"):
        check_name(name)
    assert _name(f"alice/{name}", [], [*dir(nn.ModuleDict()), *dir(type)]) == f"adapter-{name}"


@pytest.mark.parametrize("name", ["training", "_modules", "_buffers", "_parameters", "_forward_hooks", "__base__"])
def test_every_way_to_attach_refuses_it(name: str) -> None:
    """And leaves the model as it was; where something would be loaded first, nothing is."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer()).eval()
    model.add_adapter(adapter(), "good")
    ways: list[Any] = [
        lambda: model.add_adapter(adapter(), name),
        lambda: model.load_adapter("nowhere/at-all", name),
        lambda: model.add_weighted_adapter(["good"], [1.0], name),
        lambda: ValueAdapterForCausalLM.from_pretrained("nowhere/at-all", "nor/here", adapter_name=name),
    ]
    for way in ways:
        with pytest.raises(AdapterNameError, match="cannot name an adapter"):
            way()
    assert list(model.adapters) == ["good"]


@pytest.mark.parametrize("name", ["default", "Training", "weights", "base", "0", "a-b_c"])
def test_other_names_serve(name: str) -> None:
    """What looks alike but is nobody's."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer()).eval()
    model.add_adapter(adapter(), name)
    assert model.active_adapters == [name]
