"""Training follows the seed to the last bit, reads what it is said to read, and learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from studies.material.corpora import Corpus
from studies.material.pretraining import (
    CONTEXT,
    PIECE,
    Schedule,
    Shape,
    held_out_pieces,
    pretrain,
    token_stream,
    untrained,
    windows,
)
from studies.material.study_tokenizers import byte_tokenizer

CORPUS = Corpus(["the cat sat on the mat. " * 20, "a dog ran. " * 20], ["the dog sat on the cat. " * 3])
SCHEDULE = Schedule(steps=3, rows=2, window=16, learning_rate=1e-2, weight_decay=0.1, held_out_pieces=2)
SHAPE = Shape(layers=2, width=16, heads=2)


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    return byte_tokenizer(context=CONTEXT)


def fresh(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> PreTrainedModel:
    return untrained(SHAPE, tokenizer, seed=seed)


def quiet(line: str) -> None:
    """Says nothing."""


def equal(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(mine, yours) for mine, yours in pairs)


def test_same_seed_gives_the_same_weights(byte_level: PreTrainedTokenizerFast) -> None:
    """A model can be made again, whatever random numbers were drawn before; another seed is another model."""
    made = {}
    for name, seed in {"first": 0, "again": 0, "other": 1}.items():
        torch.rand(3)
        made[name] = fresh(byte_level, seed)
        pretrain(made[name], byte_level, CORPUS, schedule=replace(SCHEDULE, seed=seed), say=quiet)
    assert equal(made["first"], made["again"])
    assert not equal(made["first"], made["other"])


def test_windows_follow_the_seed_alone(byte_level: PreTrainedTokenizerFast) -> None:
    """Two sizes of one schedule read the same windows, and another seed reads others."""
    stream = token_stream(CORPUS.train, byte_level)
    first, again = list(windows(stream, SCHEDULE)), list(windows(stream, SCHEDULE))
    assert all(torch.equal(mine, yours) for mine, yours in zip(first, again, strict=True))
    assert not torch.equal(first[0], next(windows(stream, replace(SCHEDULE, seed=1))))


def test_windows_are_consecutive_tokens(byte_level: PreTrainedTokenizerFast) -> None:
    """Every window is a stretch of the stream, of the size and number that the schedule counts."""
    stream = token_stream(CORPUS.train, byte_level)
    steps = list(windows(stream, SCHEDULE))
    text = bytes(token if token < 256 else 0 for token in stream.tolist())
    assert sum(ids.numel() for ids in steps) == SCHEDULE.tokens == 96
    for row in torch.cat(steps).tolist():
        assert bytes(token if token < 256 else 0 for token in row) in text


def test_a_stream_of_one_window_is_read_whole(byte_level: PreTrainedTokenizerFast) -> None:
    """The last place a window can begin at is one of them."""
    stream = torch.arange(16)
    assert torch.equal(next(windows(stream, SCHEDULE)), stream.expand(2, 16))


def test_each_text_ends_with_the_end_of_sequence(byte_level: PreTrainedTokenizerFast) -> None:
    """The model learns that texts end, and nothing of one text is lost between two."""
    assert token_stream(["ab", "c"], byte_level).tolist() == [97, 98, 258, 99, 258]


def test_training_lowers_the_cost_of_text_like_it(byte_level: PreTrainedTokenizerFast) -> None:
    """The loop descends, on text that it did not read, and reports both costs; random weights cost 8 bits."""
    model = fresh(byte_level)
    said: list[str] = []
    costs = pretrain(model, byte_level, CORPUS, schedule=replace(SCHEDULE, steps=60), say=said.append)
    assert costs["before"] == pytest.approx(8, abs=0.2)
    assert costs["after"] < 5
    assert f"{costs['after']:.3f}" in said[-1]
    assert not model.training


def test_threads_are_given_back(byte_level: PreTrainedTokenizerFast) -> None:
    """The caller's number of threads is what it was."""
    before = torch.get_num_threads()
    pretrain(fresh(byte_level), byte_level, CORPUS, schedule=replace(SCHEDULE, threads=before + 1), say=quiet)
    assert torch.get_num_threads() == before


def test_rate_rises_then_falls_to_a_tenth() -> None:
    """Warm-up over a twentieth, then a cosine."""
    schedule = replace(SCHEDULE, steps=100, learning_rate=1.0)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_pieces_are_the_beginnings_first() -> None:
    """No held-out document fills the measurement, and none is scored twice."""
    corpus = Corpus([], ["a" * (PIECE + 5), "b" * PIECE])
    assert held_out_pieces(corpus, 3) == ["a" * PIECE, "b" * PIECE, "a" * 5]
    assert held_out_pieces(corpus, 2) == ["a" * PIECE, "b" * PIECE]
