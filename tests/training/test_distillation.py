"""A LoRA taught by base + adapters: towards their distribution, prefix included, and what remains is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny import tiny_model

from valueadapter import ConfigError, UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM, distill_into_lora
from valueadapter.demonstrations.tokenized import Collator, encode
from valueadapter.training.distillation import token_divergence

DATA = [{"prompt": f"Q {i % 7} ", "completion": "ABC"[i % 3] * (1 + i % 5)} for i in range(40)]
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tokenizer: Any) -> ValueAdapterForCausalLM:
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer).eval()
    network = tiny_model("qwen3", seed=5)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="x/y", base_prefix="Q:A ")
    model.add_adapter(adapter, "a", scale=0.5)
    return model


def test_the_divergence_is_of_the_response_tokens(model: ValueAdapterForCausalLM, tokenizer: Any) -> None:
    """Against whole logits, with rows of different lengths."""
    batch = Collator(0)([encode(record, tokenizer) for record in DATA[:5]])
    student = tiny_model("llama", seed=9)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    towards, own = model(**inputs).logits.log_softmax(-1), student(**inputs).logits.log_softmax(-1)
    each = (towards.exp() * (towards - own)).sum(-1)[:, :-1][batch["labels"][:, 1:] != -100]
    torch.testing.assert_close(token_divergence(model, student, batch), each, rtol=1e-4, atol=1e-5)


def test_a_lora_learns_most_of_it_and_says_what_remains(
    model: ValueAdapterForCausalLM, tokenizer: Any, tmp_path: Path
) -> None:
    """Saved and loaded as an ordinary LoRA, it gives the divergence that was reported; the model is as before."""
    before = model(IDS).logits
    said: list[str] = []
    found = distill_into_lora(model, DATA, rank=8, epochs=30, learning_rate=1e-2, say=said.append)
    assert (found.num_examples, len(said)) == (36, 2)
    assert found.divergence_after < 0.5 * found.divergence_before
    assert torch.equal(model(IDS).logits, before)
    found.model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(tiny_model("llama", seed=1), tmp_path)
    held_out = Collator(0)([encode(record, tokenizer) for record in DATA[9::10]])
    divergence = token_divergence(model, again, held_out)
    assert len(divergence) == found.num_held_out_tokens
    assert float(divergence.mean()) == pytest.approx(found.divergence_after, rel=1e-3)
    assert float(token_divergence(model, model.base, held_out).mean()) == pytest.approx(
        found.divergence_before, rel=1e-3
    )


def test_others_may_be_held_out(model: ValueAdapterForCausalLM) -> None:
    """Then all of the data is trained on."""
    found = distill_into_lora(model, DATA[:8], eval_data=DATA[20:24], epochs=1)
    assert found.num_examples == 8


def test_what_cannot_be_distilled(model: ValueAdapterForCausalLM, tokenizer: Any) -> None:
    """No adapter, too few demonstrations, or a base that is LoRA already."""
    with model.disable_adapter(), pytest.raises(UnsupportedModeError, match="nothing to distil"):
        distill_into_lora(model, DATA)
    with pytest.raises(ConfigError, match="9 demonstrations are left to train on and 0 are held out"):
        distill_into_lora(model, DATA[:9])
    with pytest.raises(UnsupportedModeError, match=r"distill_into_lora\(model, data\)"):
        model.merge_and_unload()
