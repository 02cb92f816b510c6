"""What PEFT's users and `generate`'s users do, on SmolLM2-135M-Instruct."""

from __future__ import annotations

import threading
from pathlib import Path

import peft
import pytest
import torch
from datasets import Dataset
from test_generate_surface import allowed_by
from test_real_models import attach
from test_real_models import base as base
from test_real_models import tokenizer as tokenizer
from torch._dynamo.testing import CompileCounter
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextIteratorStreamer,
    pipeline,
)
from trl import DPOConfig, DPOTrainer

from testkit.reference_models import smollm2_derived, smollm2_instruct
from valueadapter import ValueAdapter, ValueAdapterForCausalLM, build_network, trace
from valueadapter.artifact.standalone import export

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


@torch.no_grad()
def test_tracing_and_a_pipeline(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """What a trace calls the final choice is what `generate` and a pipeline say."""
    model = attach(base, tokenizer, "pretrained")
    inputs = tokenizer(TEXT, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    traced = trace(model, TEXT, max_new_tokens=3)
    assert [step.final.token for step in traced.steps] == [tokenizer.decode([token]) for token in answer.tolist()]
    assert all(step.divergence > 0 for step in traced.steps)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    said = generate(TEXT, max_new_tokens=3, do_sample=False, return_full_text=False)[0]["generated_text"]
    assert said == tokenizer.decode(answer)


@torch.no_grad()
def test_a_swap_compiles_nothing_again(base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Other weights for the same network: the graph that torch.compile made of all of it serves them."""
    model = attach(base, tokenizer, "pretrained")
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    compiled(ids, use_cache=False)
    frames = counter.frame_count
    other = build_network(smollm2_derived(), initialisation="pretrained", num_layers=2)
    other.model.norm.weight.mul_(0.5)
    new = ValueAdapter.from_networks([other], tokenizer, base_model_name_or_path="alice/derived")
    model.hotswap_adapter(new, "default", scale=0.3)
    after = compiled(ids, use_cache=False).logits
    assert counter.frame_count == frames > 0
    torch.testing.assert_close(after, base(ids).logits + 0.3 * other(ids).logits, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_base_with_a_lora_and_a_network_that_says_nothing(
    tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    """A PeftModel is served as it is; the probe reports a head of zeros."""
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuned = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(smollm2_instruct()), lora).eval()
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    alone = tuned(ids).logits.clone()
    model = attach(tuned, tokenizer, "pretrained")
    value = model.adapters["default"].networks[0](ids).logits
    torch.testing.assert_close(model(ids).logits, alone + 0.3 * value, atol=1e-3, rtol=1e-3)
    silent = ValueAdapter.from_networks(
        [build_network(smollm2_derived(), num_layers=1)], tokenizer, base_model_name_or_path="alice/derived"
    )
    model.add_adapter(silent, "silent")
    assert "are all 0" in caplog.text


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")  # TRL's own arguments
def test_dpo_moves_the_network_from_the_base(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """As TRL has it, in bfloat16: at log 2 with a head of zeros, and below after two steps."""
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
    network = build_network(smollm2_derived(), num_layers=2)
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/derived")
    model.add_adapter(adapter, "default", is_trainable=True)
    rows = [{"prompt": f"Q: {n}?\nA:", "chosen": f" It is {n}.", "rejected": " No idea"} for n in range(4)]
    how = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1}
    args = DPOConfig(str(tmp_path), **how, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no")
    reference = ValueAdapterForCausalLM(base)
    trainer = DPOTrainer(model, reference, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(0.6931, abs=1e-2)
    assert losses[-1] < 0.6


def test_the_exported_code_says_the_same(
    base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """`generate` with `custom_generate`, and a loop of one's own with the processor: the wrapper's tokens."""
    model = attach(base, tokenizer, "pretrained")
    adapter = model.adapters["default"].with_config(scale=0.3)
    adapter.save_pretrained(tmp_path / "adapter")
    folder = tmp_path / "exported"
    export(tmp_path / "adapter", folder, to="custom_generate")
    inputs = tokenizer([TEXT, "Hello"], return_tensors="pt", padding=True, padding_side="left")
    greedy = {"max_new_tokens": 6, "do_sample": False}
    code = {"custom_generate": str(folder), "adapter": str(folder), "trust_remote_code": True, "tokenizer": tokenizer}
    assert torch.equal(base.generate(**inputs, **greedy, **code), model.generate(**inputs, **greedy))
