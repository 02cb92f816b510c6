"""What people hand to `generate` besides a prompt works on base + adapter, of the same vocabulary and of another."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from outlines_core import Index, Vocabulary
from outlines_core.json_schema import build_regex_from_schema
from test_calibration import other_vocabulary
from tiny import tiny_model
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)

from valueadapter import ValueAdapterForCausalLM

GREEDY: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
TEXT = "It is so"


@pytest.fixture(params=["same vocabulary", "another vocabulary"])
def model(request: pytest.FixtureRequest, wrapped: Callable[..., ValueAdapterForCausalLM]) -> ValueAdapterForCausalLM:
    return wrapped("qwen3", "gpt2") if request.param == "same vocabulary" else other_vocabulary()


def prompt(model: ValueAdapterForCausalLM) -> torch.Tensor:
    ids: torch.Tensor = model.base_tokenizer(TEXT, return_tensors="pt")["input_ids"]
    return ids


def test_a_streamer_gives_the_text_piece_by_piece(model: ValueAdapterForCausalLM) -> None:
    """`TextIteratorStreamer` in a thread, as a chat page does it: the pieces are the answer."""
    ids = prompt(model)
    expected = model.generate(ids, **GREEDY)[0, ids.shape[1] :]
    streamer = TextIteratorStreamer(model.base_tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=model.generate, args=(ids,), kwargs={**GREEDY, "streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len(pieces) > 1
    assert "".join(pieces) == model.base_tokenizer.decode(expected)


def test_a_generation_config_says_the_same_as_arguments(model: ValueAdapterForCausalLM) -> None:
    """Given, or set on the model; and what the base brings with it is the default."""
    ids = prompt(model)
    beams = {**GREEDY, "num_beams": 2, "num_return_sequences": 2}
    expected = model.generate(ids, **beams)
    assert torch.equal(model.generate(ids, generation_config=GenerationConfig(**beams)), expected)
    assert model.generation_config is model.base.generation_config
    model.generation_config = GenerationConfig(**beams)
    assert torch.equal(model.generate(ids), expected)


class Forbid(LogitsProcessor):
    """Forbids a token, and keeps what it was shown."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.shown: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.shown.append(scores.clone())
        scores = scores.clone()
        scores[:, self.token] = -torch.inf
        return scores  # type: ignore[return-value]


def test_logits_processors_see_the_sum(model: ValueAdapterForCausalLM) -> None:
    """A processor of the user's own, beside transformers': it is shown what `forward` gives."""
    ids = prompt(model)
    plain = model.generate(ids, **GREEDY)
    forbid = Forbid(int(plain[0, ids.shape[1]]))
    found = model.generate(ids, **GREEDY, logits_processor=LogitsProcessorList([forbid]), repetition_penalty=1.3)
    assert forbid.token not in found[0, ids.shape[1] :]
    with torch.no_grad():
        whole = model(found).logits[0]
    first = forbid.shown[0][0]
    seen = torch.zeros_like(first, dtype=torch.bool).index_fill_(0, ids[0], True)
    torch.testing.assert_close(first[~seen], whole[ids.shape[1] - 1][~seen], atol=1e-4, rtol=1e-4)
    assert len(forbid.shown) == GREEDY["max_new_tokens"]


class After(StoppingCriteria):
    """Stops after so many tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.length)  # type: ignore[return-value]


def test_stopping_criteria_stop(model: ValueAdapterForCausalLM) -> None:
    """Of the user's own, a stop string, and a time limit."""
    ids, tokenizer = prompt(model), model.base_tokenizer
    texts = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    words = [text.isascii() and text.isprintable() and text.strip() == text != "" for text in texts]
    asked = {**GREEDY, "suppress_tokens": [token for token, is_word in enumerate(words) if not is_word]}
    plain = model.generate(ids, **asked)
    length = ids.shape[1] + 3
    stopped = model.generate(ids, **asked, stopping_criteria=StoppingCriteriaList([After(length)]))
    assert torch.equal(stopped, plain[:, :length])
    new = [texts[token] for token in plain[0, ids.shape[1] :].tolist()]
    word = new[2]
    stopped = model.generate(ids, **asked, stop_strings=[word], tokenizer=tokenizer)
    assert stopped.shape[1] == ids.shape[1] + new.index(word) + 1
    assert torch.equal(stopped, plain[:, : stopped.shape[1]])
    assert model.generate(ids, **{**GREEDY, "max_new_tokens": 200}, max_time=1e-6).shape[1] < ids.shape[1] + 200


