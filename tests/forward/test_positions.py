"""Rows that are several texts: networks of the base's vocabulary read them apart, and whatever cannot refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_other_vocabulary import GREEDY, TEXTS, ids_of, padded, positions, wrapped
from tiny import KINDS as ARCHITECTURES
from tiny import byte_tokenizer, tiny_model
from transformers import DataCollatorWithFlattening

from valueadapter import UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM

refused = pytest.mark.parametrize(
    "given",
    [
        [0, 1, 2, 3, 0, 1, 2, 3],
        [0, 1, 2, 3, 4, 5, 6, 0],
        [0, 0, 1, 2, 3, 4, 5, 6],
        [5, 6, 7, 8, 2, 3, 4, 5],
        [0, 1, 2, 3, 9, 10, 11, 12],
        [0, 1, 2, 3, 3, 4, 5, 6],
        [7, 6, 5, 4, 3, 2, 1, 0],
        [0] * 8,
    ],
)


def same_vocabulary(network: str = "llama", *, prefix: str | None = None) -> ValueAdapterForCausalLM:
    """A tiny base with a tiny network of its own vocabulary."""
    tokenizer = byte_tokenizer()
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([tiny_model(network, seed=2)], tokenizer, base_model_name_or_path="a/b")
    model.add_adapter(adapter, "default", base_prefix=prefix)
    return model.eval()


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@refused
def test_positions_that_are_no_count_are_refused_by_readers_of_text(given: list[int]) -> None:
    """They begin anew, leap, stand still or go back: a reader would take the row for one text."""
    model = wrapped()
    ids = ids_of(model, TEXTS[0])[:, :8]
    with torch.no_grad(), pytest.raises(UnsupportedModeError, match="several texts"):
        model(ids, position_ids=torch.tensor([given]))
    with torch.no_grad(), pytest.raises(UnsupportedModeError, match="several texts"):
        model(ids, attention_mask=torch.ones_like(ids), position_ids=torch.tensor([given]))
    with model.disable_adapter():
        model(ids, position_ids=torch.tensor([given]))  # the base by itself reads what it is given


def in_two_calls(
    model: ValueAdapterForCausalLM, ids: torch.Tensor, cut: int, first: torch.Tensor | None, rest: torch.Tensor
) -> None:
    cache = model(ids[:, :cut], position_ids=first, use_cache=True).cache
    model(ids[:, cut:], position_ids=rest, cache=cache)


@refused
def test_positions_that_are_no_count_are_refused_on_a_cache(given: list[int]) -> None:
    """Wherever the calls are cut, and also where the first call left the counting to the model."""
    model = wrapped()
    ids = ids_of(model, TEXTS[0])[:, :8]
    for cut in range(1, 8):
        for first in (torch.tensor([given[:cut]]), None):
            with torch.no_grad(), pytest.raises(UnsupportedModeError, match="several texts"):
                in_two_calls(model, ids, cut, first, torch.tensor([given[cut:]]))


@pytest.mark.parametrize(
    ("mask", "given"),
    [
        ([1, 1, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5]),
        ([1, 1, 1, 1, 1, 1], [7, 8, 9, 10, 11, 12]),
        ([0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 2, 3]),
        ([0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 2, 3]),
        ([0, 0, 1, 1, 1, 1], [0, 1, 2, 3, 4, 5]),
        ([1, 1, 1, 1, 0, 0], [0, 1, 2, 3, 3, 3]),
        ([1, 1, 1, 1, 0, 0], [0, 1, 2, 3, 0, 0]),
        ([1, 1, 0, 0, 1, 1], [0, 1, 1, 1, 2, 3]),
        ([1, 1, 0, 0, 1, 1], [0, 1, 2, 3, 4, 5]),
    ],
)
def test_positions_that_count_one_text_are_taken(mask: list[int], given: list[int]) -> None:
    """With any beginning, padding on either side or between, counted or not; the network's share is the text's."""
    model = wrapped()
    real = torch.tensor([mask]).bool()
    text = ids_of(model, TEXTS[0])[:, : sum(mask)]
    ids = torch.zeros(1, len(mask), dtype=torch.long).masked_scatter(real, text)
    with torch.no_grad():
        share = model(text, output_value_logits=True).value_logits
        for position_ids in (torch.tensor([given]), None):
            out = model(ids, attention_mask=real.long(), position_ids=position_ids, output_value_logits=True)
            close(out.value_logits[real], share[0])


def test_every_way_of_decoding_gives_positions_that_are_taken() -> None:
    """Left padding, beams, static caches, chunks and speculation: `generate` counts as it should."""
    model = wrapped()
    ids, mask = padded(model, TEXTS[:2])
    beams = model.generate(ids, attention_mask=mask, **GREEDY, num_beams=2, use_cache=False)
    assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY, num_beams=2), beams)
    greedy = model.generate(ids, attention_mask=mask, **GREEDY, use_cache=False)
    for way in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 3}):
        assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY, **way), greedy)
    one = ids_of(model, "the dog the dog the dog")
    alone = model.generate(one, **GREEDY, use_cache=False)
    base = tiny_model("llama", seed=1, width=len(model.base_tokenizer))
    for way in ({"prompt_lookup_num_tokens": 3}, {"assistant_model": base}):
        assert torch.equal(model.generate(one, **GREEDY, **way), alone)


def test_a_crop_takes_positions_back_too() -> None:
    """What comes in the place of tokens that were taken back has their positions."""
    model = wrapped()
    ids = ids_of(model, TEXTS[0])[:, :8]
    place = torch.arange(8)[None]
    with torch.no_grad():
        cache = model(ids, position_ids=place, use_cache=True).cache
        cache.crop(-3)
        again = model(ids[:, 5:], position_ids=place[:, 5:], cache=cache).logits
        close(again, model(ids).logits[:, 5:])
        cache.crop(-3)
        with pytest.raises(UnsupportedModeError, match="several texts"):
            model(ids[:, 5:], position_ids=place[:, :3], cache=cache)


def flattened(texts: list[torch.Tensor]) -> dict[str, Any]:
    """As transformers' collator packs them, with all that it says."""
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = collate([{"input_ids": text.tolist(), "labels": text.tolist()} for text in texts])
    return {key: value for key, value in batch.items() if key != "labels"}


