"""The exported `generate` ends an answer where the wrapper does: at what the adapter records, unless told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exported import GREEDY, IDS, PREFIX, by_export, exported, padded, tiny_adapter, wrapper
from tiny import byte_tokenizer, tiny_model
from transformers import GenerationConfig

TOKENIZER = byte_tokenizer()
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "left padding": {},
    "several answers": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 3, "eos_token_id": 2},
    "lookup": {"prompt_lookup_num_tokens": 4},
    "assisted": {"assistant_model": tiny_model("gpt2", seed=9)},
}


def prompt_of(mode: str) -> dict[str, torch.Tensor]:
    if mode in ("lookup", "assisted"):
        return {"input_ids": torch.cat([IDS[:1], IDS[:1]], dim=1)}
    return padded() if mode == "left padding" else {"input_ids": IDS}


@pytest.mark.parametrize("prefix", [None, PREFIX])
@pytest.mark.parametrize("mode", MODES)
def test_it_ends_where_the_wrapper_does(mode: str, prefix: str | None, tmp_path: Path) -> None:
    """In every mode of decoding; `stop_strings=[]` goes on, and a text of the caller's ends it in its place."""
    how, inputs, base = MODES[mode], prompt_of(mode), tiny_model("llama", seed=1)
    adapter = tiny_adapter(prefix=prefix)
    begin = inputs["input_ids"].shape[1]
    said = wrapper(base, TOKENIZER, adapter).generate(**inputs, **{**GREEDY, **how})[0, begin:]
    recorded, other = (TOKENIZER.decode(said[place : place + size]) for place, size in ((3, 2), (5, 1)))
    ending = adapter.with_config(stop_strings=(recorded,))
    folder, model, plain = exported(ending, tmp_path), wrapper(base, TOKENIZER, ending), tiny_model("llama", seed=1)
    by_export(plain, folder, TOKENIZER, inputs)  # loads it, which draws numbers
    for given in ({}, {"stop_strings": []}, {"stop_strings": other}):
        torch.manual_seed(0)
        expected = model.generate(**inputs, **{**GREEDY, **how, **given})
        torch.manual_seed(0)
        found = by_export(plain, folder, TOKENIZER, inputs, **{**how, **given})
        assert torch.equal(found, expected), (mode, given)
        if mode == "greedy" and not given:
            assert recorded in TOKENIZER.decode(found[0, begin:])
            assert TOKENIZER.decode(found[0, begin:], skip_special_tokens=True).endswith(recorded)


def test_settings_that_name_a_text_hold(tmp_path: Path) -> None:
    """As transformers understands them; and at scale 0, the base alone, nothing that is recorded ends an answer."""
    base, adapter = tiny_model("llama", seed=1), tiny_adapter()
    said = wrapper(base, TOKENIZER, adapter).generate(IDS[:1], **GREEDY)[0, IDS.shape[1] :]
    alone = base.generate(IDS[:1], **GREEDY)
    recorded = [TOKENIZER.decode(said[1:2]), TOKENIZER.decode(alone[0, IDS.shape[1] + 1 :][:1])]
    folder = exported(adapter.with_config(stop_strings=tuple(recorded)), tmp_path)
    where = {"custom_generate": str(folder), "adapter": str(folder), "trust_remote_code": True, "tokenizer": TOKENIZER}
    settings = GenerationConfig(**GREEDY, stop_strings=[TOKENIZER.decode(said[4:6])])
    found = base.generate(input_ids=IDS[:1], generation_config=settings, **where)[0, IDS.shape[1] :]
    assert 1 < len(found) <= len(said)
    assert torch.equal(found, said[: len(found)])
    assert torch.equal(base.generate(input_ids=IDS[:1], **where, scale=0, **GREEDY), alone)
