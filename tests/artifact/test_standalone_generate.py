"""The exported `generate`, without this library, gives the tokens that the wrapper gives (fp32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import ADAPTERS, GREEDY, IDS, by_export, exported, padded, tiny_adapter, wrapper
from test_alignment import permuted, side
from test_prefix_reading import starting_tokenizer
from tiny import byte_tokenizer, tiny_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedTokenizerFast, TextStreamer
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter
from valueadapter.compat import cache_in
from valueadapter.vocabulary.alignment import VocabularyAlignment
from valueadapter.vocabulary.bridge import alignment_name

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True},
    "several answers": {"do_sample": True, "num_return_sequences": 3, "top_k": 20, "temperature": 0.8},
    "beams": {"num_beams": 3},
    "without a cache": {"use_cache": False},
    "processors": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
}


LOGITS = {"return_dict_in_generate": True, "output_logits": True}


def same(found: Any, expected: Any, mode: str = "") -> None:
    """The same tokens, and not only because the likeliest one is far ahead."""
    assert torch.equal(found.sequences, expected.sequences), mode
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4, msg=lambda text: f"{mode}: {text}")


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: exported(tiny_adapter(**made), tmp_path_factory.mktemp("e")) for name, made in ADAPTERS.items()}


@pytest.mark.parametrize("base", ["llama", "gpt2", "gemma3", "mistral", "qwen3"])
@pytest.mark.parametrize("which", ADAPTERS)
def test_it_gives_the_wrappers_tokens(base: str, which: str, exports: dict[str, Path]) -> None:
    """In every mode of decoding, in a left-padded batch, and speculating; and not the base's own."""
    tokenizer, plain = byte_tokenizer(), tiny_model(base, seed=1)
    model = wrapper(tiny_model(base, seed=1), tokenizer, tiny_adapter(**ADAPTERS[which]))
    assert not torch.equal(plain.generate(IDS, **GREEDY), model.generate(IDS, **GREEDY))
    inputs = {name: {"input_ids": IDS} for name in MODES} | {"left padding": padded(), "lookup": {"input_ids": IDS[:1]}}
    modes = MODES | {"left padding": {}, "lookup": {"prompt_lookup_num_tokens": 3}}
    for mode, how in modes.items():
        torch.manual_seed(0)
        expected = model.generate(**inputs[mode], **{**GREEDY, **how, **LOGITS})
        torch.manual_seed(0)
        same(by_export(plain, exports[which], tokenizer, inputs[mode], **how, **LOGITS), expected, mode)


@pytest.mark.parametrize("base", ["llama", "gemma3"])
@pytest.mark.parametrize("begins", [True, False])
def test_a_token_that_begins_texts_stands_once(base: str, begins: bool, tmp_path: Path) -> None:
    """The base reads it before the prefix and not again before the prompt, the plain network before the prompt."""
    tokenizer = starting_tokenizer()
    adapter = tiny_adapter(**ADAPTERS["a prefix"], tokenizer=tokenizer)
    folder, inputs = exported(adapter, tmp_path), padded()
    if begins:
        inputs["input_ids"][0, 0] = inputs["input_ids"][1, 3] = 1
    expected = wrapper(tiny_model(base, seed=1), tokenizer, adapter).generate(**inputs, **GREEDY, **LOGITS)
    same(by_export(tiny_model(base, seed=1), folder, tokenizer, inputs, **LOGITS), expected)
    mixed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    mixed["input_ids"][0, 0] = 5 if begins else 1
    with pytest.raises(ValueError, match="tokenize them alike"):
        by_export(tiny_model(base, seed=1), folder, tokenizer, mixed)


@pytest.mark.parametrize(("base", "network"), [(104, 97), (97, 104), (97, 100)])
def test_padded_widths_may_differ(base: int, network: int, tmp_path: Path) -> None:
    """Logits beyond the common width belong to no token, and ids that only the base has are read as none."""
    tokenizer = byte_tokenizer()
    adapter = tiny_adapter(width=network)
    folder = exported(adapter, tmp_path)
    ids = IDS.clone()
    ids[0, 2] = base - 1
    expected = wrapper(tiny_model("llama", seed=1, width=base), tokenizer, adapter).generate(ids, **GREEDY, **LOGITS)
    plain = tiny_model("llama", seed=1, width=base)
    same(by_export(plain, folder, tokenizer, {"input_ids": ids}, **LOGITS), expected)


