"""Chats that base and network read each by its own template."""

from __future__ import annotations

import pytest
import torch
from test_other_vocabulary import GREEDY, wrapped
from tiny import byte_tokenizer, tiny_model
from vocabularies import KINDS, tokenizer_of

from valueadapter import ConfigError, UnsupportedModeError, ValueAdapterForCausalLM
from valueadapter.model.chat import value_ids
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary

CHAT = [{"role": "user", "content": "What is it?"}]
LONGER = [*CHAT, {"role": "assistant", "content": "It is there."}, {"role": "user", "content": "And then, the dog?"}]


def encoder_of(kind: str):  # type: ignore[no-untyped-def]  # a TextEncoder
    tokenizer = tokenizer_of(kind)
    return ModelVocabulary(tokenizer.backend_tokenizer.to_str(), len(tokenizer), tokenizer.eos_token).encoder


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("metaspace", "unigram", "characters")])
def test_a_chat_is_rendered_as_the_networks_tokenizer_renders_it(kind: str) -> None:
    """Control tokens of the template are control tokens, and the text between is split as ever."""
    tokenizer = tokenizer_of(kind)
    text = tokenizer.apply_chat_template(LONGER, tokenize=False, add_generation_prompt=True)
    expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert value_ids(tokenizer, LONGER, encoder_of(kind)) == expected


def test_what_a_user_spells_out_stays_text() -> None:
    """A literal <|turn|> in a message opens no turn."""
    tokenizer = tokenizer_of("bytes")
    ids = value_ids(tokenizer, [{"role": "user", "content": "a <|turn|> b <|end|>"}], encoder_of("bytes"))
    assert (ids.count(3), ids.count(4)) == (2, 1)  # one turn of the user, one header of the answer, one end
    assert "a <|turn|> b <|end|><|end|>" in tokenizer.decode(ids)


def by_hand(model: ValueAdapterForCausalLM, chat: list[dict[str, str]]) -> torch.Tensor:
    """The next token's logits: the base on its prompt + the network on its own."""
    inputs, adapter = model.chat_inputs(chat), model.adapters["default"]
    ids = value_ids(adapter.tokenizer, chat, model.attached.terms()[0].link.reading.encoder)
    value = adapter.networks[0](torch.tensor([ids])).logits[:, -1]
    return model.base(inputs["input_ids"]).logits[:, -1] + model.attached.terms()[0].link.alignment.project(value)


def test_the_network_reads_the_chat_by_its_own_template() -> None:
    """Not as the base's prompt without its control tokens, which is what it reads when it gets ids alone."""
    model = wrapped()
    inputs = model.chat_inputs(CHAT)
    with torch.no_grad():
        got = model(**inputs).logits[:, -1]
        torch.testing.assert_close(got, by_hand(model, CHAT), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(inputs["input_ids"]).logits[:, -1], got, atol=1e-2)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}, {"prefill_chunk_size": 3}, {"prompt_lookup_num_tokens": 3}])
def test_chats_generate_as_without_cache(mode: dict[str, int]) -> None:
    """The prompt is read once, and text goes on from it, in every mode."""
    model = wrapped()
    inputs = model.chat_inputs(CHAT)
    uncached = {"num_beams": mode.get("num_beams", 1), "use_cache": False}
    out = model.generate(**inputs, **GREEDY, **mode)
    assert torch.equal(out, model.generate(**inputs, **GREEDY, **uncached))
    assert not torch.equal(out, model.generate(inputs["input_ids"], **GREEDY))


def test_a_batch_of_chats_is_each_chat() -> None:
    """Padded on the left, in rows of different length."""
    model = wrapped("gemma3", "mistral")
    batch = model.generate(**model.chat_inputs([CHAT, LONGER]), **GREEDY)
    for row, chat in enumerate((CHAT, LONGER)):
        assert torch.equal(batch[row, -10:], model.generate(**model.chat_inputs(chat), **GREEDY)[0, -10:])


def test_a_second_turn_reads_the_whole_chat_anew_where_it_must() -> None:
    """The longer chat on the first one's cache gives what it gives alone."""
    model = wrapped()
    first = model.chat_inputs(CHAT)
    cache = model(**first, use_cache=True).cache
    second = model.chat_inputs(LONGER)
    assert torch.equal(second["input_ids"][:, : first["input_ids"].shape[1] - 4], first["input_ids"][:, :-4])
    shared = model.base_tokenizer("<|turn|>user\nWhat is it?<|end|><|turn|>assistant\n")["input_ids"]
    assert first["input_ids"][0].tolist() == shared
    rest = second["input_ids"][:, len(shared) :]
    assert second["input_ids"][0, : len(shared)].tolist() == shared
    out = model(rest, cache=cache, messages=LONGER)
    torch.testing.assert_close(out.logits[:, -1], by_hand(model, LONGER), rtol=1e-4, atol=1e-4)


def test_bad_input_is_refused() -> None:
    """A prompt that is not the chat, and a base without template."""
    model = wrapped()
    with pytest.raises(UnsupportedModeError, match="chat_inputs"):
        model(torch.tensor([[7, 8, 9, 10, 11, 12]]), messages=CHAT)
    with pytest.raises(ConfigError, match=r"2 conversations .* 1 rows"):
        model(model.chat_inputs(CHAT)["input_ids"], messages=[CHAT, CHAT])
    plain = byte_tokenizer()
    plain.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=plain).chat_inputs(CHAT)
