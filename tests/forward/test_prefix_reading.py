"""A prefix that the base reads: output equals the base fed prefix + prompt, plus the network fed the prompt.

Adapters here have a second network, subtracted, which reads the prefix as the base does.
"""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from test_other_vocabulary import wrapped as other_vocabulary
from tiny import KINDS, byte_tokenizer, tiny_model
from tokenizers import processors
from transformers import PreTrainedTokenizerFast, StaticCache
from vocabularies import tokenizer_of

from valueadapter import RECORDED, ConfigError, UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.compat import cache_in, installed

PREFIX = "A:b\nC:d\n"
GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
IDS = torch.randint(3, 97, (2, 7), generator=torch.Generator().manual_seed(0))
REPEATING = torch.randint(3, 20, (1, 3), generator=torch.Generator().manual_seed(1)).repeat(1, 4)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 3},
    "beams on a static cache": {"num_beams": 2, "cache_implementation": "static"},
}
pairs = pytest.mark.parametrize(("base", "network"), [(b, n) for b in KINDS for n in ("gpt2", "gemma3")])
bases = pytest.mark.parametrize("base", KINDS)


def tokens(model: ValueAdapterForCausalLM, text: str) -> torch.Tensor:
    """Ids as the base's tokenizer gives them."""
    ids: list[int] = cast(Any, model.base_tokenizer)(text)["input_ids"]
    return torch.tensor(ids)


def starting_tokenizer() -> PreTrainedTokenizerFast:
    """The byte tokenizer, but it begins every text with <s>."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def prefixed(
    base: str = "llama", network: str = "llama", *, starts: bool = False, prefix: Any = PREFIX, scale: float = 1.0
) -> ValueAdapterForCausalLM:
    tokenizer = starting_tokenizer() if starts else byte_tokenizer()
    model = ValueAdapterForCausalLM(tiny_model(base, seed=1), tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks(
        [tiny_model(network, seed=2), tiny_model(network, seed=3)],
        tokenizer,
        base_model_name_or_path="alice/base",
        base_prefix=prefix,
        coefficients=[1.0, -0.5],
        reads_prefix=[False, True],
    )
    model.add_adapter(adapter, "default", scale=scale)
    model.eval()
    return model


def by_hand(model: ValueAdapterForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits of one unpadded batch, with nothing of the library's prefix in it."""
    before = tokens(model, PREFIX)
    read = ids[:, 1:] if ids[0, 0] == before[0] == 1 else ids
    whole = torch.cat([before.expand(len(ids), -1), read], dim=1)
    base: torch.Tensor = model.base(whole).logits[:, -ids.shape[1] :]
    plain, prefixed = model.adapters["default"].networks
    added: torch.Tensor = plain(ids).logits - 0.5 * prefixed(whole).logits[:, -ids.shape[1] :]
    return base + model.scales["default"] * added


def greedy_by_hand(model: ValueAdapterForCausalLM, ids: torch.Tensor, steps: int = 10) -> torch.Tensor:
    for _ in range(steps):
        ids = torch.cat([ids, by_hand(model, ids)[:, -1:].argmax(-1)], dim=1)
    return ids


@pairs
@pytest.mark.parametrize("starts", [False, True])
def test_sum_is_the_prefixed_base_plus_the_network(base: str, network: str, starts: bool) -> None:
    """The base reads prefix + prompt, with one token that begins the text; the network reads the prompt."""
    model = prefixed(base, network, starts=starts, scale=0.5)
    ids = torch.cat([torch.ones(2, 1, dtype=torch.long), IDS], dim=1) if starts else IDS
    for use_cache in (True, False):
        found = model(ids, use_cache=use_cache).logits
        torch.testing.assert_close(found, by_hand(model, ids), rtol=1e-5, atol=1e-5)


@pairs
@pytest.mark.parametrize("mode", MODES)
def test_cached_equals_uncached_and_by_hand(base: str, network: str, mode: str) -> None:
    """Every mode of decoding gives what reading everything anew gives."""
    model = prefixed(base, network)
    found = model.generate(IDS, **GREEDY, **MODES[mode])
    beams = MODES[mode].get("num_beams", 1)
    assert torch.equal(found, model.generate(IDS, **GREEDY, num_beams=beams, use_cache=False))
    if beams == 1:
        assert torch.equal(found, greedy_by_hand(model, IDS))


