"""Networks that read the base's text in tokens of their own: every mode gives what reading all of it anew gives."""

from __future__ import annotations

import pytest
import torch
from tiny import KINDS as ARCHITECTURES
from tiny import tiny_model
from vocabularies import KINDS, TEXTS, tokenizer_of

from valueadapter import UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.compat import cache_in
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary

GREEDY = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
MODES = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 3},
    "beams on a static cache": {"num_beams": 2, "cache_implementation": "static"},
}
architectures = pytest.mark.parametrize(("base", "network"), [(b, n) for b in ARCHITECTURES for n in ARCHITECTURES])
vocabularies = pytest.mark.parametrize(("base", "value"), [(b, v) for b in KINDS for v in KINDS if b != v])


def wrapped(
    base: str = "llama", network: str = "llama", vocabularies: tuple[str, str] = ("coarse bytes", "bytes")
) -> ValueAdapterForCausalLM:
    """A tiny base with a tiny network of another vocabulary."""
    theirs, mine = (tokenizer_of(kind) for kind in vocabularies)
    model = ValueAdapterForCausalLM(tiny_model(base, seed=1, width=len(theirs)), tokenizer=theirs)
    networks = [tiny_model(network, seed=2, width=len(mine))]
    adapter = ValueAdapter.from_networks(networks, mine, base_model_name_or_path="alice/base")
    model.add_adapter(adapter, "default")
    return model.eval()


def ids_of(model: ValueAdapterForCausalLM, text: str) -> torch.Tensor:
    """Ids of plain text: control tokens that it spells out stay text."""
    encoder = ModelVocabulary(model.base_tokenizer.backend_tokenizer.to_str(), len(model.base_tokenizer)).encoder
    return torch.tensor([[*encoder.prefix, *encoder.encode(text, start=True)]])


