"""Bits per byte, their parts, matches, choices and what an adapter changed, against values computed by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from vocabularies import tokenizer_of

from valueadapter import ConfigError, ValueAdapterForCausalLM
from valueadapter.evaluation.answers import answer
from valueadapter.evaluation.metrics import _parts, evaluate, normalised
from valueadapter.evaluation.score import ratio

RECORDS = [
    {"prompt": "ABC", "completion": "DE"},
    {"prompt": "F", "completion": "GHIJ"},
    {"prompt": "KL", "completion": "M"},
]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_bits_per_byte_is_the_likelihood_of_the_completion(tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
    """Summed over the completions' tokens, in bits, divided by their bytes; the batch size changes nothing."""
    model = tiny_model("llama", seed=1)
    nats = 0.0
    for record in RECORDS:
        prompt = tokenizer(record["prompt"])["input_ids"]
        ids = prompt + tokenizer(record["completion"])["input_ids"]
        log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(float(log_p[i - 1, ids[i]].detach()) for i in range(len(prompt), len(ids)))
    score = evaluate(model, tokenizer, RECORDS, generate=False, batch_size=batch_size)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / 7, rel=1e-5)
    assert score.exact_match is None


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_and_chat_are_scored_too(tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
    """Rows of different length in a batch score as they do alone."""
    model = tiny_model("llama", seed=1)
    turn = [{"role": "user", "content": "HI"}, {"role": "assistant", "content": "YO"}]
    for records in (
        [{"text": "ABC"}, {"text": "DEFGHI"}, {"text": "JK"}],
        [{"messages": turn}, {"messages": turn * 2}],
    ):
        score = evaluate(model, tokenizer, records, generate=False, batch_size=batch_size)
        alone = evaluate(model, tokenizer, records, generate=False, batch_size=1)
        assert score.bits_per_byte == pytest.approx(alone.bits_per_byte, rel=1e-5)


def test_exact_match_counts_what_the_model_says(tokenizer: PreTrainedTokenizerBase) -> None:
    """A model's own answers match; others do not."""
    model = tiny_model("llama", seed=1)
    said = evaluate(model, tokenizer, RECORDS).answers
    own = [{"prompt": r["prompt"], "completion": answer or "x"} for r, answer in zip(RECORDS, said, strict=True)]
    expected = sum(normalised(a) == normalised(a or "x") for a in said) / 3
    assert evaluate(model, tokenizer, own).exact_match == expected
    assert evaluate(model, tokenizer, [{"prompt": "ABC", "completion": "no, never"}]).exact_match == 0


@pytest.mark.parametrize(("a", "b"), [("The Beatles", "beatles!"), ("U.S.  history", "u s history"), ("a dog", "Dog")])
def test_normalisation_forgives_form(a: str, b: str) -> None:
    """Case, articles, punctuation and spaces do not count."""
    assert normalised(a) == normalised(b)


# -- parts of a response --------------------------------------------------------------------------------------------
def by_hand(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, record: dict[str, str]) -> list[float]:
    """Bits of each token of a completion, the end of the sequence as the last."""
    prompt = tokenizer(record["prompt"])["input_ids"]
    ids = [*prompt, *tokenizer(record["completion"])["input_ids"], tokenizer.eos_token_id]
    log_p = model(torch.tensor([ids])).logits[0].detach().log_softmax(-1) / math.log(2)
    return [-float(log_p[i - 1, ids[i]]) for i in range(len(prompt), len(ids))]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_first_middle_and_last_token(tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
    """Bits per token of what comes first, of what ends the sequence, and of all between."""
    model = tiny_model("llama", seed=1)
    score = evaluate(model, tokenizer, RECORDS, generate=False, batch_size=batch_size)
    bits = [by_hand(model, tokenizer, record) for record in RECORDS]
    middle = [value for row in bits for value in row[1:-1]]
    assert score.value("first_token_bits") == pytest.approx(sum(row[0] for row in bits) / 3, rel=1e-5)
    assert score.value("last_token_bits") == pytest.approx(sum(row[-1] for row in bits) / 3, rel=1e-5)
    assert score.value("middle_token_bits") == pytest.approx(sum(middle) / len(middle), rel=1e-5)


def test_a_chat_has_a_first_and_a_last_token_in_every_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    """The control token that ends a turn is its last; what stands between turns is scored in neither."""
    model = tiny_model("llama", seed=1)
    turn = [{"role": "user", "content": "HI"}, {"role": "assistant", "content": "YO!"}]
    (example,) = evaluate(model, tokenizer, [{"messages": turn * 2}], generate=False).examples
    counts = {name: count for name, (_, count) in example.totals.items()}
    assert (counts["first_token_bits"], counts["middle_token_bits"], counts["last_token_bits"]) == (2, 4, 2)
    assert counts["bits_per_byte"] == 6


def test_a_line_end_after_a_turn_is_not_its_last_token() -> None:
    """Templates write one after the end of a turn: it counts in bits per byte, as ever, and in no part."""
    here = torch.tensor([False, True, True, True, True, False, True, True])
    content = torch.tensor([False, True, True, False, True, False, True, False])
    assert _parts(here, content) == ["first", "middle", "last", "after", "first", "last"]


# -- context, choices, answers --------------------------------------------------------------------------------------
CHAT = [
    [{"role": "user", "content": f"{a}?"}, {"role": "assistant", "content": f"{a}!{a}"}] for a in ("one", "two", "six")
]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_context_is_read_and_not_scored(batch_size: int) -> None:
    """For prompts it is text before them, for chats earlier turns under the chat's own system message."""
    model, tokenizer = tiny_model("llama", seed=1, width=550), tokenizer_of("coarse bytes")
    records = [{"prompt": "It is", "completion": " what it is"}, {"prompt": "The readers", "completion": " read"}]
    shots = [{"prompt": "The dog", "completion": " jumps"}, {"prompt": "A", "completion": " fox"}]
    longer = [{**one, "prompt": "The dog jumps\n\nA fox\n\n" + one["prompt"]} for one in records]
    found = evaluate(model, tokenizer, records, context=shots, batch_size=batch_size, max_new_tokens=3)
    expected = evaluate(model, tokenizer, longer, batch_size=1, max_new_tokens=3)
    assert found.bits_per_byte == pytest.approx(expected.bits_per_byte, rel=1e-5)
    assert found.answers == expected.answers
    system = [{"role": "system", "content": "be brief"}]
    chat: list[dict[str, Any]] = [{"messages": system + CHAT[0]}]
    joined = [{"messages": [*system, *CHAT[1], *CHAT[2], *CHAT[0]]}]
    context = [{"messages": system + CHAT[1]}, {"messages": CHAT[2]}]
    (one,) = evaluate(model, tokenizer, chat, context=context, generate=False).examples
    (all_turns,) = evaluate(model, tokenizer, joined, generate=False).examples
    (earlier,) = evaluate(model, tokenizer, [{"messages": joined[0]["messages"][:-2]}], generate=False).examples
    for metric, (bits, count) in one.totals.items():
        assert bits == pytest.approx(all_turns.totals[metric][0] - earlier.totals[metric][0], rel=1e-4)
        assert count == all_turns.totals[metric][1] - earlier.totals[metric][1]


@pytest.mark.parametrize("kind", ["coarse bytes", "sentencepiece"])
def test_with_a_context_the_same_tokens_of_plain_text_are_scored(kind: str) -> None:
    """Whether or not the tokenizer begins with a token of its own, so that a first one can be predicted."""
    tokenizer = tokenizer_of(kind)
    model = tiny_model("llama", seed=1, width=len(tokenizer))
    texts = [{"text": "The readers read"}, {"text": "again"}]
    alone = evaluate(model, tokenizer, texts, generate=False)
    with_context = evaluate(model, tokenizer, texts, context=texts[:1], generate=False)
    for one, two in zip(alone.examples, with_context.examples, strict=True):
        assert len(one.predicted) == len(two.predicted)
        assert one.totals["bits_per_byte"] != two.totals["bits_per_byte"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_choice_with_the_fewest_bits_per_byte_is_taken(tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
    """Records without choices do not count."""
    model = tiny_model("llama", seed=1)
    choices = ["D", "QRS", "ZZZZ"]
    bits = [
        evaluate(model, tokenizer, [{"prompt": "ABC", "completion": text}], generate=False).bits_per_byte
        for text in choices
    ]
    best = bits.index(min(bits))
    asked: list[dict[str, Any]] = [
        {"prompt": "ABC", "completion": "D", "choices": choices, "answer": index} for index in range(3)
    ]
    records = [*asked, {"prompt": "F", "completion": "G", "choices": None, "answer": None}]
    score = evaluate(model, tokenizer, records, generate=False, batch_size=batch_size)
    assert [one.totals.get("choice_accuracy") for one in score.examples] == [
        *((float(index == best), 1) for index in range(3)),
        None,
    ]
    assert score.value("choice_accuracy") == pytest.approx(1 / 3)


@pytest.mark.parametrize(("choices", "right"), [(["A"], 1), (["A", ""], 0), (["A", "B"], -1)])
def test_choices_that_cannot_be_right_are_an_error(
    tokenizer: PreTrainedTokenizerBase, choices: list[str], right: int
) -> None:
    """An index of none, or an empty one."""
    record = {"prompt": "A", "completion": "A", "choices": choices, "answer": right}
    with pytest.raises(ConfigError, match="must be the index of one"):
        evaluate(tiny_model("llama", seed=1), tokenizer, [record], generate=False)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_chats_answer_is_what_generation_says_after_its_last_question(
    tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    """Plain text asks nothing, and has no exact match."""
    model = tiny_model("llama", seed=1)
    chats = [{"messages": CHAT[1] + CHAT[0]}, {"messages": CHAT[2]}]
    prompts = [
        tokenizer.apply_chat_template(c["messages"][:-1], tokenize=False, add_generation_prompt=True) for c in chats
    ]
    score = evaluate(model, tokenizer, chats, batch_size=batch_size, max_new_tokens=4)
    assert list(score.answers) == answer(model, tokenizer, prompts, max_new_tokens=4)
    assert evaluate(model, tokenizer, [{"text": "ABC"}]).exact_match is None


# -- what an adapter did --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [1, 3])
def test_changed_tokens_and_norms_are_those_of_the_logits(
    wrapped: Callable[..., ValueAdapterForCausalLM], tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> None:
    """Likeliest token of base and sum at every response token, its end included; mean |value logit|."""
    model = wrapped("llama", "llama", scale=0.5)
    with torch.no_grad():  # a constant on all logits of a position, which is most of the raw norm
        model.adapters["default"].networks[0].lm_head.weight += 0.5
    changed, raw, centred, tokens = 0, 0.0, 0.0, 0
    for record in RECORDS:
        prompt = tokenizer(record["prompt"])["input_ids"]
        ids = [*prompt, *tokenizer(record["completion"])["input_ids"]]
        with torch.no_grad():
            out = model(torch.tensor([ids]), output_value_logits=True)
            base = model.base(torch.tensor([ids])).logits
        where = slice(len(prompt) - 1, None)
        value = out.value_logits[0, where] / 0.5
        changed += int((out.logits.argmax(-1) != base.argmax(-1))[0, where].sum())
        raw += float(value.abs().mean(-1).sum())
        centred += float((value - value.mean(-1, keepdim=True)).abs().mean(-1).sum())
        tokens += len(value)
    score = evaluate(model, tokenizer, RECORDS, generate=False, batch_size=batch_size, value_norms=True)
    with model.disable_adapter():
        alone = evaluate(model, tokenizer, RECORDS, generate=False, batch_size=batch_size)
    assert ratio(score.changed_from(alone)) == changed / tokens > 0
    assert score.value("value_norm_raw") == pytest.approx(raw / tokens, rel=1e-4)
    assert score.value("value_norm_centred") == pytest.approx(centred / tokens, rel=1e-4)