@bases
@pytest.mark.parametrize("mode", MODES)
def test_a_starting_token_is_read_once_in_every_mode(base: str, mode: str) -> None:
    """Prompts that begin with the token that the prefix begins with."""
    model = prefixed(base, "gemma3", starts=True)
    ids = torch.cat([torch.ones(2, 1, dtype=torch.long), IDS], dim=1)
    found = model.generate(ids, **GREEDY, **MODES[mode])
    beams = MODES[mode].get("num_beams", 1)
    assert torch.equal(found, model.generate(ids, **GREEDY, num_beams=beams, use_cache=False))
    if beams == 1:
        assert torch.equal(found, greedy_by_hand(model, ids))


@pairs
@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize("mode", ["greedy", "static cache", "no cache"])
def test_left_padded_batch_equals_single_rows(base: str, network: str, starts: bool, mode: str) -> None:
    """A short row in a batch gets the tokens it gets alone, although padding lies beside the prefix."""
    model = prefixed(base, network, starts=starts)
    how = {"use_cache": False} if mode == "no cache" else MODES[mode]
    padded = IDS.clone()
    padded[1, :3] = 0
    if starts:
        padded[0, 0] = padded[1, 3] = 1
    mask = torch.ones_like(padded)
    mask[1, :3] = 0
    batch = model.generate(padded, attention_mask=mask, **GREEDY, **how)
    assert torch.equal(batch[:1], greedy_by_hand(model, padded[:1]))
    assert torch.equal(batch[1:, 3:], greedy_by_hand(model, padded[1:, 3:]))


@bases
@pytest.mark.parametrize("keep", [2, torch.tensor([1, 4])], ids=["last", "some"])
def test_logits_to_keep_counts_the_prompt(base: str, keep: Any) -> None:
    """Positions are the prompt's, in both layouts."""
    model = prefixed(base, "llama")
    mask = torch.ones_like(IDS)
    mask[1, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    given = {"attention_mask": mask, "position_ids": positions, "use_cache": False}
    whole = model(IDS, **given).logits
    kept = whole[:, -2:] if isinstance(keep, int) else whole[:, keep]
    torch.testing.assert_close(model(IDS, logits_to_keep=keep, **given).logits, kept, rtol=1e-5, atol=1e-5)


@bases
def test_speculation_equals_plain_decoding(base: str) -> None:
    """Prompt lookup, and assisted generation with the prefixed model on either side."""
    model, other = prefixed(base, "llama"), tiny_model("llama", seed=5)
    plain = model.generate(REPEATING, **GREEDY, use_cache=False)
    assert torch.equal(model.generate(REPEATING, **GREEDY, prompt_lookup_num_tokens=4), plain)
    assert torch.equal(model.generate(REPEATING, **GREEDY, assistant_model=other), plain)
    if installed("transformers") < (5, 18) and base in ("gemma3", "mistral"):
        return  # an assistant of sliding windows is an error of transformers' there
    theirs = other.generate(REPEATING, **GREEDY, use_cache=False)
    assert torch.equal(other.generate(REPEATING, **GREEDY, assistant_model=model), theirs)


@bases
def test_second_turn_on_the_first_turns_cache(base: str) -> None:
    """A cache that began with the prefix goes on without reading it again."""
    model = prefixed(base, "llama")
    first = model.generate(IDS, **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, IDS], dim=1)
    again = model.generate(longer, **GREEDY, use_cache=False)
    assert torch.equal(model.generate(longer, **GREEDY, cache=cache_in(first)), again)


