"""Networks that stand for the training base read the prefix as the base does, whatever their vocabulary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_alignment import permuted, side
from test_other_vocabulary import ids_of
from test_prefix_reading import GREEDY, IDS, MODES, PREFIX, bases, prefixed, tokens
from tiny import tiny_model
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from vocabularies import tokenizer_of

from valueadapter import ConfigError, UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.forward.prefix_tokens import prefix_ids


def reading_text(base: str, vocabularies: tuple[str, str], *, prefix: Any = PREFIX) -> ValueAdapterForCausalLM:
    """A base of another vocabulary than the networks', of which the second reads the prefix."""
    theirs, mine = (tokenizer_of(kind) for kind in vocabularies)
    model = ValueAdapterForCausalLM(tiny_model(base, seed=1, width=len(theirs)), tokenizer=theirs)
    adapter = ValueAdapter.from_networks(
        [tiny_model("llama", seed=2, width=len(mine)), tiny_model("gemma3", seed=3, width=len(mine))],
        mine,
        base_model_name_or_path="alice/base",
        base_prefix=prefix,
        coefficients=[1.0, -0.5],
        reads_prefix=[False, True],
    )
    model.add_adapter(adapter, "default", scale=0.5)
    return model.eval()


@pytest.mark.parametrize("vocabularies", [("coarse bytes", "bytes"), ("bytes", "sentencepiece")])
@bases
@torch.no_grad()
def test_a_network_of_another_vocabulary_reads_the_prefix_in_its_own_tokens(
    base: str, vocabularies: tuple[str, str]
) -> None:
    """At every position it is the network fed its prefix and the text so far, split apart; in every decoding mode."""
    model = reading_text(base, vocabularies)
    adapter, link = model.adapters["default"], model.attached.terms()[0].link
    assert link is not None
    assert link.reading is not None
    ids = ids_of(model, "The cat sat.")
    before = tokens(model, PREFIX)[None]
    expected = model.base(torch.cat([before, ids], dim=1)).logits[:, -ids.shape[1] :].clone()
    encoder = link.reading.encoder
    for position in range(ids.shape[1]):
        data = b"".join(link.reading.data[token] for token in ids[0, : position + 1].tolist()).decode()
        text = list(encoder.encode(data.removeprefix(" ") if link.reading.opens_with_space else data, start=True))
        plain = adapter.networks[0](torch.tensor([[*encoder.prefix, *text]])).logits[:, -1]
        behind = adapter.networks[1](torch.tensor([[*prefix_ids(PREFIX, adapter.tokenizer), *text]])).logits[:, -1]
        expected[:, position] += 0.5 * link.alignment.project(plain - 0.5 * behind)
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    for how in MODES.values():
        beams = how.get("num_beams", 1)
        uncached = model.generate(ids, **GREEDY, num_beams=beams, use_cache=False)
        assert torch.equal(model.generate(ids, **GREEDY, **how), uncached)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)], dim=1)
    alone = model.generate(ids, **GREEDY)[:, ids.shape[1] :]
    assert torch.equal(model.generate(padded, attention_mask=mask, **GREEDY)[:, padded.shape[1] :], alone)


def test_without_a_prefix_such_a_network_is_like_any_other() -> None:
    """`base_prefix=None` takes it from base and network alike, and another one is given to both."""
    model = prefixed()
    plain, standing_in = model.adapters["default"].networks
    model.set_base_prefix(None)
    expected = model.base(IDS).logits + plain(IDS).logits - 0.5 * standing_in(IDS).logits
    torch.testing.assert_close(model(IDS).logits, expected)
    model.set_base_prefix("Z: y\n")
    other = torch.cat([tokens(model, "Z: y\n").expand(2, -1), IDS], dim=1)
    ends = [network(other).logits[:, -7:] for network in (model.base, standing_in)]
    torch.testing.assert_close(model(IDS).logits, ends[0] + plain(IDS).logits - 0.5 * ends[1])


def test_padding_is_no_text_where_nobody_says_positions() -> None:
    """In a call by hand, whole and with the cache that it gives: prefix and text are one text for each model."""
    model = prefixed()
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        alone = model(IDS[:1, 3:]).logits
        torch.testing.assert_close(model(IDS, attention_mask=mask).logits[:1, 3:], alone, rtol=1e-5, atol=1e-5)
        begun = model(IDS[:, :5], attention_mask=mask[:, :5], use_cache=True)
        rest = model(IDS[:, 5:], attention_mask=mask, cache=begun.cache).logits
        torch.testing.assert_close(rest[:1], alone[:, 2:], rtol=1e-5, atol=1e-5)


