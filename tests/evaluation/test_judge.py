"""Scores are differences of likelihoods, computed here by other means; the best of several is the one they name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from test_other_vocabulary import read_anew
from test_other_vocabulary import wrapped as other_vocabulary
from tiny import byte_tokenizer, tiny_model
from transformers import GenerationConfig
from vocabularies import KINDS

from valueadapter import AdapterNameError, ConfigError, ValueAdapter, ValueAdapterForCausalLM, best_of, value_score
from valueadapter.demonstrations.tokenized import IGNORED, encode
from valueadapter.evaluation.judge import until_end
from valueadapter.model.chat import value_ids

Wrapped = Callable[..., ValueAdapterForCausalLM]
Make = Callable[..., ValueAdapter]
PROMPT, RESPONSES = "ABCDE", ["FG", "HIJKLMN", "O"]
CHAT = [{"role": "user", "content": "What is it?"}]
SAMPLING: dict[str, Any] = {"max_new_tokens": 5, "temperature": 1.5, "seed": 3, "suppress_tokens": [0, 1]}


def log_p(logits: torch.Tensor, labels: list[int]) -> float:
    """Of the labelled tokens of one row, from the logits of all its positions."""
    each = logits.double().log_softmax(-1)
    return sum(float(each[i - 1, label]) for i, label in enumerate(labels) if label != IGNORED)


@torch.no_grad()
def by_hand(record: Mapping[str, object], parts: list[tuple[torch.nn.Module, float]]) -> float:
    """log p(base + Σ weight · network) - log p(base), of a demonstration as it is trained on."""
    row = encode(record, byte_tokenizer())
    base, *values = [weight * model(torch.tensor([row["input_ids"]])).logits[0] for model, weight in parts]
    return log_p(base + sum(values), row["labels"]) - log_p(base, row["labels"])


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize(("base", "network"), [("llama", "gpt2"), ("gemma3", "mistral")])
def test_a_score_is_the_difference_of_two_likelihoods(
    wrapped: Wrapped, base: str, network: str, batch_size: int
) -> None:
    """Of prompt, response and end as in training, each row alone and unpadded, whatever the batch."""
    parts = [(tiny_model(base, seed=1), 1.0), (tiny_model(network, seed=2), 0.7)]
    expected = [by_hand({"prompt": PROMPT, "completion": text}, parts) for text in RESPONSES]
    model = wrapped(base, network, scale=0.7)
    assert value_score(model, PROMPT, RESPONSES, batch_size=batch_size) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("value", [kind for kind in KINDS if kind != "coarse bytes"])
def test_scores_on_a_base_of_another_vocabulary(value: str) -> None:
    """In the base's tokens, the network having read the text anew at every position."""
    model: Any = other_vocabulary(vocabularies=("coarse bytes", value))
    prompt, responses = "The quick brow", ["n fox", " reads again", "!"]
    expected = []
    for text in responses:
        row = encode({"prompt": prompt, "completion": text}, model.base_tokenizer)
        row = {key: ids[:-1] for key, ids in row.items()}
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            expected.append(
                log_p(read_anew(model, ids)[0], row["labels"]) - log_p(model.base(ids).logits[0], row["labels"])
            )
    scores = value_score(model, prompt, responses, end_of_sequence=False, batch_size=2)
    assert scores == pytest.approx(expected, abs=1e-3)


def test_a_chat_is_scored_as_it_is_trained_on(wrapped: Wrapped) -> None:
    """By the base's template, to the token that ends the turn."""
    parts = [(tiny_model("llama", seed=seed), 1.0) for seed in (1, 2)]
    turns = [{"role": "user", "content": "HI"}]
    answered = [*turns, {"role": "assistant", "content": "YO"}]
    expected = by_hand({"messages": answered}, parts)
    assert value_score(wrapped(), turns, ["YO", "NO"])[0] == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_a_network_of_another_vocabulary_reads_the_chat_by_its_own_template() -> None:
    """The first token's score is of its prompt, not of the base's prompt as text."""
    model: Any = other_vocabulary()
    ids = model.chat_inputs(CHAT)["input_ids"]
    link = model.attached.terms()[0].link
    adapter = model.adapters["default"]
    own = value_ids(adapter.tokenizer, CHAT, link.reading.encoder)
    value = link.alignment.project(adapter.networks[0](torch.tensor([own])).logits[:, -1])
    base = model.base(ids).logits[:, -1]
    token = model.base_tokenizer("I", add_special_tokens=False)["input_ids"]
    expected = ((base + value).log_softmax(-1) - base.log_softmax(-1))[0, token].tolist()
    assert value_score(model, CHAT, ["I"], end_of_sequence=False) == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_a_turn_ends_with_the_templates_token_where_generation_stops() -> None:
    """Not with the end of a text, where the two differ, unless generation knows of no other."""
    model: Any = other_vocabulary(vocabularies=("coarse bytes", "coarse bytes"))
    turn, text, said = model.base_tokenizer.convert_tokens_to_ids(["<|end|>", "</s>", "I"])
    ids = torch.cat([model.chat_inputs(CHAT)["input_ids"], torch.tensor([[said]])], dim=1)
    ends = model(ids, messages=CHAT).logits[0, -1].log_softmax(-1) - model.base(ids).logits[0, -1].log_softmax(-1)
    without = value_score(model, CHAT, ["I"], end_of_sequence=False)[0]
    for known, expected in ((text, text), ([text, turn], turn)):
        model.generation_config.eos_token_id = known
        score = value_score(model, CHAT, ["I"])[0]
        assert score - without == pytest.approx(float(ends[expected]), abs=1e-4)
    assert abs(float(ends[turn] - ends[text])) > 0.1


