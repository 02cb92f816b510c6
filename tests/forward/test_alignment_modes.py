"""The modes beyond the map: what they say, computed by hand, and that they survive caches, batches and stepping."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_other_vocabulary import GREEDY, TEXTS, ids_of, padded, positions, wrapped
from tiny import tiny_model
from vocabularies import tokenizer_of

from valueadapter import ConfigError, UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.vocabulary.retokenizer import Retokenizer

PAIRS = (("coarse bytes", "bytes"), ("bytes", "coarse bytes"), ("bytes", "sentencepiece"), ("metaspace", "unigram"))


def in_chain(base: str = "llama", network: str = "llama", pair: tuple[str, str] = PAIRS[1]):  # type: ignore[no-untyped-def]
    model = wrapped(base, network, pair)
    model.set_alignment_mode("default", "chain")
    return model


def by_hand(model: ValueAdapterForCausalLM, ids: list[int]) -> torch.Tensor:
    """Base + value logits after a text, every candidate tried alone, with sums over all tokens written out."""
    (term,) = model.attached.terms()
    reading, network = term.link.reading, term.networks[0]
    aligner = Retokenizer(reading)
    aligner.push(ids)
    here = list(aligner.ids)
    rows = network(torch.tensor([here])).logits[0]
    prior = {t: 1 / (t + 10) for t in reading.value.ordinary(reading.width)}

    def mean(row: torch.Tensor) -> float:
        mass = sum(prior.values())
        return math.log(sum(prior[t] / mass * math.exp(float(row[t])) for t in prior))

    base = model.base(torch.tensor([ids])).logits[0, -1]
    value = term.link.alignment.project(rows[-1:])[0]
    for token in base.topk(min(24, len(base))).indices.tolist():
        twin, pending = aligner.copy(), aligner.pending
        rollback, new = twin.push([token])
        keep = len(here) - rollback
        if keep < 1:
            continue
        if rollback or pending or len(new) > 1:
            other = network(torch.tensor([twin.ids])).logits[0]
            total = sum(float(other[i - 1][twin.ids[i]]) - mean(other[i - 1]) for i in range(keep, len(twin.ids)))
            total -= sum(float(rows[i - 1][here[i]]) - mean(rows[i - 1]) for i in range(keep, len(here)))
            value[token] = total + mean(rows[-1])
    return base + value


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("text", TEXTS[:2])
def test_the_chain_is_what_it_is_by_hand(pair: tuple[str, str], text: str) -> None:
    """At several positions of the text, scored at once."""
    model = in_chain(pair=pair)
    ids = ids_of(model, text)
    with torch.no_grad():
        logits = model(ids).logits[0]
        for position in range(3, ids.shape[1], 9):
            expected = by_hand(model, ids[0, : position + 1].tolist())
            torch.testing.assert_close(logits[position], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("base", "network"), [("llama", "gpt2"), ("gemma3", "mistral")])
def test_stepping_equals_the_whole_text(base: str, network: str) -> None:
    """One token at a time, in a batch, from a cache that keeps the last rows of logits."""
    model = in_chain(base=base, network=network)
    ids, mask = padded(model, TEXTS[:2])
    with torch.no_grad():
        whole = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
        cache = None
        for step in range(ids.shape[1]):
            at = slice(step, step + 1)
            out = model(
                ids[:, at],
                attention_mask=mask[:, : step + 1],
                position_ids=positions(mask)[:, at],
                cache=cache,
                use_cache=True,
            )
            cache = out.cache
            real = mask[:, step].bool()
            torch.testing.assert_close(out.logits[real, 0], whole[real, step], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("way", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 3}])
def test_cached_equals_uncached(way: dict[str, int]) -> None:
    """Rows of logits follow beams, and are forgotten with rejected tokens."""
    model = in_chain()
    ids = ids_of(model, "the dog the dog 12345 the dog")
    plain = model.generate(ids, **GREEDY, num_beams=way.get("num_beams", 1), use_cache=False)
    assert torch.equal(model.generate(ids, **GREEDY, **way), plain)


def test_the_modes_differ_and_the_map_is_the_default() -> None:
    """Otherwise the tests above would prove little."""
    model = wrapped(vocabularies=PAIRS[1])
    ids = ids_of(model, TEXTS[0])
    with torch.no_grad():
        static = model(ids).logits
        model.set_alignment_mode("default", "chain")
        chain = model(ids).logits
        model.set_alignment_mode("default", "static")
        assert torch.equal(model(ids).logits, static)
    assert not torch.allclose(chain, static, atol=1e-2)


def test_a_coefficient_weighs_better_values_as_the_maps() -> None:
    """Twice the coefficient is twice every value of a token that one of the network's own tokens stands for."""
    model = in_chain()
    adapter = model.adapters["default"]
    twice = ValueAdapter.from_networks(
        adapter.networks, adapter.tokenizer, base_model_name_or_path="alice/base", coefficients=[2.0]
    )
    model.add_adapter(twice, "twice", scale=1.0)
    ids = ids_of(model.eval(), "the dog the dog 12345 the dog")
    values = {}
    for name in ("default", "twice"):
        model.set_adapter(name)
        for mode in ("static", "chain"):
            model.set_alignment_mode(name, mode)
            values[name, mode] = model(ids, output_value_logits=True).value_logits
    linear = torch.isclose(values["twice", "static"], 2 * values["default", "static"], atol=1e-4)
    better = linear & ~torch.isclose(values["default", "chain"], values["default", "static"], atol=1e-2)
    assert better.sum() > 20
    torch.testing.assert_close(
        values["twice", "chain"][better], 2 * values["default", "chain"][better], atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("mode", ["static", "chain"])
def test_positions_may_be_asked_for_twice_and_in_any_order(mode: Any) -> None:
    """Each gets what it gets among all."""
    model = in_chain()
    model.set_alignment_mode("default", mode)
    ids = ids_of(model, "the dog the dog 12345 the dog")
    whole = model.eval()(ids).logits
    for asked in ([5, 5, 12], [12, 2, 5], [9, 12, 9, 2], [-1, 3, 3]):
        kept = torch.tensor(asked)
        torch.testing.assert_close(model(ids, logits_to_keep=kept).logits, whole[:, kept], rtol=1e-4, atol=1e-3)


def test_modes_that_make_no_sense_are_refused() -> None:
    """An unknown one, and any on the adapter's own vocabulary."""
    with pytest.raises(ConfigError, match="static, chain"):
        wrapped().set_alignment_mode("default", "exact")
    tokenizer = tokenizer_of("bytes")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(tokenizer)), tokenizer=tokenizer)
    network = tiny_model("llama", seed=2, width=len(tokenizer))
    model.add_adapter(ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="a/b"), "default")
    with pytest.raises(UnsupportedModeError, match="the same vocabulary"):
        model.set_alignment_mode("default", "chain")