def test_gradients_go_to_the_prompt_and_not_into_the_prefix() -> None:
    """In tokens of its own they do neither: its reader computes what it reads once."""
    model = prefixed()
    model.add_adapter(model.adapters["default"].copy(), "trained", is_trainable=True)
    model.set_adapter("trained")
    assert model(IDS).logits.requires_grad
    model = reading_text("llama", ("coarse bytes", "bytes"))
    model.add_adapter(model.adapters["default"].copy(), "trained", is_trainable=True)
    model.set_adapter("trained")
    with pytest.raises(UnsupportedModeError, match="takes no gradients"):
        model(ids_of(model, "The cat sat."))


def test_a_flag_for_each_network() -> None:
    """And none for a network that reads what the base predicts."""
    how: Any = {"base_model_name_or_path": "alice/base", "reads_prefix": [True]}
    networks, tokenizer = [tiny_model("llama", seed=2)], tokenizer_of("bytes")
    with pytest.raises(ConfigError, match="one of reads_prefix per network; got 1 for 2"):
        ValueAdapter.from_networks([*networks, *networks], tokenizer, **how)
    with pytest.raises(ConfigError, match="reads tokens; 'connection' is 'cascade'"):
        ValueAdapter.from_networks(networks, tokenizer, connection="cascade", **how)


@pytest.mark.parametrize("vocabulary", ["the base's", "another"])
def test_a_network_reads_the_prefix_once_for_all_calls(vocabulary: str) -> None:
    """Keys and values are kept, and each call computes the prompt's tokens only."""
    model = prefixed() if vocabulary == "the base's" else reading_text("llama", ("coarse bytes", "bytes"))
    ids = IDS if vocabulary == "the base's" else ids_of(model, "The cat sat.").expand(2, -1)
    adapter = model.adapters["default"]
    seen: list[tuple[int, ...]] = []
    hook = adapter.networks[1].register_forward_pre_hook(
        lambda module, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        for _ in range(3):
            model(ids, use_cache=False)
    hook.remove()
    once, *calls = seen
    assert once == (1, len(prefix_ids(PREFIX, adapter.tokenizer)))
    assert len(calls) == 3
    assert all(rows == 2 and length <= 12 for rows, length in calls)
    assert once[1] > 0


@torch.no_grad()
def test_a_network_reads_the_prefix_under_its_own_ids() -> None:
    """Where the base has the same tokens under other ids."""
    theirs, mine = permuted("bytes"), side("bytes")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(theirs.tokenizer_json), eos_token="</s>", pad_token="<pad>"
    )
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=theirs.width), tokenizer=tokenizer)
    network = tiny_model("gemma3", seed=2, width=mine.width)
    adapter = ValueAdapter.from_networks(
        [network], tokenizer_of("bytes"), base_model_name_or_path="a/b", base_prefix=PREFIX, reads_prefix=[True]
    )
    model.add_adapter(adapter, "default")
    (term,) = model.attached.terms()
    assert term.link is not None
    source = torch.from_numpy(term.link.alignment.source).long()
    ids = torch.tensor([tokenizer("The readers read 12345 foxes.")["input_ids"]])
    whole = torch.cat([torch.tensor([prefix_ids(PREFIX, tokenizer)]), ids], dim=1)
    value = network(source[whole]).logits[..., source]
    expected = (model.base(whole).logits + value)[:, -ids.shape[1] :]
    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-4)
    assert torch.equal(model.generate(ids, **GREEDY), model.generate(ids, **GREEDY, use_cache=False))


def test_a_chunk_that_ends_within_padding_leaves_the_prefix_where_it_is() -> None:
    """Base and network have the prefix then, and none of the row's text yet."""
    model = prefixed(starts=True)
    ids = torch.cat([torch.zeros(2, 5, dtype=torch.long), IDS], dim=1)
    ids[0, 4], ids[1, 0], ids[1, 1:5] = 1, 1, 9
    mask = (ids != 0).long()
    how = {**GREEDY, "max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    whole, chunked = (
        model.generate(ids, attention_mask=mask, **how, **more) for more in ({}, {"prefill_chunk_size": 2})
    )
    torch.testing.assert_close(chunked.logits[0], whole.logits[0], rtol=1e-4, atol=1e-4)