def read_anew(model: ValueAdapterForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """base logits + projected value logits, the whole text so far encoded and read anew at every position."""
    adapter, link = model.adapters["default"], model.attached.terms()[0].link
    logits = model.base(ids).logits.clone()
    for position in range(ids.shape[1]):
        data = b"".join(link.reading.data[token] for token in ids[0, : position + 1].tolist())
        text = data.decode("utf-8", "ignore")  # in these texts only the last character can be incomplete
        if link.reading.opens_with_space:
            text = text.removeprefix(" ")
        value = [*link.reading.encoder.prefix, *link.reading.encoder.encode(text, start=True)]
        if value:
            row = adapter.networks[0](torch.tensor([value])).logits[:, -1]
            logits[:, position] += link.alignment.project(row)
    return logits


@vocabularies
@pytest.mark.parametrize("text", TEXTS)
def test_whole_text_at_once_equals_reading_anew_at_every_position(base: str, value: str, text: str) -> None:
    """Scoring all positions in one pass, with tokens taken back in between, is exact."""
    model = wrapped(vocabularies=(base, value))
    ids = ids_of(model, text)
    torch.testing.assert_close(model(ids).logits, read_anew(model, ids), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        model(ids, use_cache=False).logits, model(ids, use_cache=True).logits, rtol=1e-4, atol=1e-4
    )


@architectures
def test_stepping_equals_the_whole_text(base: str, network: str) -> None:
    """One token at a time on a cache gives the logits of the full-sequence forward, in batches with padding."""
    model = wrapped(base, network)
    ids, mask = padded(model, TEXTS[:3])
    whole = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
    cache = None
    for step in range(ids.shape[1]):
        out = model(
            ids[:, step : step + 1],
            attention_mask=mask[:, : step + 1],
            position_ids=positions(mask)[:, step : step + 1],
            cache=cache,
            use_cache=True,
        )
        cache = out.cache
        real = mask[:, step].bool()
        torch.testing.assert_close(out.logits[real, 0], whole[real, step], rtol=1e-4, atol=1e-4)


@architectures
def test_chunks_equal_the_whole_text(base: str, network: str) -> None:
    """Several tokens at a time: what is taken back within a chunk leaves nothing behind for the next."""
    model = wrapped(base, network)
    ids, mask = padded(model, TEXTS[1:3])
    whole = model(ids, attention_mask=mask, position_ids=positions(mask)).logits
    cache = None
    for begin in range(0, ids.shape[1], 5):
        at = slice(begin, min(begin + 5, ids.shape[1]))
        out = model(
            ids[:, at],
            attention_mask=mask[:, : at.stop],
            position_ids=positions(mask)[:, at],
            cache=cache,
            use_cache=True,
        )
        cache = out.cache
        real = mask[:, at].bool()
        torch.testing.assert_close(out.logits[real], whole[:, at][real], rtol=1e-4, atol=1e-4)


def padded(model: ValueAdapterForCausalLM, texts: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [ids_of(model, text)[0] for text in texts]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    return ids, mask


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


@architectures
@pytest.mark.parametrize("mode", MODES)
def test_cached_equals_uncached(base: str, network: str, mode: str) -> None:
    """A cache changes speed, never tokens."""
    model = wrapped(base, network)
    ids = ids_of(model, TEXTS[1])
    uncached = {"num_beams": MODES[mode].get("num_beams", 1), "use_cache": False}
    assert torch.equal(model.generate(ids, **GREEDY, **MODES[mode]), model.generate(ids, **GREEDY, **uncached))


@vocabularies
def test_generation_equals_uncached_for_every_vocabulary(base: str, value: str) -> None:
    """Greedy and beams, whatever the two vocabularies are."""
    model = wrapped(vocabularies=(base, value))
    ids = ids_of(model, TEXTS[0])
    for mode in ({}, {"num_beams": 3}):
        assert torch.equal(
            model.generate(ids, **GREEDY, **mode), model.generate(ids, **GREEDY, **mode, use_cache=False)
        )


@architectures
def test_left_padded_batch_equals_single_rows(base: str, network: str) -> None:
    """Rows of a batch take tokens back at different times, and get what they get alone."""
    model = wrapped(base, network)
    ids, mask = padded(model, TEXTS[:3])
    batch = model.generate(ids, attention_mask=mask, **GREEDY)
    for row, text in enumerate(TEXTS[:3]):
        alone = model.generate(ids_of(model, text), **GREEDY)
        assert torch.equal(batch[row, -10:], alone[0, -10:])


@architectures
def test_sampling_with_a_seed_equals_uncached(base: str, network: str) -> None:
    """The same seed draws the same tokens with and without cache."""
    model = wrapped(base, network)
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(model.generate(ids_of(model, TEXTS[0]), **{**GREEDY, "do_sample": True}, use_cache=use_cache))
    assert torch.equal(*outputs)


@architectures
def test_speculation_equals_plain_decoding(base: str, network: str) -> None:
    """Prompt lookup, and assisted generation on either side: rejected tokens are taken back from the network too."""
    model = wrapped(base, network)
    other = tiny_model("llama", seed=5, width=len(model.base_tokenizer))
    ids = ids_of(model, "the dog the dog the dog the dog")
    plain = model.generate(ids, **GREEDY, use_cache=False)
    assert torch.equal(model.generate(ids, **GREEDY, prompt_lookup_num_tokens=4), plain)
    assert torch.equal(model.generate(ids, **GREEDY, assistant_model=other), plain)
    theirs = other.generate(ids, **GREEDY, use_cache=False)
    assert torch.equal(other.generate(ids, **GREEDY, assistant_model=model), theirs)


@architectures
def test_second_turn_on_the_first_turns_cache(base: str, network: str) -> None:
    """A conversation that keeps its cache goes on as one that reads everything again."""
    model = wrapped(base, network)
    first = model.generate(ids_of(model, TEXTS[0]), **GREEDY, return_dict_in_generate=True)
    longer = torch.cat([first.sequences, ids_of(model, TEXTS[1])], dim=1)
    again = model.generate(longer, **GREEDY, use_cache=False)
    assert torch.equal(model.generate(longer, **GREEDY, cache=cache_in(first)), again)


@architectures
def test_logits_to_keep_selects_positions(base: str, network: str) -> None:
    """The last N logits, or those at given positions in any order, are those of the whole forward pass."""
    model = wrapped(base, network)
    ids = ids_of(model, TEXTS[1])
    whole = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, whole[:, -2:], rtol=1e-4, atol=1e-4)
    some = torch.tensor([4, 1])
    torch.testing.assert_close(model(ids, logits_to_keep=some).logits, whole[:, some], rtol=1e-4, atol=1e-4)


def test_prepared_masks_are_refused() -> None:
    """A mask of four axes does not say which tokens are padding."""
    model = wrapped()
    ids = ids_of(model, TEXTS[0])
    with pytest.raises(UnsupportedModeError, match="4 axes"):
        model(ids, attention_mask=torch.zeros(1, 1, ids.shape[1], ids.shape[1]))
