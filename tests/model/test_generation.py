"""Every decoding mode gives what decoding without any cache gives, for every pair of architectures (fp32)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import KINDS, tiny_model
from transformers import DynamicCache, StaticCache, pipeline

from valueadapter import UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.compat import cache_in, installed

Wrapped = Callable[..., ValueAdapterForCausalLM]
GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
REPEATING = torch.randint(3, 20, (1, 3), generator=torch.Generator().manual_seed(1)).repeat(1, 4)

MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 3},
    "beams on a static cache": {"num_beams": 2, "cache_implementation": "static"},
}

pairs = pytest.mark.parametrize(("base", "network"), [(b, n) for b in KINDS for n in KINDS])


@pairs
def test_sum_is_base_plus_network(wrapped: Wrapped, base: str, network: str) -> None:
    """logits = base logits + scale · value logits, in place (inference) as well as with gradients (training)."""
    model = wrapped(base, network, scale=0.5)
    expected = tiny_model(base, seed=1)(IDS).logits + 0.5 * tiny_model(network, seed=2)(IDS).logits
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-6)


@pairs
@pytest.mark.parametrize("mode", MODES)
def test_cached_equals_uncached(wrapped: Wrapped, base: str, network: str, mode: str) -> None:
    """A cache changes speed, never tokens."""
    model = wrapped(base, network)
    uncached = {"num_beams": MODES[mode].get("num_beams", 1), "use_cache": False}
    assert torch.equal(model.generate(IDS, **GREEDY, **MODES[mode]), model.generate(IDS, **GREEDY, **uncached))


@pairs
def test_sampling_with_a_seed_equals_uncached(wrapped: Wrapped, base: str, network: str) -> None:
    """The same seed draws the same tokens with and without cache."""
    model = wrapped(base, network)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(model.generate(IDS, **{**GREEDY, "do_sample": True}, use_cache=use_cache))
    assert torch.equal(*outputs)


@pairs
def test_speculation_equals_plain_decoding(wrapped: Wrapped, base: str, network: str) -> None:
    """Prompt lookup, and assisted generation with the wrapper on either side, give the target's own greedy tokens."""
    model, other = wrapped(base, network), tiny_model("llama", seed=5)
    plain = model.generate(REPEATING, **GREEDY, use_cache=False)
    assert torch.equal(model.generate(REPEATING, **GREEDY, prompt_lookup_num_tokens=4), plain)
    assert torch.equal(model.generate(REPEATING, **GREEDY, assistant_model=other), plain)
    if installed("transformers") < (5, 18) and "gemma3" in (base, network):
        return  # an assistant of sliding windows is an error of transformers' there
    theirs = other.generate(REPEATING, **GREEDY, use_cache=False)
    assert torch.equal(other.generate(REPEATING, **GREEDY, assistant_model=model), theirs)


@pairs
def test_left_padded_batch_equals_single_rows(wrapped: Wrapped, base: str, network: str) -> None:
    """A short row in a batch gets the tokens that it gets alone."""
    model = wrapped(base, network)
    padded = IDS.clone()
    padded[1, :3] = 0
    mask = torch.ones_like(padded)
    mask[1, :3] = 0
    batch = model.generate(padded, attention_mask=mask, **GREEDY)
    assert torch.equal(batch[0], model.generate(IDS[:1], **GREEDY)[0])
    assert torch.equal(batch[1, 7:], model.generate(IDS[1:, 3:], **GREEDY)[0, 4:])


@pairs
def test_second_turn_on_the_first_turns_cache(wrapped: Wrapped, base: str, network: str) -> None:
    """A conversation that keeps its cache goes on as one that reads everything again."""
    model = wrapped(base, network)
    first = model.generate(IDS, **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, IDS], dim=1)
    again = model.generate(longer, **GREEDY, use_cache=False)
    assert torch.equal(model.generate(longer, **GREEDY, cache=cache_in(first)), again)


