"""An answer of which a score shows the beginning is the one that decoding gives, and only the rest is decoded."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from kinds import model_of as model_of_kind
from peft import PromptTuningConfig, get_peft_model
from tiny import byte_tokenizer, tiny_model
from transformers import LlamaForCausalLM, LogitsProcessorList, SuppressTokensLogitsProcessor
from vocabularies import tokenizer_of

from valueadapter import ValueAdapter, ValueAdapterForCausalLM
from valueadapter.evaluation import answers, metrics
from valueadapter.evaluation.answers import begun
from valueadapter.evaluation.metrics import evaluate

BYTES = byte_tokenizer()
PROMPTS = ["ABC", "KLMNO"]
LENGTH = 8
Unaided = Callable[..., list[tuple[Any, ...]]]


def model_of(kind: str) -> tuple[Any, Any]:
    """A model and its tokenizer: a base alone, with an adapter of its vocabulary, of another, behind a prefix."""
    if kind == "base":
        return tiny_model("gemma2", seed=1), BYTES
    tokenizer = tokenizer_of("bytes")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(tokenizer)), tokenizer=tokenizer).eval()
    own = tokenizer_of("sentencepiece") if kind == "another vocabulary" else tokenizer
    network = tiny_model("qwen3", seed=5, width=len(own))
    prefix = "Z: Y " if kind == "prefix" else None
    adapter = ValueAdapter.from_networks([network], own, base_model_name_or_path="x/y", base_prefix=prefix)
    model.add_adapter(adapter, "a", scale=0.5)
    return model, tokenizer


def outcome(model: Any, tokenizer: Any, records: Sequence[dict[str, Any]], **how: Any) -> list[tuple[Any, ...]]:
    score = evaluate(model, tokenizer, records, **{"max_new_tokens": LENGTH, **how})
    return list(zip(score.answers, score.pairs("ends"), score.pairs("exact_match"), strict=True))


@pytest.fixture
def unaided(monkeypatch: pytest.MonkeyPatch) -> Unaided:
    """`outcome` where every answer is decoded from its first token."""

    def measured(*args: Any, **how: Any) -> list[tuple[Any, ...]]:
        with monkeypatch.context() as patch:
            patch.setattr(metrics, "says_the_likeliest", lambda model: False)
            return outcome(*args, **how)

    return measured


def as_chat(prompt: str, completion: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": "X"}, {"role": "assistant", "content": completion}]
    return {"messages": [*turns, {"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]}


def agreeing(model: Any, tokenizer: Any, *, chat: bool) -> list[dict[str, Any]]:
    """Records whose responses agree with what a model says in the first, some or all characters, and end or go on."""
    records = []
    for prompt in PROMPTS:
        asked = as_chat(prompt, "x") if chat else {"prompt": prompt, "completion": "x"}
        (said, *_), *_ = outcome(model, tokenizer, [asked])
        for count in sorted({1, len(said) // 2, len(said)} - {0}):
            for more in ("", "Q"):
                text = said[:count] + more
                records.append(as_chat(prompt, text) if chat else {"prompt": prompt, "completion": text})
    return records


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("kind", ["base", "adapter", "another vocabulary", "prefix"])
def test_answers_are_those_of_decoding(kind: str, chat: bool, unaided: Unaided) -> None:
    """Whatever the right answer has in common with them, wherever they end, at a token, a text or the limit."""
    model, tokenizer = model_of(kind)
    records = agreeing(model, tokenizer, chat=chat)
    assert len(records) > len(PROMPTS)
    said = outcome(model, tokenizer, records[-1:])[0][0]
    assert answers.says_the_likeliest(model)
    for how in ({"batch_size": 1}, {"max_new_tokens": 3}, {"stop_strings": [said[2:4]] if len(said) > 3 else ["Q"]}):
        assert outcome(model, tokenizer, records, **how) == unaided(model, tokenizer, records, **how)
    model.generation_config.eos_token_id = tokenizer(said[-1:], add_special_tokens=False)["input_ids"][-1]
    assert outcome(model, tokenizer, records) == unaided(model, tokenizer, records)


def test_what_the_scores_show_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right answer that the model gives to its end costs no decoding; of another only what follows the difference."""
    model = tiny_model("llama", seed=1)
    said = outcome(model, BYTES, [{"prompt": prompt, "completion": "x"} for prompt in PROMPTS])
    whole = [answer for answer, *_ in said]
    lengths = []
    generate = answers._generate

    def counting(model: Any, tokenizer: Any, texts: Sequence[list[int]], length: int, *how: Any) -> list[list[int]]:
        lengths.append((len(texts), length))
        return generate(model, tokenizer, texts, length, *how)

    monkeypatch.setattr(answers, "_generate", counting)
    records = [{"prompt": prompt, "completion": text} for prompt, text in zip(PROMPTS, whole, strict=True)]
    assert outcome(model, BYTES, records) == [(text, (0.0, 1), (1.0, 1)) for text in whole]
    assert lengths == []
    other = [{**records[0], "completion": whole[0][:5] + "Q"}, *records[1:]]
    assert [answer for answer, *_ in outcome(model, BYTES, other)] == whole
    assert lengths == [(1, LENGTH - 6)]


