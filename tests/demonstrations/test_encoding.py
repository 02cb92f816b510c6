"""What a prompt, a response, a text and a chat are as token ids, over all kinds of tokenizers and any text."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from tokenizer_kinds import ALL, FAITHFUL, SPECIAL, tokenizer_of_kind

from valueadapter import (
    ConfigError,
    IncompatibleBaseError,
    ValueAdapter,
    ValueAdapterForCausalLM,
    ValueTrainer,
    ValueTrainingArguments,
    trace,
    value_score,
)
from valueadapter.demonstrations.encoding import chat_prompt, prompt_ids, response_ids, response_text
from valueadapter.demonstrations.responses import question, responses
from valueadapter.demonstrations.tokenized import IGNORED, encode
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary

kinds = pytest.mark.parametrize("kind", ALL)
PIECES = ["the", "dog", " ", "  ", "\n", "\n\n", "1", "42", "What:", "(", ")", "é", "東", ".", "\t", "It", " is", "s"]
texts = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
spelled = st.lists(st.sampled_from([*PIECES, *SPECIAL]), max_size=6).map("".join)
NOTHING_FIRST = ("gpt-2", "smollm2", "characters", "t5", "gpt-2 with prefix space", "lowercase", "strips")
END_LAST = ("t5", "bert", "byte-level with end", "llama-2 with end", "roberta")
any_text = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def plain(kind: str, text: str) -> list[int]:
    """The tokenizer's own ids of a text, without what it puts around it."""
    return list(tokenizer_of_kind(kind)(text, add_special_tokens=False)["input_ids"])


def spelling(kind: str, ids: list[int]) -> bytes:
    """The bytes that tokens stand for."""
    tokenizer = tokenizer_of_kind(kind)
    tokens = ModelVocabulary(tokenizer.backend_tokenizer.to_str(), len(tokenizer)).vocabulary.tokens
    return b"".join(tokens[token] for token in ids)


@kinds
@any_text
@given(prompt=spelled)
def test_a_prompt_is_what_the_tokenizer_opens_a_text_with(kind: str, prompt: str) -> None:
    """Its ids and the tokenizer's beginning; nothing that the tokenizer puts at an end."""
    tokenizer = tokenizer_of_kind(kind)
    whole = tokenizer(prompt)["input_ids"]
    row = encode({"prompt": prompt, "completion": "dog"}, tokenizer)
    asked = question({"prompt": prompt, "completion": "dog"}, tokenizer)
    begin = [] if kind in NOTHING_FIRST else [1]
    end = [2] if kind in END_LAST else []
    assert [*begin, *plain(kind, prompt), *end] == whole
    assert asked == [*begin, *plain(kind, prompt)]
    assert row["input_ids"][: len(asked)] == asked
    assert row["labels"][: len(asked)] == [IGNORED] * len(asked)


@pytest.mark.parametrize("kind", FAITHFUL)
@any_text
@given(prompt=texts.filter(bool), completion=texts)
def test_a_response_spells_itself(kind: str, prompt: str, completion: str) -> None:
    """No space is put before it; it ends with one end of sequence, and no control token is anywhere else."""
    tokenizer = tokenizer_of_kind(kind)
    row = encode({"prompt": prompt, "completion": completion}, tokenizer)
    asked = question({"prompt": prompt, "completion": completion}, tokenizer)
    learned = row["input_ids"][len(asked or ()) :]
    assert spelling(kind, learned[:-1]) == completion.encode()
    assert learned[-1] == tokenizer.eos_token_id
    assert not {token for token in row["input_ids"][1:-1] if token < len(SPECIAL)}


@kinds
@any_text
@given(prompt=spelled, completion=spelled)
def test_a_response_goes_on_where_the_prompt_ends(kind: str, prompt: str, completion: str) -> None:
    """Prompt and response are the tokenizer's own text wherever the prompt's ids begin it, and end once."""
    tokenizer = tokenizer_of_kind(kind)
    row = encode({"prompt": f"{prompt}a", "completion": completion + "the"}, tokenizer)
    learned = row["input_ids"][len(prompt_ids(f"{prompt}a", tokenizer)) :]
    both, own = plain(kind, f"{prompt}a{completion}the"), plain(kind, f"{prompt}a")
    if both[: len(own)] == own:
        assert learned == [*both[len(own) :], tokenizer.eos_token_id]
    assert learned.count(tokenizer.eos_token_id) == completion.count("</s>") + 1
    ending = encode({"prompt": f"{prompt}a", "completion": f"{completion}the</s>"}, tokenizer)
    assert ending["input_ids"][-2:].count(tokenizer.eos_token_id) == 1


@kinds
@any_text
@given(text=spelled)
@example(text=" <s>")
def test_a_text_is_opened_and_ended_once(kind: str, text: str) -> None:
    """Also where it spells the tokens out itself, or the tokenizer puts an end to every text."""
    tokenizer = tokenizer_of_kind(kind)
    own = plain(kind, f"a{text}the")
    begin = [] if kind in NOTHING_FIRST else [1]
    for given_text in (f"a{text}the", f"a{text}the</s>"):
        row = encode({"text": given_text}, tokenizer)
        assert row["input_ids"] == [*begin, *own, tokenizer.eos_token_id]
        assert row["labels"][1:] == row["input_ids"][1:]
    if begin:
        # as often as it is spelled out, and no more; some tokenizers drop spaces between
        assert encode({"text": f"<s>{text}the"}, tokenizer)["input_ids"][:-1] == plain(kind, f"<s>{text}the")


