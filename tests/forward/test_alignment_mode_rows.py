"""The modes beyond the map in every way of decoding: always the whole text's values, and sums that do not cancel."""

from __future__ import annotations

import fractions
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_other_vocabulary import GREEDY, ids_of, wrapped
from tiny import tiny_model
from vocabularies import tokenizer_of

from valueadapter import ValueAdapterForCausalLM
from valueadapter.forward.alignment_modes import Centring
from valueadapter.vocabulary.byte_view import Vocabulary

MODES = ("static", "chain")
PAIRS = (("coarse bytes", "bytes"), ("characters", "wordpiece"), ("bytes", "coarse bytes"), ("metaspace", "unigram"))
BYTES = Vocabulary.from_tokenizer_json(tokenizer_of("bytes").backend_tokenizer.to_str())
WIDTH = len(tokenizer_of("bytes"))
TEXT = "the dog the dog 12345 the readers the dog the "
each_mode = pytest.mark.parametrize("mode", MODES)
each_pair = pytest.mark.parametrize("pair", PAIRS)


def in_mode(pair: tuple[str, str], mode: str) -> ValueAdapterForCausalLM:
    model = wrapped(vocabularies=pair)
    model.set_alignment_mode("default", mode)
    return model


def whole_text(model: ValueAdapterForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@each_mode
@each_pair
def test_logits_after_taking_tokens_back_are_the_whole_texts(pair: tuple[str, str], mode: str) -> None:
    """However many base tokens a crop takes, the next ones get what they get in one pass over all of the text."""
    model = in_mode(pair, mode)
    ids = ids_of(model, TEXT)
    whole = whole_text(model, ids)
    with torch.no_grad():
        for back in (1, 2, 4, 7):
            cache = model(ids, use_cache=True).cache
            cache.crop(-back)
            out = model(ids[:, -back:], cache=cache)
            torch.testing.assert_close(out.logits, whole[:, -back:], rtol=1e-4, atol=1e-4)
            cache.crop(-back)
            out = model(ids[:, -back : 1 - back or None], cache=cache)
            torch.testing.assert_close(out.logits[:, 0], whole[:, -back], rtol=1e-4, atol=1e-4)


@each_mode
@each_pair
def test_logits_step_by_step_are_the_whole_texts(pair: tuple[str, str], mode: str) -> None:
    """Also where a base token takes back more value tokens than the rows of logits that are kept."""
    model = in_mode(pair, mode)
    ids = ids_of(model, "unaffordable jumps, undergrounds 12345 " + TEXT)
    whole, cache = whole_text(model, ids), None
    with torch.no_grad():
        for step in range(ids.shape[1]):
            out = model(ids[:, step : step + 1], cache=cache, use_cache=True)
            cache = out.cache
            torch.testing.assert_close(out.logits[:, 0], whole[:, step], rtol=1e-4, atol=1e-4)


@each_mode
@each_pair
@pytest.mark.parametrize("way", ["greedy", "prompt lookup", "assisted"])
def test_every_way_of_decoding_sees_the_whole_texts_logits(pair: tuple[str, str], mode: str, way: str) -> None:
    """Speculation takes rejected tokens back, and must not leave the map's values in their place."""
    model = in_mode(pair, mode)
    ids = ids_of(model, TEXT)
    ways = {"greedy": {}, "prompt lookup": {"prompt_lookup_num_tokens": 4}, "assisted": {"assistant_model": None}}
    arguments = ways[way]
    if way == "assisted":
        arguments = {"assistant_model": tiny_model("llama", seed=1, width=len(model.base_tokenizer))}
    out = model.generate(ids, **GREEDY, **arguments, return_dict_in_generate=True, output_logits=True)
    got = torch.cat(out.logits)
    whole = whole_text(model, out.sequences)[0, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-4)


@settings(max_examples=150, deadline=None)
@given(spread=st.sampled_from([1.0, 40.0, 200.0, 900.0]), seed=st.integers(0, 2**16))
def test_constants_are_exact_over_hundreds_of_nats(spread: float, seed: int) -> None:
    """The log of a mean of exponentials whose greatest and smallest are no numbers by themselves."""
    tokens = sorted(BYTES.ordinary(WIDTH))
    row = torch.empty(WIDTH).uniform_(-spread, spread, generator=torch.Generator().manual_seed(seed))
    prior = [fractions.Fraction(1, token + 10) for token in tokens]
    top = max(float(row[token]) for token in tokens)
    whole = sum(prior)
    mass = sum(float(p / whole) * math.exp(float(row[t]) - top) for p, t in zip(prior, tokens, strict=True))
    assert Centring(BYTES, WIDTH).of(row) == pytest.approx(math.log(mass) + top, rel=1e-12, abs=1e-9)
