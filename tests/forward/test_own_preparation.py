"""Architectures that prepare each step of generation themselves: right as base and as network, untouched alone."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from kinds import CACHED_OTHERWISE, NO_BEAMS, NO_PADDING, OF_THEIR_OWN, SWITCH, model_of
from tiny import byte_tokenizer, tiny_model
from transformers import PreTrainedModel
from vocabularies import tokenizer_of

from valueadapter import UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.compat import cache_in

HOW: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": None, "return_dict_in_generate": True, "output_scores": True}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True},
    "beams": {"do_sample": False, "num_beams": 2},
}
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, :3] = IDS[1, :3] = 0
LONG = torch.randint(3, 97, (2, 15), generator=torch.Generator().manual_seed(1))


def added(base: PreTrainedModel, *networks: PreTrainedModel, prefix: str | None = None) -> ValueAdapterForCausalLM:
    tokenizer = byte_tokenizer()
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer).eval()
    for network, name in zip(networks, "ab", strict=False):
        adapter = ValueAdapter.from_networks(
            [network], tokenizer, base_model_name_or_path="alice/base", base_prefix=prefix
        )
        model.add_adapter(adapter, name, scale=0.5)
    return model


def scores(model: Any, ids: torch.Tensor, mask: torch.Tensor | None = None, *, new: int = 5, **how: Any) -> Any:
    """(batch, new, vocab) scores of each step, and the tokens that were chosen."""
    torch.manual_seed(0)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=new, **HOW, **how)
    return torch.stack(out.scores, 1), out.sequences[:, ids.shape[1] :]


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(one[1], other[1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", OF_THEIR_OWN)
def test_without_adapters_it_is_the_base_bit_for_bit(kind: str, mode: str) -> None:
    """In a batch with padding, in every way of switching off, and for rows without a name."""
    base = model_of(kind, seed=1)
    how = {} if mode != "beams" or kind not in NO_BEAMS else {"use_cache": False}
    alone = scores(base, IDS, MASK, **MODES[mode], **how)
    model = added(base, tiny_model("llama", seed=2))
    off = [(model.disable_adapter(), {}), (model.only("a", scale=0.0), {})]
    off.append((contextlib.nullcontext(), {"adapter_names": [None, None]}))
    for block, names in off:
        with block:
            found = scores(model, IDS, MASK, **MODES[mode], **how, **names)
        assert torch.equal(found[0], alone[0])
        assert torch.equal(found[1], alone[1])


@pytest.mark.parametrize("role", ["base", "network"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", OF_THEIR_OWN)
def test_cached_equals_uncached_and_a_row_of_a_batch_equals_itself_alone(kind: str, mode: str, role: str) -> None:
    """Whatever the class does between two steps, it does it beside another model too."""
    own, other = model_of(kind, seed=1), tiny_model("llama", seed=2)
    model = added(own, other) if role == "base" else added(other, own)
    mask = None if kind in NO_PADDING else MASK
    cached = scores(model, IDS, mask, **MODES[mode])
    if kind not in CACHED_OTHERWISE:
        assert_same(cached, scores(model, IDS, mask, **MODES[mode], use_cache=False))
    if mask is not None and mode != "sampling":
        alone = scores(model, IDS[1:, 3:], **MODES[mode])
        beams = MODES[mode].get("num_beams", 1)
        assert_same((cached[0][beams:], cached[1][1:]), alone)


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "phi3", "cpmant"])
def test_rows_of_mixed_adapters_equal_their_runs_alone(kind: str) -> None:
    """Each group of rows has its own caches, and its own preparation."""
    model = added(model_of(kind, seed=1), tiny_model("llama", seed=2), model_of(kind, seed=3))
    names: list[Any] = ["a", None, "b", ["a", "b"]]
    ids, mask = IDS[[0, 1, 1, 1]], MASK[[0, 1, 1, 1]]
    found = scores(model, ids, mask, do_sample=False, new=8, adapter_names=names)
    for row, name in enumerate(names):
        alone = scores(model, ids[row : row + 1], mask[row : row + 1], do_sample=False, new=8, adapter_names=[name])
        assert_same((found[0][row : row + 1], found[1][row : row + 1]), alone)


@pytest.mark.parametrize("role", ["base", "network"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [15, 23, 24, 25])
def test_phi3_reads_everything_anew_where_its_positions_change(role: str, mode: str, length: int) -> None:
    """Its keys up to 24 tokens are of no use beyond; alone it drops its cache there, and so does the sum."""
    own, other = model_of("phi3", seed=1), tiny_model("llama", seed=2)
    ids = torch.cat([LONG, LONG], dim=1)[:, :length]
    model = added(own, other) if role == "base" else added(other, own)
    cached = scores(model, ids, new=14, **MODES[mode])
    assert_same(cached, scores(model, ids, new=14, **MODES[mode], use_cache=False))
    with model.disable_adapter():
        off = scores(model, ids, new=14, **MODES[mode])
    alone = scores(model.base, ids, new=14, **MODES[mode])
    assert torch.equal(off[0], alone[0])
    assert torch.equal(off[1], alone[1])


@pytest.mark.parametrize("how", [{"prompt_lookup_num_tokens": 3}, {"cache_implementation": "static"}, {"names": True}])
def test_phi3_changes_its_positions_in_other_modes(how: dict[str, Any]) -> None:
    """Under speculation, on a static cache, and in a batch of mixed adapters."""
    model = added(model_of("phi3", seed=1), tiny_model("llama", seed=2))
    ids, mixed = LONG[:1, :4].repeat(1, 4), how.pop("names", False)
    expected = scores(model, ids, new=20, do_sample=False, use_cache=False)[1]
    if mixed:
        found = scores(model, ids.repeat(2, 1), new=20, do_sample=False, adapter_names=["a", None])[1][:1]
    else:
        found = scores(model, ids, new=20, do_sample=False, **how)[1]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["mamba", "bamba", "phi3"])
def test_behind_a_prefix_the_base_reads_as_if_it_had_been_given_it(kind: str) -> None:
    """A recurrent state behind a prefix, and a prefix that positions change behind."""
    base, prefix = model_of(kind, seed=1), "Q:A Z"
    model = added(base, tiny_model("llama", seed=2), prefix=prefix)
    before = torch.tensor([byte_tokenizer()(prefix, add_special_tokens=False)["input_ids"]])
    with model.prefixed_base(prefix):
        found = scores(model, LONG[:1], new=12, do_sample=False)
        batch = scores(model, IDS, MASK, new=4, do_sample=False)
    # without a cache: older transformers have Phi-3 read one token alone where its positions change
    assert_same(found, scores(base, torch.cat([before, LONG[:1]], 1), new=12, do_sample=False, use_cache=False))
    alone = scores(base, torch.cat([before, IDS[1:, 3:]], 1), new=4, do_sample=False)
    assert_same((batch[0][1:], batch[1][1:]), alone)
    cached = scores(model, IDS, MASK, new=15, do_sample=False)
    assert_same(cached, scores(model, IDS, MASK, new=15, do_sample=False, use_cache=False))


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba"])
def test_a_call_that_goes_on_from_a_cache_gives_a_recurrent_network_no_mask(kind: str) -> None:
    """As a processor of the user's calls the model: new ids, the whole mask, the cache."""
    model = added(tiny_model("llama", seed=2), model_of(kind, seed=1))
    positions = (MASK.cumsum(1) - 1).clamp(min=0)
    whole = model(IDS, attention_mask=MASK, position_ids=positions).logits[:, -1]
    cache = model(IDS[:, :-1], attention_mask=MASK[:, :-1], position_ids=positions[:, :-1]).cache
    last = model(IDS[:, -1:], attention_mask=MASK, position_ids=positions[:, -1:], cache=cache).logits[:, -1]
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-4)