@pytest.mark.parametrize("kind", FAITHFUL)
@any_text
@given(prompt=texts.filter(bool), completion=texts)
def test_what_a_response_says_is_its_text(kind: str, prompt: str, completion: str) -> None:
    """The space at its front, which is lost where it is decoded alone, is kept; so it can be scored again."""
    tokenizer = tokenizer_of_kind(kind)
    ids = [*response_ids(completion, tokenizer, prompt=prompt), tokenizer.eos_token_id]
    assert response_text(ids, tokenizer, prompt=prompt_ids(prompt, tokenizer)) == completion


@kinds
@any_text
@given(prompt=texts, completion=texts)
def test_prompt_and_response_say_the_text(kind: str, prompt: str, completion: str) -> None:
    """Decoded together they are what the tokenizer makes of the text: nothing is put in, lost or said twice."""
    tokenizer = tokenizer_of_kind(kind)
    if kind in ("t5", "strips"):  # which have no tokens for white space at the end of a prompt
        prompt = prompt.rstrip()
    ids = [*plain(kind, prompt), *response_ids(completion, tokenizer, prompt=prompt)]
    assert tokenizer.decode(ids) == tokenizer.decode(plain(kind, prompt + completion))


@kinds
def test_a_slow_tokenizer_reads_prompts_and_is_refused_for_chats(kind: str) -> None:
    """Texts need nothing but ids; where the answers of a chat stand only fast tokenizers know."""
    tokenizer = copy.deepcopy(tokenizer_of_kind(kind))
    record = {"prompt": "What:", "completion": " 42"}
    expected = encode(record, tokenizer)
    tokenizer.__class__ = type("Slow", (type(tokenizer),), {"is_fast": False})
    assert encode(record, tokenizer) == expected
    with pytest.raises(ConfigError, match="only those of the tokenizers library"):
        encode({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, tokenizer)


def model_of(kind: str) -> Any:
    """A tiny base with a tiny network of the same vocabulary."""
    tokenizer = tokenizer_of_kind(kind)
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(tokenizer)), tokenizer=tokenizer)
    network = tiny_model("gpt2", seed=2, width=len(tokenizer))
    model.add_adapter(ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base"), "default")
    return model.eval()


@kinds
@torch.no_grad()
def test_judge_evaluation_and_training_read_the_same(kind: str) -> None:
    """A score is that of the very ids that a demonstration is trained on, and evaluated on."""
    model, tokenizer = model_of(kind), tokenizer_of_kind(kind)
    for prompt, completion in (("What:", " 42"), ("(", "42)"), ("What: ", "42"), ("the do", "g is")):
        row = encode({"prompt": prompt, "completion": completion}, tokenizer)
        batch = responses([{"prompt": prompt, "completion": completion}], tokenizer)
        assert batch.inputs["input_ids"].tolist() == [row["input_ids"]]
        if completion == " 42":
            whole = [*prompt_ids(prompt + completion, tokenizer), tokenizer.eos_token_id]
            assert row["input_ids"] == whole
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        learned = (labels != IGNORED).nonzero()[:, 0]
        each = [logits[0, learned - 1].log_softmax(-1) for logits in (model(ids).logits, model.base(ids).logits)]
        both, base = (float(one.gather(-1, labels[learned, None]).sum()) for one in each)
        assert value_score(model, prompt, [completion]) == pytest.approx([both - base], abs=1e-3)


@kinds
def test_a_trace_begins_with_the_prompt(kind: str) -> None:
    """Generation within a trace goes on from the prompt's own ids."""
    model, tokenizer = model_of(kind), tokenizer_of_kind(kind)
    ids = torch.tensor([prompt_ids("What:", tokenizer)])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0)
    found = trace(model, "What:", max_new_tokens=3)
    assert [step.token for step in found.steps] == [tokenizer.decode([token]) for token in out[0, ids.shape[1] :]]


@pytest.mark.parametrize("kind", ["smollm2", "phi-3", "llama-2 with end", "bert"])
def test_a_chat_is_asked_as_it_is_learned(kind: str) -> None:
    """What an answer begins behind is the same in training, evaluation, judging and generation."""
    tokenizer = tokenizer_of_kind(kind)
    for answer in ("It is", "\n\nIt is", " 42", ""):
        turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
        row = encode({"messages": turns}, tokenizer)
        asked = chat_prompt(turns[:1], tokenizer)
        assert row["input_ids"][: len(asked)] == asked == question({"messages": turns}, tokenizer)
        assert row["labels"][: len(asked)] == [IGNORED] * len(asked)
        assert row["labels"][len(asked) :] == row["input_ids"][len(asked) :]
        assert row["labels"].count(tokenizer.convert_tokens_to_ids("<|end|>")) == 1
        assert model_of(kind).chat_inputs(turns[:1])["input_ids"].tolist() == [asked]


def test_a_base_of_another_vocabulary_is_trained_on_in_its_own_tokens(tmp_path: Any) -> None:
    """Not in the adapter's, which would be other text; a tokenizer of another vocabulary is refused."""
    theirs, mine = tokenizer_of_kind("gpt-2"), tokenizer_of_kind("smollm2")
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(theirs)), tokenizer=theirs)
    network = tiny_model("llama", seed=2, width=len(mine))
    adapter = ValueAdapter.from_networks([network], mine, base_model_name_or_path="alice/base")
    model.add_adapter(adapter, "default", is_trainable=True)
    args = ValueTrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    record = {"prompt": "The dog", "completion": " jumps over"}
    own = encode(record, theirs)
    for given_tokenizer in (None, theirs, copy.deepcopy(theirs)):
        trainer = ValueTrainer(model, args, train_dataset=Dataset.from_list([record]), processing_class=given_tokenizer)
        assert trainer.train_dataset[0] == own
    with pytest.raises(IncompatibleBaseError, match="processing_class is not the tokenizer of base model"):
        ValueTrainer(model, args, train_dataset=[record], processing_class=mine)
