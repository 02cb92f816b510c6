"""What PEFT's users and `generate`'s users do, on SmolLM2-135M-Instruct."""

from __future__ import annotations

import threading
from pathlib import Path

import peft
import pytest
import torch
from test_generate_surface import allowed_by
from test_real_models import attach
from test_real_models import base as base
from test_real_models import tokenizer as tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextIteratorStreamer

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, build_network
from valueadapter.testing.reference_models import smollm2_derived

pytestmark = pytest.mark.real
TEXT = "Q: What is the capital of Italy?\nA:"


def test_streaming_and_a_constraint(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The pieces of a stream are the answer; of a pattern's texts the answer is one that the sum chooses."""
    model = attach(base, tokenizer, "pretrained")
    inputs = tokenizer(TEXT, return_tensors="pt")
    begin = inputs["input_ids"].shape[1]
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, begin:]
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=120)
    asked = {**inputs, "max_new_tokens": 8, "do_sample": False, "streamer": streamer}
    thread = threading.Thread(target=model.generate, kwargs=asked)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == tokenizer.decode(expected)
    rules = allowed_by(r" (Oslo|Rome|Lima)\.", model, begin)
    answer = model.generate(**inputs, max_new_tokens=8, do_sample=False, num_beams=2, prefix_allowed_tokens_fn=rules)
    assert tokenizer.decode(answer[0, begin:], skip_special_tokens=True) in {" Oslo.", " Rome.", " Lima."}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # asked by peft
def test_peft_trains_a_lora_of_a_network(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """`get_peft_model` on the wrapper: the loss falls, the base stays, and what is saved gives the same sum."""
    network = build_network(smollm2_derived(), initialisation="pretrained", num_layers=2)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/derived")
    model.add_adapter(adapter, "default", scale=0.3, is_trainable=True)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=r"value_networks\..*_proj")
    tuned = peft.get_peft_model(model, config)
    before = base.get_input_embeddings().weight.clone()
    ids = tokenizer(f"{TEXT} It is Rome.", return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(4):
        loss = tuned(input_ids=ids, labels=ids).loss
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    assert torch.equal(base.get_input_embeddings().weight, before)
    model.save_pretrained(tmp_path / "a")
    loaded = ValueAdapterForCausalLM.from_pretrained(base, tmp_path / "a", tokenizer=tokenizer)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model.eval()(ids).logits, atol=1e-3, rtol=1e-3)