def test_a_model_without_a_cache_of_this_kind_is_not_given_one() -> None:
    """Its own state would stay behind; what cannot be is said."""
    model = added(model_of("rwkv", seed=1), tiny_model("llama", seed=2))
    assert model(IDS).cache is None
    with pytest.raises(UnsupportedModeError, match="keeps no cache of transformers' kind"):
        model(IDS, use_cache=True)


@pytest.mark.parametrize("kind", ["rwkv", "openai-gpt", "cpmant", "bloom", "mamba"])
def test_a_network_that_cannot_read_text_is_refused_at_once(kind: str) -> None:
    """Without positions or cache a network cannot read tokens of its own at a pace of its own."""
    theirs = tokenizer_of("sentencepiece")
    network = model_of(kind, seed=1, width=len(theirs))
    adapter = ValueAdapter.from_networks([network], theirs, base_model_name_or_path="alice/base")
    model = added(tiny_model("llama", seed=2))
    with pytest.raises(UnsupportedModeError, match="cannot read text of another vocabulary"):
        model.add_adapter(adapter, "a")
    assert not model.adapters


def test_the_bases_own_generate_takes_what_only_it_knows() -> None:
    """Embeddings in place of ids, a cache of the base's own, and settings given to the wrapper."""
    base = tiny_model("llama", seed=1)
    model = added(base, tiny_model("qwen3", seed=2))
    embeds = base.get_input_embeddings()(IDS)
    with model.disable_adapter():
        found = model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert torch.equal(
            found, base.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False, pad_token_id=0)
        )
        first = model.generate(LONG, max_new_tokens=3, do_sample=False, **HOW)
        longer = torch.cat([first.sequences, LONG], 1)
        again = model.generate(longer, max_new_tokens=3, do_sample=False, pad_token_id=0, cache=cache_in(first))
        assert torch.equal(again, base.generate(longer, max_new_tokens=3, do_sample=False, pad_token_id=0))
        own = model(LONG, use_cache=True).cache
        model.generate(longer, max_new_tokens=3, do_sample=False, pad_token_id=0, cache=own)
    for refused in ({"inputs_embeds": embeds}, {"input_ids": longer, "cache": cache_in(first)}):
        with pytest.raises(UnsupportedModeError, match=r"read token ids|have not read"):
            model.generate(**refused, max_new_tokens=3)


def test_the_switch_of_phi3_is_where_the_tests_say() -> None:
    """Else they would protect nothing."""
    assert model_of("phi3", seed=1).config.rope_parameters["original_max_position_embeddings"] == SWITCH
