"""The page on real sizes: what the command computes, by shapes that are those of transformers and PEFT."""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.sizes import BASES, PAGE, SMALL, blocks, filled
from valueadapter.adapter.lora import with_lora


def test_the_page_is_what_the_command_prints() -> None:
    """Every table of it, and the page says that none was measured."""
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page) == page
    assert all(table in page for table in blocks().values())
    assert "computed from shapes, nothing is measured" in page


def test_parameters_are_those_that_transformers_counts() -> None:
    """Of every shape, built without weights; and of the LoRA that is trained on the small one."""
    for shape in (replace(shape, num_hidden_layers=2) for shape in BASES):  # each layer is as the others
        config = {name: value for name, value in vars(shape).items() if name != "name"}
        with torch.device("meta"):
            model = LlamaForCausalLM(LlamaConfig(**config))
        assert sum(parameter.numel() for parameter in model.parameters()) == shape.parameters
        if shape.name == SMALL.name:
            with torch.device("meta"):
                tuned = with_lora(model, 16)
            assert sum(one.numel() for one in tuned.parameters() if one.requires_grad) == shape.lora
