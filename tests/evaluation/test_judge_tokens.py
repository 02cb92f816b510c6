"""What is judged are the ids that were sampled, whatever they are; the command line begins from the prompt's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SIZE, byte_tokenizer, tiny_model
from tokenizer_kinds import tokenizer_of_kind
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from valueadapter import ValueAdapter, ValueAdapterForCausalLM, best_of, value_score
from valueadapter.cli.generate import generate
from valueadapter.demonstrations.encoding import prompt_ids

PROMPT = "ABC"
ALLOWED = (0, 2, 40)
"""An id that may be padding, the end, and a letter."""
SAMPLING: dict[str, Any] = {"max_new_tokens": 4, "temperature": 2.0, "seed": 5}
SAMPLING["suppress_tokens"] = [token for token in range(SIZE) if token not in ALLOWED]


def without_padding() -> PreTrainedTokenizerFast:
    """As Llama 3: no pad token, and id 0 is `!`."""
    vocab = {"!": 0, "<s>": 1, "</s>": 2}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        if character not in vocab and len(vocab) < SIZE:
            vocab[character] = len(vocab)
    backend = Tokenizer(models.BPE(vocab, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def judging(tokenizer: PreTrainedTokenizerFast, pad: int | None) -> Any:
    """A tiny base with a tiny network; `pad` is what the base's generation config says."""
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=tokenizer)
    model.generation_config.pad_token_id = pad
    network = tiny_model("gpt2", seed=2)
    model.add_adapter(ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base"), "default")
    return model.eval()


@torch.no_grad()
def score_of(model: Any, answer: list[int]) -> float:
    """log p(answer; base + adapter) - log p(answer; base) of exactly these ids."""
    asked = prompt_ids(PROMPT, model.base_tokenizer)
    ids = torch.tensor([[*asked, *answer]])
    difference = model(ids).logits.log_softmax(-1) - model.base(ids).logits.log_softmax(-1)
    return float(sum(difference[0, len(asked) + place - 1, token] for place, token in enumerate(answer)))


def test_a_sampled_token_is_never_taken_for_padding() -> None:
    """Three times id 0 without a pad token is an answer of three tokens."""
    model = judging(without_padding(), None)
    only = [token for token in range(SIZE) if token != 0]
    found = best_of(model, PROMPT, 2, max_new_tokens=3, suppress_tokens=only)
    assert found.responses == ("!!!", "!!!")
    assert found.scores == pytest.approx([score_of(model, [0, 0, 0])] * 2, abs=1e-4)
    assert found.scores == pytest.approx(value_score(model, PROMPT, ["!!!"] * 2, end_of_sequence=False), abs=1e-4)


@pytest.mark.parametrize("pad", [None, 0, 2])
@pytest.mark.parametrize("tokenizer", [without_padding(), byte_tokenizer()], ids=["no pad token", "pad token"])
def test_every_score_is_of_the_ids_that_were_sampled(tokenizer: PreTrainedTokenizerFast, pad: int | None) -> None:
    """Whatever rows are padded with, and be the padding's id sampled within an answer or at its end."""
    model = judging(tokenizer, pad)
    asked = torch.tensor([prompt_ids(PROMPT, tokenizer)])
    torch.manual_seed(SAMPLING["seed"])
    how = {key: value for key, value in SAMPLING.items() if key != "seed"} | {"pad_token_id": 2}
    rows = model.generate(asked, do_sample=True, num_return_sequences=12, **how)[:, asked.shape[1] :].tolist()
    sampled = [row[: row.index(2) + 1] if 2 in row else row for row in rows]
    found = best_of(model, PROMPT, 12, **SAMPLING)
    assert any(answer[-1] == 0 for answer in sampled)
    assert len({len(answer) for answer in sampled}) > 2
    assert found.scores == pytest.approx([score_of(model, answer) for answer in sampled], abs=1e-4)
    assert found.responses == tuple(tokenizer.decode(answer, skip_special_tokens=True) for answer in sampled)


def test_an_answer_that_a_string_has_stopped_has_no_end() -> None:
    """What stands behind it in a batch is not the model's."""
    model = judging(without_padding(), None)
    letter = model.base_tokenizer.decode([40])
    found = best_of(model, PROMPT, 24, stop_strings=[letter], **SAMPLING | {"temperature": 20.0})
    stopped = [index for index, text in enumerate(found.responses) if text.endswith(letter)]
    assert {len(found.responses[index]) for index in stopped} > {1}
    for index in stopped:
        text = found.responses[index]
        assert text == "!" * (len(text) - 1) + letter
        assert found.scores[index] == pytest.approx(score_of(model, [0] * (len(text) - 1) + [40]), abs=1e-4)


@pytest.mark.parametrize("kind", ["llama-2", "mistral", "gemma", "roberta"])
def test_an_answer_keeps_the_space_that_it_begins_with(kind: str) -> None:
    """So that prompt and answer are the text that was sampled, and the answer can be scored again."""
    tokenizer = tokenizer_of_kind(kind)
    model = ValueAdapterForCausalLM(tiny_model("llama", seed=1, width=len(tokenizer)), tokenizer=tokenizer)
    network = tiny_model("gpt2", seed=2, width=len(tokenizer))
    model.add_adapter(ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base"), "default")
    space = prompt_ids("What: the", tokenizer)[len(prompt_ids("What:", tokenizer)) :]
    only = [token for token in range(len(tokenizer)) if token != space[0]]
    found = best_of(model.eval(), "What:", 1, max_new_tokens=1, suppress_tokens=only)
    assert found.text.startswith(" ")
    again = value_score(model, "What:", found.responses, end_of_sequence=False)
    assert found.scores == pytest.approx(again, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama-2 with end", "roberta", "bert", "llama-3"])
def test_the_command_line_goes_on_from_the_prompt(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its own ids, not from behind what the tokenizer puts at an end; a chat as `chat_inputs` gives it."""
    tokenizer = tokenizer_of_kind(kind)
    base = tiny_model("llama", seed=1, width=len(tokenizer))
    base.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = ValueAdapterForCausalLM(base, tokenizer=tokenizer).eval()
    ids = torch.tensor([prompt_ids("What: ", tokenizer)])
    prompts = {False: {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
    prompts[True] = {**model.chat_inputs([{"role": "user", "content": "What: "}])}
    for chat, inputs in prompts.items():
        capsys.readouterr()
        generate(str(tmp_path), ["What: "], [], None, False, chat, 8, 0.0, 0, "float32")
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=0)
        expected = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert capsys.readouterr().out.strip() == expected.strip()
