"""What is set on the wrapper's configuration, as on any model's: by people, and by `Trainer`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

from valueadapter import ValueAdapterForCausalLM
from valueadapter.compat import cache_in

IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
ROWS: dict[str, dict[str, Any]] = {"adapters": {}, "names": {"adapter_names": ["default", None]}}


@pytest.mark.parametrize("rows", ROWS)
def test_use_cache(rows: str, wrapped: Callable[..., ValueAdapterForCausalLM]) -> None:
    """Of calls that say nothing of it; `generate` goes by its own configuration, and the base's stays as it is."""
    model = wrapped("llama", "gpt2")
    asked: dict[str, Any] = ROWS[rows]
    how = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **asked}
    expected, tokens = model(IDS, **asked), model.generate(IDS, **how)
    assert cache_in(expected) is not None
    model.config.use_cache = False
    found = model(IDS, **asked)
    assert cache_in(found) is None
    assert torch.equal(found.logits, expected.logits)
    assert cache_in(model(IDS, **asked, use_cache=True)) is not None
    assert torch.equal(model.generate(IDS, **how), tokens)
    assert model.base.config.use_cache


def test_output_hidden_states(wrapped: Callable[..., ValueAdapterForCausalLM]) -> None:
    """As the argument, which goes before it."""
    model = wrapped("llama", "gpt2")
    expected = model(IDS, output_hidden_states=True)
    assert model(IDS).hidden_states is None
    model.config.output_hidden_states = True
    found = model(IDS)
    assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
    assert model(IDS, output_hidden_states=False).hidden_states is None


def test_a_trainer_evaluates_packed_rows_text_by_text(
    wrapped: Callable[..., ValueAdapterForCausalLM], tmp_path: Path
) -> None:
    """It switches the cache off on the configuration, and with one a model reads a packed row as one text."""
    model = wrapped("llama", "llama")
    texts = [[5, 6, 7, 8, 9, 10, 11][: 3 + place] for place in range(4)]
    rows = [{"input_ids": text, "labels": text} for text in texts]
    how = TrainingArguments(str(tmp_path), per_device_eval_batch_size=4, report_to=[], disable_tqdm=True, use_cpu=True)
    trainer = Trainer(model, how, eval_dataset=rows, data_collator=DataCollatorWithFlattening())
    each = [model(torch.tensor([text]), labels=torch.tensor([text])).loss.item() * (len(text) - 1) for text in texts]
    expected = sum(each) / sum(len(text) - 1 for text in texts)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-5)