@pytest.mark.parametrize("base", ["llama", "gemma3"])
def test_a_second_turn_goes_on_with_its_cache(base: str, exports: dict[str, Path]) -> None:
    """The cache that a call returns serves the next one, prefix included; one of the base alone is refused."""
    tokenizer, plain = byte_tokenizer(), tiny_model(base, seed=1)
    folder, how = exports["a prefix"], LOGITS
    first = by_export(plain, folder, tokenizer, {"input_ids": IDS}, **how)
    longer = {"input_ids": torch.cat([first.sequences, IDS], dim=1)}
    again = by_export(plain, folder, tokenizer, longer, **how)
    second = by_export(plain, folder, tokenizer, longer, cache=cache_in(first), **how)
    same(second, again)
    with pytest.raises(ValueError, match="not made by base \\+ this adapter"):
        by_export(plain, folder, tokenizer, longer, cache=DynamicCache(config=plain.config))


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_recommended_is_taken_and_the_base_stays_as_it_is(tmp_path: Path, version: int) -> None:
    """What was found for the base's name before that for its vocabulary, as the wrapper takes it; 0 is the base."""
    tokenizer, adapter = byte_tokenizer(), tiny_adapter()
    adapter.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "config.json"
    config = json.loads(path.read_text())
    measured = {"base_bits_per_byte": 2.0, "adapted_bits_per_byte": 1.0, "data": "d", "num_examples": 3}
    measured["base_fingerprint"] = adapter.config.vocabulary.byte_fingerprint
    if version == 1:
        config = {key: value for key, value in config.items() if key not in ("base_weight", "end_weight")}
        found = {"scales": [{"base": "alice/1", "scale": 2} | measured, {"base": "alice/2", "scale": 4} | measured]}
    else:
        each = [{"base": 0.5, "networks": [2.0], "end": 1.0}, {"base": 1.5, "networks": [4.0]}]
        found = {"weights": [{"base": f"alice/{n}", "weights": w} | measured for n, w in enumerate(each, start=1)]}
    path.write_text(json.dumps({**config, **found, "format_version": version}))
    adapter = ValueAdapter.from_pretrained(tmp_path / "adapter")
    folder = exported(adapter, tmp_path / "new")
    outputs = []
    for name in ("alice/2", "alice/other"):
        plain, inner = tiny_model("llama", seed=1), tiny_model("llama", seed=1)
        plain.name_or_path = inner.name_or_path = name
        before = plain(IDS).logits
        outputs.append(by_export(plain, folder, tokenizer, {"input_ids": IDS}))
        assert torch.equal(outputs[-1], wrapper(inner, tokenizer, adapter).generate(IDS, **GREEDY))
        assert torch.equal(plain(IDS).logits, before)
        alone = by_export(plain, folder, tokenizer, {"input_ids": IDS}, scale=0)
        assert torch.equal(alone, plain.generate(IDS, **GREEDY))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("prefix", [None, "Z: y\n", [{"role": "user", "content": "HI"}]])
def test_another_prefix_may_be_given(prefix: Any, exports: dict[str, Path]) -> None:
    """None, text, or messages by the base's chat template, as to the wrapper; and the adapter's own again."""
    tokenizer, plain = byte_tokenizer(), tiny_model("llama", seed=1)
    model = wrapper(tiny_model("llama", seed=1), tokenizer, tiny_adapter(**ADAPTERS["a prefix"]))
    own = model.generate(IDS, **GREEDY, **LOGITS)
    model.set_base_prefix(prefix)
    expected = model.generate(IDS, **GREEDY, **LOGITS)
    found = by_export(plain, exports["a prefix"], tokenizer, {"input_ids": IDS}, base_prefix=prefix, **LOGITS)
    same(found, expected)
    assert not torch.allclose(found.logits[0], own.logits[0], atol=1e-2)
    same(by_export(plain, exports["a prefix"], tokenizer, {"input_ids": IDS}, **LOGITS), own)