@pairs
def test_logits_to_keep_selects_positions(wrapped: Wrapped, base: str, network: str) -> None:
    """The last N logits, or those at given positions, are those of the whole forward pass."""
    model = wrapped(base, network)
    whole = model(IDS).logits
    torch.testing.assert_close(model(IDS, logits_to_keep=2).logits, whole[:, -2:], rtol=1e-5, atol=1e-5)
    some = torch.tensor([1, 4])
    torch.testing.assert_close(model(IDS, logits_to_keep=some).logits, whole[:, some], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_two_adapters_and_a_pair_cached_equal_uncached(wrapped: Wrapped, tiny_adapter: Any, mode: str) -> None:
    """Several networks of several adapters, one of them subtracted, each with a cache of its own."""
    model = wrapped("gemma3", "mistral")
    pair = [tiny_model("gpt2", seed=4), tiny_model("qwen3", seed=5)]
    tokenizer = model.base_tokenizer
    both = ValueAdapter.from_networks(pair, tokenizer, base_model_name_or_path="a/b", coefficients=[1, -1])
    model.add_adapter(both, "pair", scale=0.5)
    model.set_adapter(["default", "pair"])
    uncached = {"num_beams": MODES[mode].get("num_beams", 1), "use_cache": False}
    assert torch.equal(model.generate(IDS, **GREEDY, **MODES[mode]), model.generate(IDS, **GREEDY, **uncached))


@pairs
def test_scale_zero_is_the_base_and_runs_no_network(wrapped: Wrapped, base: str, network: str) -> None:
    """At scale 0 the logits are the base's bit for bit, and the network is not called."""
    model, alone = wrapped(base, network, scale=0.0), tiny_model(base, seed=1)

    def must_not_run(*args: object) -> None:
        raise AssertionError("the network ran")

    model.adapters["default"].networks[0].register_forward_pre_hook(must_not_run)
    assert torch.equal(model(IDS).logits, alone(IDS).logits)
    assert torch.equal(model.generate(IDS, **GREEDY), alone.generate(IDS, **GREEDY))
    model.set_scale("default", 1.0)
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, alone(IDS).logits)


@pytest.mark.parametrize("network", KINDS)
@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_an_empty_cache_of_the_callers_serves(wrapped: Wrapped, kind: type, network: str) -> None:
    """A transformers cache made for the base is taken up, with networks' caches beside it."""
    model = wrapped("gemma3", network)
    cache = kind(config=model.base.config, **({"max_cache_len": 32} if kind is StaticCache else {}))
    assert torch.equal(model.generate(IDS, cache=cache, **GREEDY), model.generate(IDS, **GREEDY, use_cache=False))


def test_a_static_cache_that_hides_its_length_is_refused(wrapped: Wrapped) -> None:
    """All layers of Mistral slide, so the cache knows its window only."""
    model = wrapped("mistral", "llama")
    with pytest.raises(UnsupportedModeError, match="cache_implementation='static'"):
        model.generate(IDS, cache=StaticCache(config=model.base.config, max_cache_len=32), **GREEDY)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_a_cache_is_taken_by_either_name(wrapped: Wrapped, name: str) -> None:
    """Whatever is installed: `past_key_values` would else reach the base alone and give wrong logits."""
    model = wrapped()
    expected, told = model(IDS).logits[:, 4:], model.generate(IDS, **GREEDY)
    begun = model(IDS[:, :4], use_cache=True)
    torch.testing.assert_close(model(IDS[:, 4:], **{name: begun.cache}).logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.generate(IDS, **GREEDY, **{name: model(IDS[:, :4], use_cache=True).cache}), told)
    assert cache_in(begun) is begun.cache
    with pytest.raises(TypeError, match="came as"):
        model(IDS, cache=begun.cache, past_key_values=begun.cache)


def test_a_cache_of_the_base_alone_is_refused(wrapped: Wrapped) -> None:
    """Networks cannot go on from text that they have not read."""
    model = wrapped()
    used = cache_in(model.base(IDS, use_cache=True))
    with pytest.raises(UnsupportedModeError, match="have not read"):
        model(IDS, cache=used)


def test_a_cache_of_other_adapters_is_refused(wrapped: Wrapped) -> None:
    """Changing the active adapters in mid-conversation is an error, not silence."""
    model = wrapped()
    cache = model(IDS, use_cache=True).cache
    with model.disable_adapter(), pytest.raises(UnsupportedModeError, match=r"made for base, default\."):
        model(IDS, cache=cache)


def test_modes_that_cannot_work_say_why(wrapped: Wrapped) -> None:
    """Continuous batching and lone embeddings raise with a reason and a way out."""
    model = wrapped()
    with pytest.raises(UnsupportedModeError, match="left-padded batch"):
        model.generate_batch([[3, 4]])
    embeds = model.get_input_embeddings()(IDS)
    with pytest.raises(UnsupportedModeError, match="read token ids"):
        model(inputs_embeds=embeds)
    with model.disable_adapter():
        assert torch.equal(model(inputs_embeds=embeds).logits, model.base(inputs_embeds=embeds).logits)


def test_pipeline_and_chat_template(wrapped: Wrapped, tokenizer: object) -> None:
    """`pipeline("text-generation")` takes the wrapper, with text and with chat messages, and warns of nothing."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]  # a list will do
    logging.getLogger("transformers").addHandler(handler)
    generate = pipeline("text-generation", model=wrapped(), tokenizer=tokenizer)
    text = generate("ABC", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert text.startswith("ABC")
    chat = generate([{"role": "user", "content": "HI"}], max_new_tokens=5, do_sample=False)
    assert chat[0]["generated_text"][-1]["role"] == "assistant"
    logging.getLogger("transformers").removeHandler(handler)
    assert not [line for line in said if "not supported" in line]
