"""The exported `generate` keeps an adapter for a base as long as the adapter is that one, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from exported import IDS, by_export, exported, tiny_adapter, wrapper
from tiny import byte_tokenizer, tiny_model

from valueadapter import ValueAdapter
from valueadapter.artifact.standalone import export

LOGITS = {"return_dict_in_generate": True, "output_logits": True, "max_new_tokens": 2}
INPUTS = {"input_ids": IDS}


def other(seed: int, **how: Any) -> ValueAdapter:
    return ValueAdapter.from_networks(
        [tiny_model("llama", seed=seed)], byte_tokenizer(), base_model_name_or_path="alice/base", scale=0.7, **how
    )


def test_an_adapter_that_was_saved_anew_is_loaded_anew(tmp_path: Path) -> None:
    """In the same directory, on the same base."""
    base, tokenizer = tiny_model("llama", seed=1), byte_tokenizer()
    folder = exported(tiny_adapter(), tmp_path)
    first = by_export(base, folder, tokenizer, INPUTS, **LOGITS).logits[0]
    new = other(9)
    new.save_pretrained(tmp_path / "adapter")
    export(tmp_path / "adapter", folder, to="custom_generate")
    expected = wrapper(tiny_model("llama", seed=1), tokenizer, new)(IDS).logits[:, -1]
    found = by_export(base, folder, tokenizer, INPUTS, **LOGITS).logits[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, first, atol=1e-2)


def test_the_prefix_is_rendered_by_the_tokenizer_that_is_given(tmp_path: Path) -> None:
    """Also after its template was changed, and by another tokenizer."""
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "b"}]
    base, tokenizer, adapter = tiny_model("llama", seed=1), byte_tokenizer(), other(2, base_prefix=turns)
    folder = exported(adapter, tmp_path)
    for template in (tokenizer.chat_template, str(tokenizer.chat_template).replace("[{{", "<{{")):
        tokenizer.chat_template = template
        expected = wrapper(tiny_model("llama", seed=1), tokenizer, adapter)(IDS).logits[:, -1]
        for one in (tokenizer, byte_tokenizer()):
            one.chat_template = template
            found = by_export(base, folder, one, INPUTS, **LOGITS).logits[0]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_it_is_loaded_once_for_equal_tokenizers(tmp_path: Path) -> None:
    """A tokenizer that is made at each call costs no second loading."""
    base, folder = tiny_model("llama", seed=1), exported(tiny_adapter(), tmp_path)
    first = by_export(base, folder, byte_tokenizer(), INPUTS, **LOGITS)
    (folder / "value_network" / "model.safetensors").unlink()
    torch.testing.assert_close(by_export(base, folder, byte_tokenizer(), INPUTS, **LOGITS).logits, first.logits)