def test_networks_are_held_once_whatever_the_prefix(exports: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another prefix is other tokens for the base, and no other networks."""
    tokenizer, base = byte_tokenizer(), tiny_model("llama", seed=1)
    load, loaded = AutoModelForCausalLM.from_pretrained, []

    def counted(*given: Any, **options: Any) -> Any:
        loaded.append(given)
        return load(*given, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    for prefix in ("Z: y\n", None, "Q: r\n", "Z: y\n"):
        by_export(base, exports["a prefix"], tokenizer, {"input_ids": IDS}, base_prefix=prefix)
    assert len(loaded) == len(ADAPTERS["a prefix"]["networks"])


def test_hooks_of_others_run_once_and_their_forward_stays(exports: dict[str, Path]) -> None:
    """Device maps put a `forward` of their own on the model; the sum must not be lost to it."""
    tokenizer, plain = byte_tokenizer(), tiny_model("llama", seed=1)
    expected = by_export(plain, exports["one network"], tokenizer, {"input_ids": IDS})
    calls, inner = [], plain.forward
    plain.forward = lambda *args, **kwargs: (calls.append("forward"), inner(*args, **kwargs))[1]
    plain.register_forward_hook(lambda *args: calls.append("hook"))
    assert torch.equal(by_export(plain, exports["one network"], tokenizer, {"input_ids": IDS}), expected)
    assert calls == ["forward", "hook"] * 10
    assert [name for name, _ in plain.named_children()] == ["model", "lm_head"]


def test_a_streamer_and_stop_strings_work(exports: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """They are transformers' business, and stay so."""
    tokenizer, plain = byte_tokenizer(), tiny_model("llama", seed=1)
    ids = by_export(plain, exports["a prefix"], tokenizer, {"input_ids": IDS[:1]})
    text = tokenizer.decode(ids[0, 7:])
    how = {"streamer": TextStreamer(tokenizer, skip_prompt=True), "stop_strings": text[3]}
    found = by_export(plain, exports["a prefix"], tokenizer, {"input_ids": IDS[:1]}, **how)
    assert found.tolist() == ids[:, : 7 + text.index(text[3]) + 1].tolist()
    assert capsys.readouterr().out.strip() == text[: text.index(text[3]) + 1].strip()


def _permuted() -> tuple[PreTrainedTokenizerFast, ValueAdapter]:
    """A base's tokenizer, and an adapter of the same tokens under other ids, which brings the map."""
    theirs, mine = permuted("bytes"), side("bytes")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(theirs.tokenizer_json), eos_token="</s>", pad_token="<pad>"
    )
    adapter = tiny_adapter(**ADAPTERS["a prefix"], tokenizer=tokenizer_of("bytes"), width=mine.width)
    return tokenizer, ValueAdapter(
        adapter.config,
        adapter.networks,
        adapter.tokenizer,
        {alignment_name(theirs): VocabularyAlignment.build(mine, theirs)},
    )


def test_the_same_tokens_under_other_ids_need_the_artifacts_map(tmp_path: Path) -> None:
    """With it the wrapper's tokens, prefix included; without it, or with another one, an error."""
    tokenizer, adapter = _permuted()
    width = len(tokenizer)
    ids = tokenizer(["The readers read 12345 foxes."], return_tensors="pt")["input_ids"]
    model = wrapper(tiny_model("llama", seed=1, width=width), tokenizer, adapter)
    plain, folder = tiny_model("llama", seed=1, width=width), exported(adapter, tmp_path)
    found = by_export(plain, folder, tokenizer, {"input_ids": ids}, **LOGITS)
    same(found, model.generate(ids, **GREEDY, **LOGITS))
    bare = exported(ValueAdapter(adapter.config, adapter.networks, adapter.tokenizer), tmp_path / "bare")
    with pytest.raises(ValueError, match=r"another vocabulary than the adapter: .*pip install valueadapter"):
        by_export(plain, bare, tokenizer, {"input_ids": ids})
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(permuted("bytes", shift=9).tokenizer_json))
    with pytest.raises(ValueError, match="another vocabulary"):
        by_export(tiny_model("llama", seed=1, width=width), folder, other, {"input_ids": ids})