def test_one_of_several_adapters_or_those_that_act(wrapped: Wrapped, tiny_adapter: Make) -> None:
    """A name chooses one at its scale; without a name the active ones judge together. Nothing is left changed."""
    model = wrapped(scale=0.5)
    model.add_adapter(tiny_adapter("gpt2", seed=7), "style", scale=2.0)
    base, first, second = tiny_model("llama", seed=1), tiny_model("llama", seed=2), tiny_model("gpt2", seed=7)
    record = {"prompt": PROMPT, "completion": "FG"}
    alone = by_hand(record, [(base, 1.0), (second, 2.0)])
    assert value_score(model, PROMPT, ["FG"], adapter_name="style") == pytest.approx([alone], abs=1e-4)
    assert (model.active_adapters, model.scales) == (["default"], {"default": 0.5, "style": 2.0})
    model.set_adapter(["default", "style"])
    both = by_hand(record, [(base, 1.0), (first, 0.5), (second, 2.0)])
    assert value_score(model, PROMPT, ["FG"]) == pytest.approx([both], abs=1e-4)


def test_scale_0_scores_exactly_0(wrapped: Wrapped) -> None:
    """An adapter that does not act changes no likelihood."""
    assert value_score(wrapped(scale=0.0), PROMPT, RESPONSES) == [0.0, 0.0, 0.0]


def test_per_token_is_the_mean(wrapped: Wrapped) -> None:
    """Over a response's own tokens, and its end where that counts."""
    model: Any = wrapped()
    for end in (True, False):
        sums = value_score(model, PROMPT, RESPONSES, end_of_sequence=end)
        means = [total / (len(text) + end) for total, text in zip(sums, RESPONSES, strict=True)]
        assert value_score(model, PROMPT, RESPONSES, end_of_sequence=end, per_token=True) == pytest.approx(means)


@pytest.mark.parametrize("prompt", [PROMPT, [{"role": "user", "content": "HI"}]])
@pytest.mark.parametrize("adapter_name", [None, "default"])
def test_the_best_is_what_the_scores_say(wrapped: Wrapped, prompt: Any, adapter_name: str | None) -> None:
    """Each score is `value_score` of the answer, ended or cut off; where the best stands first, it is meant."""
    model: Any = wrapped()
    found = best_of(model, prompt, 8, adapter_name=adapter_name, **SAMPLING)
    assert len(found.responses) == len(found.scores) == 8
    assert found.text == found.responses[found.best]
    assert found.scores[found.best] == max(found.scores)
    assert len(set(found.scores)) > 3
    for text, score in zip(found.responses, found.scores, strict=True):
        either = [value_score(model, prompt, [text], end_of_sequence=end)[0] for end in (True, False)] if text else []
        assert not text or any(score == pytest.approx(one, abs=1e-4) for one in either)


def test_what_is_scored_is_what_was_sampled(wrapped: Wrapped) -> None:
    """The end counts where it was reached, and padding of the batch does not."""
    model: Any = wrapped()
    model.generation_config.eos_token_id = [2, *range(40, 60)]  # so that some end early
    torch.manual_seed(3)
    ids = torch.tensor([byte_tokenizer()(PROMPT)["input_ids"]])
    rows = model.generate(
        ids, do_sample=True, temperature=1.5, max_new_tokens=5, suppress_tokens=[0, 1], num_return_sequences=8
    )
    found = best_of(model, PROMPT, 8, **SAMPLING)
    stops, lengths = set(model.generation_config.eos_token_id), []
    for row, score in zip(rows[:, 5:].tolist(), found.scores, strict=True):
        length = next((i + 1 for i, token in enumerate(row) if token in stops), len(row))
        lengths.append(length)
        labels = [IGNORED] * 5 + row[:length]
        whole = torch.tensor([[*ids[0].tolist(), *row[:length]]])
        with torch.no_grad():
            both = model(whole).logits[0]
            alone = tiny_model("llama", seed=1)(whole).logits[0]
        assert score == pytest.approx(log_p(both, labels) - log_p(alone, labels), abs=1e-4)
    assert len(set(lengths)) > 2


@pytest.mark.parametrize(
    ("ids", "kept"),
    [([5, 2, 0, 0], 2), ([5, 9, 9, 9], 2), ([9, 9, 9], 1), ([5, 6, 7], 3), ([5, 0, 6, 0, 0], 5), ([0, 0], 2)],
)
def test_an_answer_goes_to_its_end(ids: list[int], kept: int) -> None:
    """Also where rows are padded with a token that ends them; a token that no answer ends with is the answer's own."""
    assert until_end(ids, {2, 9}) == ids[:kept]


