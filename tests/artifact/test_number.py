"""Numbers that callers give: what is one, what is none, and what a message says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model

from valueadapter import ConfigError, ValueTrainingArguments, Weights, build_lora_network, build_network
from valueadapter.artifact.config.number import finite, whole
from valueadapter.evaluation.arms import Options
from valueadapter.evaluation.metrics import evaluate
from valueadapter.training.recipe_settings import Recipe


@pytest.mark.parametrize("given", [2, np.int64(2), np.uint8(2), torch.tensor(2)])
def test_whole_numbers_become_pythons(given: Any) -> None:
    """So that they go into JSON, whoever made them."""
    assert type(whole("n", given)) is int
    assert whole("n", given, least=2) == 2


@pytest.mark.parametrize("given", [0.5, np.float32(0.5), np.float64(0.5), torch.tensor(0.5), np.array(0.5)])
def test_numbers_become_pythons(given: Any) -> None:
    """The same for what has a point."""
    assert type(finite("n", given)) is float
    assert finite("n", given) == 0.5


NO_NUMBERS = [True, np.bool_(True), torch.tensor(True), "1", None, [1], torch.tensor([1]), 1j, b"1"]


@pytest.mark.parametrize("given", [*NO_NUMBERS, float("nan"), float("inf"), np.float32("nan"), 10**400])
def test_what_is_no_finite_number(given: Any) -> None:
    """A bool counts as 1 in Python, and a text of digits looks like one; neither is taken."""
    with pytest.raises(ConfigError, match=r"^the scale must be a finite number; got "):
        finite("the scale", given)


@pytest.mark.parametrize("given", [*NO_NUMBERS, 8.0, "8", np.float32(8)])
def test_what_is_no_whole_number(given: Any) -> None:
    """8.0 is none: half a batch would be rounded somewhere."""
    with pytest.raises(ConfigError, match=r"^batch_size must be a whole number; got "):
        whole("batch_size", given)


def test_a_message_says_value_and_type() -> None:
    """And of what is too small, the least."""
    with pytest.raises(ConfigError, match=r"got '1' \(str\)"):
        finite("n", "1")
    with pytest.raises(ConfigError, match="n must be at least 1; got 0"):
        whole("n", 0, least=1)


CALLS: dict[str, Callable[[Any], Any]] = {
    "weight of the base": lambda bad: Weights(bad, (1.0,)),
    "weight 1 of networks": lambda bad: Weights(1.0, (1.0, bad)),
    "scale": lambda bad: Recipe("a", "b", "c", scale=bad),  # type: ignore[arg-type]
    "lora_rank": lambda bad: Recipe("a", "b", "c", lora_rank=bad),  # type: ignore[arg-type]
    "batch_size": lambda bad: Options(batch_size=bad),
    "max_new_tokens": lambda bad: evaluate(None, None, [], max_new_tokens=bad),  # type: ignore[arg-type]
    "penalty_coefficient": lambda bad: ValueTrainingArguments("out", penalty_coefficient=bad),
    "max_length": lambda bad: ValueTrainingArguments("out", max_length=bad),
    "the rank of a LoRA": lambda bad: build_lora_network(None, rank=bad, name="x"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("bad", [True, "1"])
@pytest.mark.parametrize("what", CALLS)
def test_public_calls_check_their_numbers(what: str, bad: object) -> None:
    """By the one helper, before anything is done."""
    with pytest.raises(ConfigError, match=rf"^{what} must be a (finite|whole) number; got {bad!r} \("):
        CALLS[what](bad)


def test_num_layers_is_a_number() -> None:
    """Of a network that is built."""
    with pytest.raises(ConfigError, match=r"num_layers must be a whole number; got True \(bool\)"):
        build_network(tiny_model("llama", seed=1), num_layers=True)