def _changed(tokenizer: Any, **changes: Any) -> PreTrainedTokenizerFast:
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.update(changes)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), bos_token="<s>")


@pytest.mark.parametrize("base", ["other tokens", "exchanged", "split otherwise", "more tokens"])
def test_logits_of_another_vocabulary_are_never_added(base: str, tmp_path: Path) -> None:
    """Of another kind, with two tokens exchanged, with the same tokens and another way to split text."""
    own = tokenizer_of("bytes")
    folder = exported(tiny_adapter(tokenizer=own, width=len(own)), tmp_path)
    state = json.loads(own.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    match = "ids mean something else"
    if base == "other tokens":
        theirs: Any = tokenizer_of("sentencepiece")
    elif base == "exchanged":
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
        theirs = _changed(own, model=state["model"])
    elif base == "split otherwise":
        theirs = _changed(own, normalizer={"type": "Lowercase"})
        match = "split in another way"
    else:
        vocab["zzzz"] = len(own)
        theirs = _changed(own, model=state["model"])
    plain = tiny_model("llama", seed=1, width=len(theirs))
    with pytest.raises(ValueError, match=match):
        by_export(plain, folder, theirs, {"input_ids": IDS})


def test_tokens_that_a_base_added_are_its_own(tmp_path: Path) -> None:
    """A continued base may have control tokens behind the common ones; the value logits have nothing for them."""
    own, theirs = byte_tokenizer(), byte_tokenizer()
    theirs.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    adapter = tiny_adapter()
    expected = wrapper(tiny_model("llama", seed=1, width=98), theirs, adapter).generate(IDS, **GREEDY, **LOGITS)
    plain = tiny_model("llama", seed=1, width=98)
    assert len(theirs) == len(own) + 1
    same(by_export(plain, exported(adapter, tmp_path), theirs, {"input_ids": IDS}, **LOGITS), expected)


def test_what_cannot_be_says_so(exports: dict[str, Path], tmp_path: Path) -> None:
    """Static caches, chunks behind a prefix, embeddings, too long a text, no adapter, a damaged one."""
    tokenizer, plain, ids = byte_tokenizer(), tiny_model("llama", seed=1), {"input_ids": IDS}
    one, prefix = exports["one network"], exports["a prefix"]
    with pytest.raises(ValueError, match="static caches are not supported"):
        by_export(plain, one, tokenizer, ids, cache_implementation="static")
    with pytest.raises(ValueError, match="leave prefill_chunk_size out"):
        by_export(plain, prefix, tokenizer, ids, prefill_chunk_size=3)
    with pytest.raises(ValueError, match="value networks read token ids"):
        by_export(plain, one, tokenizer, {"inputs_embeds": plain.get_input_embeddings()(IDS)})
    with pytest.raises(ValueError, match="prefix has 6, and Llama"):
        by_export(plain, prefix, tokenizer, ids, max_new_tokens=245)
    with pytest.raises(ValueError, match="scale must be a finite number"):
        by_export(plain, one, tokenizer, ids, scale=float("nan"))
    where = {"custom_generate": str(one), "trust_remote_code": True}
    with pytest.raises(ValueError, match="pass the directory or Hub ID: adapter="):
        plain.generate(**ids, **where, tokenizer=tokenizer, **GREEDY)
    with pytest.raises(ValueError, match="was not found, so the base's vocabulary cannot be compared"):
        tiny_model("llama", seed=1).generate(**ids, **where, adapter=str(one), **GREEDY)
    with pytest.raises(ValueError, match="no value adapter"):
        plain.generate(**ids, **where, adapter=str(tmp_path), tokenizer=tokenizer, **GREEDY)
    broken = exported(tiny_adapter(), tmp_path)
    weights = broken / "value_network" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match="has changed since it was saved"):
        by_export(plain, broken, tokenizer, ids)