def test_answers_can_come_from_the_base_alone(wrapped: Wrapped) -> None:
    """The same ones that the base draws with that seed; judged all the same."""
    model: Any = wrapped()
    base = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer())
    torch.manual_seed(3)
    ids = torch.tensor([byte_tokenizer()(PROMPT)["input_ids"]])
    rows = base.generate(
        ids, do_sample=True, temperature=1.5, max_new_tokens=5, suppress_tokens=[0, 1], num_return_sequences=4
    )
    found = best_of(model, PROMPT, 4, from_base=True, **SAMPLING)
    assert list(found.responses) == byte_tokenizer().batch_decode(rows[:, 5:], skip_special_tokens=True)
    assert all(score != 0 for score in found.scores)
    assert found.responses != best_of(model, PROMPT, 4, **SAMPLING).responses
    assert model.active_adapters == ["default"]


def test_a_seed_draws_the_same_and_leaves_no_trace(wrapped: Wrapped) -> None:
    """torch's generator goes on as if nothing had been drawn."""
    model: Any = wrapped()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = best_of(model, PROMPT, 3, **SAMPLING)
    assert torch.equal(torch.rand(3), expected)
    assert best_of(model, PROMPT, 3, **SAMPLING) == first
    assert best_of(model, PROMPT, 3, **{**SAMPLING, "seed": 4}) != first


def test_a_generation_config_is_taken_and_left_as_it_was(wrapped: Wrapped) -> None:
    """Arguments go before it."""
    model: Any = wrapped()
    config = GenerationConfig(max_new_tokens=5, temperature=1.5, eos_token_id=2, suppress_tokens=[0, 1])
    found = best_of(model, PROMPT, 3, generation_config=config, seed=3)
    assert found == best_of(model, PROMPT, 3, **SAMPLING)
    assert max(map(len, best_of(model, PROMPT, 3, generation_config=config, seed=3, max_new_tokens=1).responses)) <= 1
    assert (config.max_new_tokens, config.do_sample, config.num_return_sequences) == (5, None, None)


def test_best_of_on_a_base_of_another_vocabulary() -> None:
    """Scores are those of the answers' ids; the same ids come back from these texts."""
    model: Any = other_vocabulary()
    found = best_of(model, "The readers", 6, **SAMPLING)
    tokenizer = model.base_tokenizer
    for text, score in zip(found.responses, found.scores, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) == 5:  # cut off, and tokenised as it was sampled
            again = value_score(model, "The readers", [text], end_of_sequence=False)[0]
            assert score == pytest.approx(again, abs=1e-3) or tokenizer.decode(ids) != text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((PROMPT, []), r"list of at least one text; got \[\]"),
        ((PROMPT, "FG"), "list of at least one text; got 'FG'"),
        ((PROMPT, ["FG", ""]), "response 1 is empty"),
        (("", ["FG"]), "prompt is empty"),
        (([], ["FG"]), "one conversation"),
        (([CHAT, CHAT], ["FG"]), "one conversation"),
    ],
)
def test_bad_input_is_refused(wrapped: Wrapped, arguments: tuple[Any, Any], message: str) -> None:
    """The message says what was expected."""
    with pytest.raises(ConfigError, match=message):
        value_score(wrapped(), *arguments)


def test_bad_numbers_are_refused(wrapped: Wrapped) -> None:
    """Of answers, and of rows in a batch."""
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        best_of(wrapped(), PROMPT, 0)
    with pytest.raises(ConfigError, match="batch_size must be at least 1; got 0"):
        value_score(wrapped(), PROMPT, ["A"], batch_size=0)


def test_a_judge_that_would_not_act_is_refused(wrapped: Wrapped) -> None:
    """Rather than scores of 0; a name switches an adapter on for the time being."""
    model: Any = wrapped()
    expected = value_score(model, PROMPT, RESPONSES)
    with model.disable_adapter():
        with pytest.raises(AdapterNameError, match="no adapter is active"):
            value_score(model, PROMPT, RESPONSES)
        with pytest.raises(AdapterNameError, match="no adapter is active"):
            best_of(model, PROMPT, 2)
        assert value_score(model, PROMPT, RESPONSES, adapter_name="default") == expected
        assert model.active_adapters == []
    with pytest.raises(AdapterNameError, match="no adapter 'other'"):
        value_score(model, PROMPT, RESPONSES, adapter_name="other")


def test_what_a_judge_needs_to_know(wrapped: Wrapped) -> None:
    """A tokenizer, and one that can end a text."""
    with pytest.raises(ConfigError, match="tokenizer is not known"):
        value_score(ValueAdapterForCausalLM(tiny_model("llama", seed=1)), PROMPT, RESPONSES)
    model: Any = wrapped()
    endless = byte_tokenizer()
    endless.eos_token = None
    model.base_tokenizer = endless
    with pytest.raises(ConfigError, match="no end-of-sequence token"):
        value_score(model, PROMPT, RESPONSES)
    assert len(value_score(model, PROMPT, RESPONSES, end_of_sequence=False)) == 3