@pytest.mark.parametrize("network", ARCHITECTURES)
def test_packed_rows_are_as_apart_for_networks_of_the_same_vocabulary(network: str) -> None:
    """By positions alone, and with what padding-free collators say besides."""
    model = same_vocabulary(network)
    texts = [torch.tensor([5, 6, 7, 8, 9]), torch.tensor([11, 12, 13]), torch.tensor([20, 21, 22, 23])]
    with torch.no_grad():
        expected = torch.cat([model(text[None]).logits[0] for text in texts])
        batch = flattened(texts)
        close(model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0], expected)
        close(model(**batch, use_cache=False).logits[0], expected)


def test_what_says_where_texts_begin_reaches_the_networks() -> None:
    """Attention that reads packed rows by these arguments alone must get them in networks, too."""
    model, seen = same_vocabulary(), []
    network = model.adapters["default"].networks[0]
    network.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    batch = flattened([torch.tensor([5, 6, 7]), torch.tensor([8, 9])])
    with torch.no_grad():
        model(**batch, use_cache=False)
    for key in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"):
        assert torch.equal(torch.as_tensor(seen[-1][key]), torch.as_tensor(batch[key])), key


@pytest.mark.parametrize("key", ["position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"])
@pytest.mark.parametrize("kind", ["another vocabulary", "prefix"])
def test_packed_rows_are_refused_where_a_row_is_one_text(key: str, kind: str) -> None:
    """Whichever way it is said: by readers of text, and behind a prefix, which stands before the first text only."""
    model = wrapped() if kind == "another vocabulary" else same_vocabulary(prefix="!!")
    texts = [torch.tensor([40, 41, 42]), torch.tensor([43, 44])]
    batch, alone = flattened(texts), flattened(texts[:1])
    ids, first = batch["input_ids"], alone["input_ids"]
    with torch.no_grad():
        with pytest.raises(UnsupportedModeError, match="texts"):
            model(ids, **{key: batch[key]}, use_cache=False)
        close(model(first, **{key: alone[key]}, use_cache=False).logits, model(first, use_cache=False).logits)


def test_a_mask_of_blocks_is_refused() -> None:
    """Block-diagonal masks of four axes, as packing collators make them."""
    model = wrapped()
    ids = ids_of(model, TEXTS[0])[:, :6]
    blocks = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3)).tril().bool()[None, None]
    with torch.no_grad(), pytest.raises(UnsupportedModeError, match="4 axes"):
        model(ids, attention_mask=blocks, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]]))


def test_positions_of_another_shape_are_refused() -> None:
    """Not one for each token; and planes that differ, as for images."""
    model = wrapped()
    ids = ids_of(model, TEXTS[0])[:, :6]
    reader = model.attached.terms()[0].reader(model.attached.terms()[0].parts[0])
    network, counted = model.adapters["default"].networks[0], torch.arange(6)
    with torch.no_grad():
        reader.call(network, ids, None, [5], position_ids=counted.expand(3, 1, 6))
        with pytest.raises(UnsupportedModeError, match=r"\(1, 6\)"):
            model.attached.terms()[0].reader("default.0.0").call(
                network, ids, None, [5], position_ids=counted[None, :4]
            )
        planes = torch.stack([counted, counted, counted // 2])[:, None]
        with pytest.raises(UnsupportedModeError, match="around images"):
            model.attached.terms()[0].reader("default.0.0").call(network, ids, None, [5], position_ids=planes)


def test_padded_batches_keep_their_positions() -> None:
    """Rows of different length in one call, each counted by itself."""
    model = wrapped()
    ids, mask = padded(model, TEXTS[:3])
    with torch.no_grad():
        out = model(ids, attention_mask=mask, position_ids=positions(mask), output_value_logits=True)
        close(out.value_logits, model(ids, attention_mask=mask, output_value_logits=True).value_logits)