def test_outputs_hold_logits_scores_and_the_bases_states(model: ValueAdapterForCausalLM) -> None:
    """`return_dict_in_generate` with everything on: logits are those of one pass over the whole text."""
    ids = prompt(model)
    asked = ("output_scores", "output_logits", "output_hidden_states", "output_attentions")
    model.base.set_attn_implementation("eager")
    out = model.generate(ids, **GREEDY, return_dict_in_generate=True, **dict.fromkeys(asked, True))
    with torch.no_grad():
        whole = model(out.sequences).logits[:, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits, 1), whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(torch.stack(out.scores, 1).argmax(-1), out.sequences[:, ids.shape[1] :])
    assert len(out.hidden_states) == len(out.attentions) == GREEDY["max_new_tokens"]
    assert out.hidden_states[0][0].shape[-1] == model.base.config.get_text_config().hidden_size
    scores = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
    torch.testing.assert_close(scores, whole.log_softmax(-1).gather(2, out.sequences[:, ids.shape[1] :, None])[..., 0])


def allowed_by(pattern: str, model: ValueAdapterForCausalLM, begin: int) -> Callable[[int, torch.Tensor], list[int]]:
    """transformers' constraint for texts of a pattern, from outlines-core's automaton over the base's vocabulary."""
    tokenizer = model.base_tokenizer
    end = tokenizer.eos_token_id
    spelled: dict[str, list[int]] = {}
    for token in range(len(tokenizer)):
        if (text := tokenizer.decode([token])) and token not in tokenizer.all_special_ids and "\ufffd" not in text:
            spelled.setdefault(text, []).append(token)
    index = Index(pattern, Vocabulary(end, spelled))

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        state: int | None = index.get_initial_state()
        for token in ids[begin:].tolist():
            state = None if state is None or token == end else index.get_next_state(state, token)
        return [end] if state is None else index.get_allowed_tokens(state)

    return allowed


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beams", "sampling"])
def test_constrained_decoding_keeps_to_the_pattern(model: ValueAdapterForCausalLM, how: dict[str, Any]) -> None:
    """outlines-core's automaton of a JSON schema, through transformers' processor: valid text, chosen by the sum."""
    ids = prompt(model)
    schema = '{"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}'
    pattern = build_regex_from_schema(schema)
    rules = allowed_by(pattern, model, ids.shape[1])
    end = model.base_tokenizer.eos_token_id
    asked = {**GREEDY, "max_new_tokens": 60, "eos_token_id": end, **how, "prefix_allowed_tokens_fn": rules}
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(model.generate(ids, **asked, use_cache=use_cache))
    assert torch.equal(*outputs)
    text = model.base_tokenizer.decode(outputs[0][0, ids.shape[1] :], skip_special_tokens=True)
    assert re.fullmatch(pattern, text), text
    if not how.get("do_sample"):
        with model.disable_adapter():
            free = copy.deepcopy(model.generate(ids, **asked))
        assert re.fullmatch(pattern, model.base_tokenizer.decode(free[0, ids.shape[1] :], skip_special_tokens=True))


def test_a_pipeline_passes_all_of_it_on(model: ValueAdapterForCausalLM) -> None:
    """Batches of prompts, adapters by row, several answers, arguments of `generate`."""
    generate = pipeline("text-generation", model=model, tokenizer=model.base_tokenizer)
    model.base_tokenizer.padding_side = "left"
    texts = [TEXT, "It"]
    asked = {**GREEDY, "num_beams": 2, "num_return_sequences": 2, "return_full_text": False}
    together = generate(texts, batch_size=2, **asked)
    for text, answers in zip(texts, together, strict=True):
        ids = model.base_tokenizer(text, return_tensors="pt")["input_ids"]
        asked_alone = {k: v for k, v in asked.items() if k != "return_full_text"}
        alone = model.generate(ids, **asked_alone)[:, ids.shape[1] :]
        decoded = model.base_tokenizer.batch_decode(alone, skip_special_tokens=True)
        assert [answer["generated_text"] for answer in answers] == decoded
    mixed = generate(texts, batch_size=2, **GREEDY, return_full_text=False, adapter_names=["default", None])
    with model.disable_adapter():
        (alone,) = generate("It", **GREEDY, return_full_text=False)
    assert mixed[1][0]["generated_text"] == alone["generated_text"]


def test_assisting_another_model(wrapped: Callable[..., ValueAdapterForCausalLM]) -> None:
    """Base + adapter as another model's assistant, and the other as its assistant: tokens are the target's."""
    model, target = wrapped("llama", "gpt2"), tiny_model("qwen3", seed=5)
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(target.generate(ids, **GREEDY, assistant_model=model), target.generate(ids, **GREEDY))
    assert torch.equal(model.generate(ids, **GREEDY, assistant_model=target), model.generate(ids, **GREEDY))
