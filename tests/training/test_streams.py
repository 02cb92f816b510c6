"""Data that is streamed: it trains and saves as the same data at hand does, and its record counts what was read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from tiny import byte_tokenizer, tiny_model

from valueadapter import (
    ConfigError,
    ValueAdapter,
    ValueAdapterForCausalLM,
    ValueTrainer,
    ValueTrainingArguments,
    build_network,
)
from valueadapter.artifact import verification
from valueadapter.demonstrations.tokenized import tokenize

RECORDS = [{"prompt": f"Q {i % 7} ", "completion": "ABC"[i % 3] * (1 + i % 5)} for i in range(12)]
Fresh = Callable[[], ValueAdapterForCausalLM]


@pytest.fixture
def fresh(tokenizer: Any) -> Fresh:
    def make() -> ValueAdapterForCausalLM:
        base = tiny_model("llama", seed=1)
        model = ValueAdapterForCausalLM(base, tokenizer=tokenizer)
        adapter = ValueAdapter.from_networks([build_network(base)], tokenizer, base_model_name_or_path="alice/base")
        model.add_adapter(adapter, "default", is_trainable=True)
        return model

    return make


def endless() -> Iterator[dict[str, str]]:
    yield from itertools.cycle(RECORDS)


STREAMS = {
    "records": lambda: Dataset.from_list(RECORDS).to_iterable_dataset(),
    "tokenized": lambda: tokenize(Dataset.from_list(RECORDS), byte_tokenizer()).to_iterable_dataset(),
    "endless, columns unknown": lambda: IterableDataset.from_generator(endless),
}


def trainer(model: ValueAdapterForCausalLM, folder: Path, data: Any, **changes: Any) -> ValueTrainer:
    settings: dict[str, Any] = {"max_steps": 4, "save_steps": 2, "learning_rate": 1e-2, "report_to": [], "seed": 0}
    settings |= {"use_cpu": True, "disable_tqdm": True, "per_device_train_batch_size": 3, **changes}
    return ValueTrainer(model, ValueTrainingArguments(output_dir=str(folder), **settings), train_dataset=data)


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_trains_and_saves(fresh: Fresh, tmp_path: Path, kind: str) -> None:
    """At every checkpoint and at the end; counted are the demonstrations and response tokens that were read."""
    run = trainer(fresh(), tmp_path, STREAMS[kind]())
    run.train()
    run.save_model()
    record = verification.verify(tmp_path / "adapter").training
    assert record is not None
    assert (record.num_examples, record.steps) == (12, 4)
    assert record.num_response_tokens == sum(len(one["completion"]) + 1 for one in RECORDS)
    at_two = verification.verify(tmp_path / "checkpoint-2" / "adapter").training
    assert at_two is not None
    assert at_two.num_examples == 6


def test_a_stream_is_resumed_as_if_not_stopped(fresh: Fresh, tmp_path: Path) -> None:
    """Weights and counts."""
    whole, resumed = fresh(), fresh()
    trainer(whole, tmp_path, STREAMS["records"]()).train()
    run = trainer(resumed, tmp_path, STREAMS["records"]())
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    pairs = zip(whole.value_networks.state_dict().values(), resumed.value_networks.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    record = run.trained_adapter().config.training
    assert record is not None
    assert record.num_examples == 12


def test_what_a_stream_cannot_do_is_said_in_the_constructor(fresh: Fresh, tmp_path: Path) -> None:
    """Steps without an end, and a cache of what has no length."""
    with pytest.raises(ValueError, match="max_steps"):
        trainer(fresh(), tmp_path, STREAMS["records"](), max_steps=-1)
    with pytest.raises(ConfigError, match="cache_base needs data with a length"):
        trainer(fresh(), tmp_path, STREAMS["records"](), cache_base=True)