@bases
@pytest.mark.parametrize("mode", MODES)
def test_other_vocabulary(base: str, mode: str) -> None:
    """The base's logits are those after the prefix; the network reads the prompt alone, in its own tokens."""
    model = other_vocabulary(base, "llama")
    ids = IDS[:, :5] + 100
    with torch.no_grad():
        added = model(ids, output_value_logits=True).value_logits
        before = tokens(model, PREFIX).expand(2, -1)
        expected = model.base(torch.cat([before, ids], dim=1)).logits[:, -5:] + added
        model.set_base_prefix(PREFIX)
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    beams = MODES[mode].get("num_beams", 1)
    uncached = model.generate(ids, **GREEDY, num_beams=beams, use_cache=False)
    assert torch.equal(model.generate(ids, **GREEDY, **MODES[mode]), uncached)


@bases
def test_without_the_adapter_the_base_reads_no_prefix(base: str) -> None:
    """Disabled, or at scale 0, the model is the base bit for bit."""
    model, alone = prefixed(base), tiny_model(base, seed=1)
    with model.disable_adapter():
        assert model.base_prefix is None
        assert torch.equal(model(IDS).logits, alone(IDS).logits)
        assert torch.equal(model.generate(IDS, **GREEDY), alone.generate(IDS, **GREEDY))
    model.set_scale("default", 0)
    assert torch.equal(model(IDS).logits, alone(IDS).logits)


def test_the_prefix_is_read_once_for_all_calls() -> None:
    """Its keys and values are computed once per base, and the base sees the prompt's tokens only."""
    model = prefixed()
    seen: list[int] = []
    hook = model.base.register_forward_pre_hook(
        lambda module, args, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    for _ in range(3):
        model(IDS, use_cache=False)
    hook.remove()
    assert seen == [len(tokens(model, PREFIX)), 7, 7, 7]


def test_a_prefix_can_be_replaced_or_left_out() -> None:
    """At attaching and afterwards."""
    model = prefixed()
    own = model(IDS).logits
    model.set_base_prefix(None)
    plain = model(IDS).logits
    assert model.base_prefix is None
    assert not torch.allclose(own, plain)
    model.set_base_prefix("Z")
    assert model.base_prefix == "Z"
    model.set_base_prefix(RECORDED)
    assert torch.equal(model(IDS).logits, own)
    adapter = model.adapters["default"].copy()
    model.add_adapter(adapter, "bare", base_prefix=None)
    model.set_adapter("bare")
    assert torch.equal(model(IDS).logits, plain)


@bases
def test_the_base_after_a_prefix_without_adapter(base: str) -> None:
    """What a few examples in the prompt give, and nothing of the adapter; afterwards all is as before."""
    model, alone = prefixed(base, prefix=None), tiny_model(base, seed=1)
    own = model(IDS).logits
    with model.prefixed_base(PREFIX):
        before = tokens(model, PREFIX).expand(2, -1)
        expected = alone(torch.cat([before, IDS], dim=1)).logits[:, -7:]
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-5, atol=1e-5)
        found = model.generate(IDS, **GREEDY)
        assert torch.equal(found, model.generate(IDS, **GREEDY, use_cache=False))
    assert torch.equal(model(IDS).logits, own)


def test_messages_are_rendered_by_the_bases_template() -> None:
    """A chat as prefix."""
    turns = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "b"}]
    model = prefixed(prefix=turns)
    rendered = cast(Any, model.base_tokenizer).apply_chat_template(turns, tokenize=False)
    found = model(IDS).logits
    model.set_base_prefix(rendered)
    assert torch.equal(model(IDS).logits, found)


def test_messages_need_a_template() -> None:
    """A base without chat template says what to do, and nothing is attached."""
    tokenizer = byte_tokenizer()
    adapter = ValueAdapter.from_networks(
        [tiny_model("llama", seed=2)],
        tokenizer,
        base_model_name_or_path="alice/base",
        base_prefix=[{"role": "user", "content": "A"}],
    )
    without = byte_tokenizer()
    without.chat_template = None
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=without)
    with pytest.raises(ConfigError, match="no chat template; give it as text"):
        model.add_adapter(adapter, "default")
    assert model.adapters == {}


