"""Bits per byte and exact match, against values computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_model

from valueadapter.evaluation import evaluate, normalised

RECORDS = [
    {"prompt": "ABC", "completion": "DE"},
    {"prompt": "F", "completion": "GHIJ"},
    {"prompt": "KL", "completion": "M"},
]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_bits_per_byte_is_the_likelihood_of_the_completion(tokenizer: object, batch_size: int) -> None:
    """Summed over the completions' tokens, in bits, divided by their bytes; the batch size changes nothing."""
    model = tiny_model("llama", seed=1)
    nats = 0.0
    for record in RECORDS:
        prompt = tokenizer(record["prompt"])["input_ids"]
        ids = prompt + tokenizer(record["completion"])["input_ids"]
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(float(log_p[i - 1, ids[i]].detach()) for i in range(len(prompt), len(ids)))
    score = evaluate(model, tokenizer, RECORDS, generate=False, batch_size=batch_size)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / 7, rel=1e-5)
    assert score.exact_match is None


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_and_chat_are_scored_too(tokenizer: object, batch_size: int) -> None:
    """Rows of different length in a batch score as they do alone."""
    model = tiny_model("llama", seed=1)
    turn = [{"role": "user", "content": "HI"}, {"role": "assistant", "content": "YO"}]
    for records in (
        [{"text": "ABC"}, {"text": "DEFGHI"}, {"text": "JK"}],
        [{"messages": turn}, {"messages": turn * 2}],
    ):
        score = evaluate(model, tokenizer, records, generate=False, batch_size=batch_size)
        alone = evaluate(model, tokenizer, records, generate=False, batch_size=1)
        assert score.bits_per_byte == pytest.approx(alone.bits_per_byte, rel=1e-5)


def test_exact_match_counts_what_the_model_says(tokenizer: object) -> None:
    """A model's own answers match; others do not."""
    model = tiny_model("llama", seed=1)
    said = evaluate(model, tokenizer, RECORDS).answers
    own = [{"prompt": r["prompt"], "completion": answer or "x"} for r, answer in zip(RECORDS, said, strict=True)]
    expected = sum(normalised(a) == normalised(a or "x") for a in said) / 3
    assert evaluate(model, tokenizer, own).exact_match == expected
    assert evaluate(model, tokenizer, [{"prompt": "ABC", "completion": "no, never"}]).exact_match == 0


@pytest.mark.parametrize(("a", "b"), [("The Beatles", "beatles!"), ("U.S.  history", "u s history"), ("a dog", "Dog")])
def test_normalisation_forgives_form(a: str, b: str) -> None:
    """Case, articles, punctuation and spaces do not count."""
    assert normalised(a) == normalised(b)