@pytest.mark.parametrize(
    "settings", [{"repetition_penalty": 1.8}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": [5, 9, 30]}]
)
def test_settings_that_change_what_is_likely_hold(settings: dict[str, Any], unaided: Unaided) -> None:
    """A model's own generation settings decide what it says, so that its scores alone do not show that."""
    model = tiny_model("llama", seed=1)
    records = agreeing(model, BYTES, chat=False)
    plain = outcome(model, BYTES, records)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    assert outcome(model, BYTES, records) == unaided(model, BYTES, records)
    assert outcome(model, BYTES, records) != plain


def test_a_model_that_decodes_in_its_own_way_is_asked(unaided: Unaided) -> None:
    """Whether its class or it alone does; as a base, too. Here each token is said twice."""

    def twice(self: Any, **how: Any) -> torch.Tensor:
        ids = LlamaForCausalLM.generate(self, **how)
        begin = how["input_ids"].shape[1]
        return torch.cat([ids[:, :begin], ids[:, begin:].repeat_interleave(2, dim=1)], dim=1)

    plain = tiny_model("llama", seed=1)
    records = agreeing(plain, BYTES, chat=False)
    plain.generate = types.MethodType(twice, plain)
    assert outcome(plain, BYTES, records) == unaided(plain, BYTES, records)
    other = tiny_model("llama", seed=1)
    other.__class__ = type("Own", (LlamaForCausalLM,), {"generate": twice})
    assert outcome(other, BYTES, records) == unaided(other, BYTES, records)
    wrapper = ValueAdapterForCausalLM(other, tokenizer=BYTES)
    assert outcome(wrapper, BYTES, records) == unaided(wrapper, BYTES, records)
    assert not answers.says_the_likeliest(wrapper)


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}])
def test_where_the_length_of_a_text_counts_its_scores_show_nothing(rope: dict[str, Any], unaided: Unaided) -> None:
    """The longer text of a score turns its first tokens otherwise than decoding does, which has not got there yet."""
    config = tiny_model("llama", seed=1).config
    config.max_position_embeddings, config.rope_parameters = 8, rope
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.6)
    records = agreeing(model, BYTES, chat=False)
    assert outcome(model, BYTES, records) == unaided(model, BYTES, records)
    assert not answers.says_the_likeliest(model)


class Suppressing(LlamaForCausalLM):
    """Says no token from 60 on."""

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_logits_processor(*args, **kwargs)
        return LogitsProcessorList([*found, SuppressTokensLogitsProcessor(list(range(60, 97)))])


class Around:
    """Has all that a model has, and is none: so does what `torch.compile` gives."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


def special(kind: str) -> Any:
    """A model that decodes otherwise than it reads, or of which that cannot be told."""
    model: Any = model_of_kind("xlnet", seed=1) if kind == "xlnet" else tiny_model("llama", seed=1)
    if kind == "suppressing":
        model.__class__ = Suppressing
    elif kind == "wrapper":
        model = ValueAdapterForCausalLM(model, tokenizer=BYTES)
        model.generate = types.MethodType(lambda self, **how: self.base.generate(**how), model)
    elif kind == "network":  # that reads what follows, too, where it is given
        model = ValueAdapterForCausalLM(model, tokenizer=BYTES).eval()
        network = model_of_kind("xlnet", seed=1)
        model.add_adapter(ValueAdapter.from_networks([network], BYTES, base_model_name_or_path="x/y"), "a", scale=1)
    elif kind == "learned prompt":
        model = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    elif kind == "around":
        model = Around(model)
    elif kind == "quantized cache":
        model.generation_config.cache_implementation = "quantized"
    return model


@pytest.mark.parametrize(
    "kind", ["suppressing", "wrapper", "network", "learned prompt", "around", "quantized cache", "xlnet"]
)
def test_other_decoding_is_not_guessed(kind: str, unaided: Unaided) -> None:
    """Every token is then decoded, as if nothing were known."""
    model = special(kind)
    assert not answers.says_the_likeliest(model)
    if kind in ("suppressing", "wrapper", "network", "around"):
        records = agreeing(tiny_model("llama", seed=1), BYTES, chat=False)
        assert outcome(model, BYTES, records) == unaided(model, BYTES, records)


@pytest.mark.parametrize("attached", [False, True])
def test_no_row_comes_further_than_it_would(attached: bool, unaided: Unaided) -> None:
    """A long prompt that just fits beside a short one, much of its answer known and nothing of the other's."""
    model: Any = tiny_model("gpt2", seed=1)  # reads 256 tokens
    if attached:
        model = ValueAdapterForCausalLM(model, tokenizer=BYTES).eval()
        network = tiny_model("qwen3", seed=5)
        model.add_adapter(ValueAdapter.from_networks([network], BYTES, base_model_name_or_path="x/y"), "a", scale=0.3)
    long = "A" * 240
    said = unaided(model, BYTES, [{"prompt": long, "completion": "x"}], max_new_tokens=16)[0][0]
    records = [{"prompt": long, "completion": said[:12] + "?"}, {"prompt": "KLM", "completion": "?"}]
    how = {"max_new_tokens": 16}
    assert outcome(model, BYTES, records, **how) == unaided(model, BYTES, records, **how)
    assert answers.says_the_likeliest(model)


def test_a_text_that_does_not_begin_with_its_prompt_shows_nothing() -> None:
    """As where a tokenizer joins the end of a prompt and the beginning of its answer."""
    assert begun([1, 2], [1, 3, 4], {2: 4}) == []
    assert begun([1, 2], [1, 2, 4, 5, 6], {2: 4, 3: 7, 4: 6}) == [4, 7]
    assert begun([1, 2], [1, 2, 4, 5], {2: 4, 3: 5}) == [4, 5]
    assert begun([1, 2], [1, 2, 9, 4], {3: 4}) == []