def test_different_prefixes_are_refused_until_one_is_chosen() -> None:
    """The base can read one; an adapter without a prefix goes along."""
    model = prefixed()
    tokenizer = model.base_tokenizer
    for name, prefix in (("second", "Other:\n"), ("third", None)):
        network = tiny_model("gpt2", seed=4)
        adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="a/b", base_prefix=prefix)
        model.add_adapter(adapter, name)
    with pytest.raises(UnsupportedModeError, match="'default' and 'second' bring different base prefixes"):
        model.set_adapter(["default", "second"])
    model.set_adapter(["default", "third"])
    assert model.base_prefix == PREFIX
    model.set_base_prefix("One for all\n")
    model.set_adapter(["default", "second"])
    assert model.base_prefix == "One for all\n"


@pytest.mark.parametrize("changed", ["other", "none"])
def test_a_cache_of_another_prefix_is_refused(changed: str) -> None:
    """Changing the prefix in mid-conversation is an error, not silence."""
    model = prefixed()
    cache = model(IDS, use_cache=True).cache
    model.set_base_prefix({"other": "Z", "none": None}[changed])
    with pytest.raises(UnsupportedModeError, match="begun with a"):
        model(IDS, cache=cache)
    model.set_base_prefix(None)
    cache = model(IDS, use_cache=True).cache
    model.set_base_prefix(RECORDED)
    with pytest.raises(UnsupportedModeError, match="begun with another base prefix, or none"):
        model(IDS, cache=cache)


def test_the_context_length_counts_the_prefix() -> None:
    """256 positions: a prompt that fits alone may not fit with the prefix."""
    model = prefixed()
    long = torch.full((1, 251), 5)
    with pytest.raises(UnsupportedModeError, match="prefix has 6 tokens, prompt and answer may have 251"):
        model(long)
    with pytest.raises(UnsupportedModeError, match="the base reads 256 at most"):
        model.generate(long[:, :245], **GREEDY)
    model.set_base_prefix(None)
    model(long)


def test_rows_that_begin_differently_are_refused() -> None:
    """With and without the token that begins a text, the prefix would end differently."""
    model = prefixed(starts=True)
    ids = IDS.clone()
    ids[0, 0] = 1
    with pytest.raises(UnsupportedModeError, match="tokenize all prompts the same way"):
        model(ids)


def test_masks_that_hide_the_padding_are_refused() -> None:
    """A mask of four dimensions does not say where rows begin."""
    model = prefixed()
    with pytest.raises(UnsupportedModeError, match=r"pass the attention_mask of \(batch, past \+ seq\)"):
        model(IDS, attention_mask=torch.ones(2, 1, 7, 7))


def test_a_static_cache_too_short_for_the_prefix_is_refused() -> None:
    """With what to do instead."""
    model = prefixed()
    with pytest.raises(UnsupportedModeError, match="the base prefix has 6 and the prompt 7"):
        model(IDS, cache=StaticCache(config=model.base.config, max_cache_len=8))


@pytest.mark.parametrize(("given", "message"), [("", "is empty"), ([{"role": "user"}], "'role' and 'content'")])
def test_what_is_no_prefix_is_refused(given: Any, message: str) -> None:
    """Empty, or turns without content."""
    with pytest.raises(ConfigError, match=message):
        prefixed().set_base_prefix(given)


def test_a_prefix_without_tokens_is_refused() -> None:
    """White space, to a tokenizer that knows none: nothing would be read."""
    tokenizer = tokenizer_of("wordpiece")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(tokenizer)), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"'\\n \\n' has no tokens in the tokenizer of the model that reads it"):
        model.set_base_prefix("\n \n")
    assert model.base_prefix is None


def test_a_first_chunk_of_nothing_but_padding_is_read() -> None:
    """Whichever rows are adapted: the chunk that begins the texts comes later."""
    model = prefixed(starts=True)
    rows = torch.tensor([[0] * 5 + [1, 60, 61], [0] * 4 + [1, 62, 63, 64]])
    given = {"input_ids": rows, "attention_mask": (rows != 0).long(), "adapter_names": [model.active_adapters[0], None]}
    right = model.generate(**given, **GREEDY)
    assert torch.equal(model.generate(**given, **GREEDY, prefill_chunk_size=3), right)
