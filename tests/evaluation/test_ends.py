"""Where answers end, how many end, and what ends cost: by hand, and the same for every arm."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.evaluation.answers import answer
from valueadapter.evaluation.arms import Options, evaluate_adapter
from valueadapter.evaluation.kept import Kept
from valueadapter.evaluation.metrics import evaluate
from valueadapter.evaluation.report import ARMS
from valueadapter.forward.stops import end_tokens

TOKENIZER = byte_tokenizer()
PROMPTS = ["ABC", "F", "KLMNO"]
RECORDS = [{"prompt": f"{a}B", "completion": f"{a}C{a * 2}"} for a in "DEFGHIJK"]


def said(model: PreTrainedModel, prompt: str, count: int) -> str:
    """What a model says greedily when nothing ends it."""
    ids = TOKENIZER(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=0, eos_token_id=None)
    return TOKENIZER.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("attached", [False, True])
def test_the_whole_answer_up_to_its_end_is_compared(
    wrapped: Callable[..., ValueAdapterForCausalLM], batch_size: int, attached: bool
) -> None:
    """Not its first line; `ends` says whether one came within the limit, at a token or at a text."""
    model: Any = wrapped() if attached else tiny_model("llama", seed=1)
    whole = [said(model, prompt, 8) for prompt in PROMPTS]
    stop = whole[0][4:6]
    records = [{"prompt": p, "completion": text.split(stop)[0] or "x"} for p, text in zip(PROMPTS, whole, strict=True)]
    score = evaluate(model, TOKENIZER, records, max_new_tokens=8, batch_size=batch_size, stop_strings=[stop])
    assert list(score.answers) == [text.split(stop)[0].strip() for text in whole]
    assert score.pairs("ends") == [(float(stop in text), 1) for text in whole]
    assert score.pairs("exact_match")[0] == (1.0, 1)
    assert answer(model, TOKENIZER, PROMPTS, max_new_tokens=8, stop_strings=[stop]) == list(score.answers)
    longer = evaluate(model, TOKENIZER, records, max_new_tokens=8, batch_size=batch_size)
    assert list(longer.answers) == [text.strip() for text in whole]
    assert longer.value("ends") == 0.0
    last = len(whole[0].split(whole[0][4])[0])  # at a token; one that comes as the very last is an end, too
    model.generation_config.eos_token_id = TOKENIZER.convert_tokens_to_ids(whole[0][4])
    for limit, ends in ((8, 1.0), (last + 1, 1.0), (last, 0.0)):
        if limit:
            assert evaluate(model, TOKENIZER, records[:1], max_new_tokens=limit).value("ends") == ends


def test_what_an_adapter_records_ends_no_answer_by_itself(wrapped: Callable[..., ValueAdapterForCausalLM]) -> None:
    """Base alone and base + adapter end at what the call names, and both at the same."""
    model = wrapped()
    whole = [said(model, prompt, 8) for prompt in PROMPTS]
    adapter = model.adapters["default"].with_config(stop_strings=(whole[0][2],))
    other = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=TOKENIZER)
    other.add_adapter(adapter, "default", scale=1.0)
    records = [{"prompt": prompt, "completion": "x"} for prompt in PROMPTS]
    assert list(evaluate(other.eval(), TOKENIZER, records, max_new_tokens=8).answers) == [one.strip() for one in whole]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_an_end_costs_what_all_ends_together_cost(batch_size: int) -> None:
    """Stop tokens and tokens that begin with a stop string; text alone costs what it did."""
    tokenizer = tokenizer_of("coarse bytes")
    model = tiny_model("llama", seed=1, width=len(tokenizer))
    model.generation_config.eos_token_id = [2, 4]
    records: list[dict[str, Any]] = [
        {"prompt": "It is", "completion": " what it is"},
        {"prompt": "The readers", "completion": " read"},
        {"text": "The dog"},
    ]
    ends = end_tokens(model, tokenizer, ["\n"], width=len(tokenizer))
    assert {2, 4} < set(ends)
    how: dict[str, Any] = {"generate": False, "batch_size": batch_size}
    score = evaluate(model, tokenizer, records, **how, stop_strings=["\n"])
    assert score.bits_per_byte == evaluate(model, tokenizer, records, **how).bits_per_byte
    for record, example in zip(records[:2], score.examples, strict=False):
        ids = [*tokenizer(record["prompt"])["input_ids"], *tokenizer(record["completion"])["input_ids"]]
        p = model(torch.tensor([ids])).logits[0, -1].detach().double().softmax(-1)
        bits, count = example.totals["total_bits_per_byte"]
        text, size = example.totals["bits_per_byte"]
        assert bits - text == pytest.approx(-math.log2(float(p[ends].sum())), rel=1e-4)
        assert count == size
    assert "ends" not in score.examples[2].totals


@pytest.fixture
def adapter(tmp_path: Path) -> ValueAdapter:
    for name, seed in (("donor", 1), ("base", 3)):
        for part in (tiny_model("llama", seed=seed), TOKENIZER):
            part.save_pretrained(tmp_path / name)
    network = tiny_model("gpt2", seed=2)
    return ValueAdapter.from_networks([network], TOKENIZER, base_model_name_or_path=str(tmp_path / "donor"))


def test_every_arm_ends_at_the_same(adapter: ValueAdapter, tmp_path: Path) -> None:
    """At what the adapter records, base alone and few-shot included; unless a right answer holds it."""
    base = tiny_model("llama", seed=3)
    stop = said(base, "DB", 8)[3]
    options = Options(demonstrations=RECORDS[3:], shots=2, max_new_tokens=8)
    ending = adapter.with_config(stop_strings=(stop,))
    (arm,) = evaluate_adapter(ending, [tmp_path / "base"], RECORDS[:3], options=options).to_dict()["arms"]
    for name in ARMS:
        if name in arm["not_measured"]:
            assert arm[f"{name}_ends"] is arm[f"{name}_total_bits_per_byte"] is None
            continue
        assert arm[f"{name}_total_bits_per_byte"] > arm[f"{name}_bits_per_byte"]
        assert 0 <= arm[f"{name}_ends"] <= 1
    alone = evaluate(base, TOKENIZER, RECORDS[:3], max_new_tokens=8, stop_strings=[stop, "\n\n"])
    assert alone.value("ends") == arm["base_ends"] > 0
    for metric in ("total_bits_per_byte", "exact_match"):
        assert arm[f"base_{metric}"] == pytest.approx(alone.value(metric))
    held = [{**RECORDS[0], "completion": f"x{stop}y"}]
    (other,) = evaluate_adapter(ending, [tmp_path / "base"], held, options=options).to_dict()["arms"]
    free = evaluate(base, TOKENIZER, held, max_new_tokens=8, stop_strings=["\n\n"])
    assert other["base_ends"] == free.value("ends") == 0


def test_what_was_kept_with_other_ends_is_measured_anew(adapter: ValueAdapter, tmp_path: Path) -> None:
    """A run that is stopped goes on only with arms that ended at the same texts."""
    told: list[str] = []

    def measured(stop_string: str) -> int:
        told.clear()
        kept = Kept(tmp_path / "kept")
        options = Options(max_new_tokens=3, kept=kept, on_progress=lambda what, done, total: told.append(what))
        one = adapter.with_config(stop_strings=(stop_string,))
        evaluate_adapter(one, [tmp_path / "base"], RECORDS[:2], options=options)
        return sum("kept from a run" in what for what in told)

    assert [measured("Q"), measured("Q"), measured("R")] == [0, 3, 0]
