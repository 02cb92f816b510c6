"""lm-evaluation-harness on the wrapper: it sees the likelihoods that we see, on a task over a local file.

Skipped where `lm-eval` is not installed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bodies import as_trained
from tiny import byte_tokenizer, tiny_model
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.evaluation.metrics import evaluate

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")  # the harness's dependencies have deprecations of their own

KINDS = ["same", "other", "pair", "pair, other"]
QUESTIONS: list[dict[str, Any]] = [
    {"question": "ABC", "choices": ["DE", "X", "YZ"], "answer": 0},
    {"question": "F", "choices": ["A", "GHIJ"], "answer": 1},
    {"question": "The readers", "choices": ["read again", "ride"], "answer": 0},
]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The harness logs deprecations that no caller can avoid."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def wrapped(kind: str) -> ValueAdapterForCausalLM:
    """An adapter on a base of its own vocabulary, or of another; a network, or a pair as `train` makes them."""
    mine = byte_tokenizer()
    theirs = tokenizer_of("coarse bytes") if "other" in kind else mine
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(theirs)), tokenizer=theirs)
    if "pair" in kind:
        adapter = as_trained(tiny_model("llama", seed=2), mine, seed=3, prefix="A: B C\n\n")
    else:
        adapter = ValueAdapter.from_networks([tiny_model("gpt2", seed=2)], mine, base_model_name_or_path="a/b")
    model.add_adapter(adapter, "default")
    model.eval()
    return model


def task(folder: Path, **more: Any) -> dict[str, Any]:
    """A task of the harness over a local file, as its YAML files describe one."""
    path = folder / "questions.json"
    path.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    return {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "target_delimiter": "",
        **more,
    }


def run(model: ValueAdapterForCausalLM, task: dict[str, Any], batch_size: int) -> Any:
    """As docs/evaluation.md says."""
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=model, tokenizer=model.base_tokenizer, backend="causal", batch_size=batch_size)
    none = TaskManager(include_defaults=False)  # reading its own thousands of tasks takes long
    return lm_eval.simple_evaluate(model=lm, tasks=[task], task_manager=none, log_samples=True, bootstrap_iters=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 4])
def test_likelihoods_are_ours(tmp_path: Path, kind: str, batch_size: int) -> None:
    """Of every choice, and so is the accuracy."""
    model = wrapped(kind)
    choice = task(
        tmp_path, task="tiny_choice", output_type="multiple_choice", doc_to_choice="choices", doc_to_target="answer"
    )
    found = run(model, choice, batch_size)
    for sample, one in zip(found["samples"]["tiny_choice"], QUESTIONS, strict=True):
        theirs = [answer[0][0] for answer in sample["resps"]]
        records = [{"prompt": one["question"], "completion": text} for text in one["choices"]]
        for record, likelihood in zip(records, theirs, strict=True):
            score = evaluate(model, model.base_tokenizer, [record], generate=False)
            nats = score.bits_per_byte * len(record["completion"]) * math.log(2)
            assert likelihood == pytest.approx(-nats, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_its_answers_are_ours(tmp_path: Path, kind: str) -> None:
    """Greedy generation through the harness says what `evaluate` says."""
    model = wrapped(kind)
    asked = task(
        tmp_path,
        task="tiny_generation",
        output_type="generate_until",
        doc_to_target="{{choices[answer]}}",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
    )
    samples = run(model, asked, 2)["samples"]["tiny_generation"]
    records = [{"prompt": one["question"], "completion": "x"} for one in QUESTIONS]
    ours = evaluate(model, model.base_tokenizer, records, max_new_tokens=5).answers
    assert tuple(sample["resps"][0][0].strip() for sample in samples) == ours


def test_without_the_adapter_it_is_the_base(tmp_path: Path) -> None:
    """`disable_adapter` holds inside the harness as well."""
    model = wrapped("same")
    choice = task(
        tmp_path, task="tiny_choice", output_type="multiple_choice", doc_to_choice="choices", doc_to_target="answer"
    )
    with model.disable_adapter():
        off = run(model, choice, 1)["samples"]["tiny_choice"][0]["resps"]
    bare = ValueAdapterForCausalLM(model.base, tokenizer=model.base_tokenizer)
    assert off == run(bare, choice, 1)["samples"]["tiny_choice"][0]["resps"]
    assert off != run(model, choice, 1)["samples"]["tiny_choice"][0]["resps"]
