"""An answer ends where the model's generation settings or its tokenizer say so, whoever asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel
from typer.testing import CliRunner

from testkit.reference_models import gemma_3_270m, smollm2_instruct
from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM, best_of, trace
from valueadapter.cli.app import app
from valueadapter.evaluation.answers import answer
from valueadapter.evaluation.metrics import evaluate
from valueadapter.forward.stops import as_set, end_tokens, stop_tokens

PROMPT = "ABC"


def spoken(model: PreTrainedModel, count: int) -> list[int]:
    """What a model says greedily when nothing stops it."""
    ids = byte_tokenizer()(PROMPT, return_tensors="pt")["input_ids"]
    settings = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
    return model.generate(ids, generation_config=settings)[0, ids.shape[1] :].tolist()


@pytest.fixture
def talker() -> tuple[PreTrainedModel, list[int]]:
    """A model, and what it says: several different tokens, of which none is a control token."""
    for seed in range(1, 50):
        model = tiny_model("llama", seed=seed)
        said = spoken(model, 6)
        if len(set(said[:5])) == 5 and min(said) > 2:
            return model, said
    raise AssertionError("no seed gives a model that says five different tokens")


@pytest.mark.parametrize("whose", ["model's", "tokenizer's", "both"])
def test_evaluation_stops_where_generation_does(talker: tuple[PreTrainedModel, list[int]], whose: str) -> None:
    """A chat model that ends its turns with another token than the tokenizer's end of sequence; and the other way."""
    model, said = talker
    tokenizer = byte_tokenizer()
    if whose != "model's":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(said[3])
    stop = {"model's": said[2], "tokenizer's": None, "both": said[2]}[whose]
    model.generation_config.eos_token_id = stop if stop is None else [stop, 95]
    expected = tokenizer.decode(said[: 3 if whose == "tokenizer's" else 2])
    record = {"prompt": PROMPT, "completion": expected}
    score = evaluate(model, tokenizer, [record], max_new_tokens=6)
    assert score.answers == (expected.strip(),)
    assert score.exact_match == 1.0
    assert answer(model, tokenizer, [PROMPT], max_new_tokens=6) == [expected.strip()]


def test_judge_and_trace_stop_there_too(talker: tuple[PreTrainedModel, list[int]]) -> None:
    """At the tokenizer's end of sequence where the model names none; at what a caller names, where he does."""
    model, said = talker
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(said[2])
    model.generation_config.eos_token_id = None
    network = tiny_model("llama", seed=99)
    with torch.no_grad():
        network.lm_head.weight.zero_()
    wrapper = ValueAdapterForCausalLM(model, tokenizer=tokenizer)
    adapter = ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="a/b")
    wrapper.add_adapter(adapter, "default")
    wrapper.eval()
    steps = trace(wrapper, PROMPT, max_new_tokens=6).steps
    assert [step.token for step in steps] == [tokenizer.decode([token]) for token in said[:3]]
    sampled = {"max_new_tokens": 6, "top_k": 1}
    assert best_of(wrapper, PROMPT, 1, **sampled).text == tokenizer.decode(said[:3])
    asked = best_of(wrapper, PROMPT, 1, **sampled, eos_token_id=said[4]).text
    assert asked == tokenizer.decode(said[:5])


def test_the_command_stops_there_too(talker: tuple[PreTrainedModel, list[int]], tmp_path: Path) -> None:
    """`generate` on a base whose settings name no token."""
    model, said = talker
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(said[2])
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    words = ["generate", "--base", str(tmp_path), "--prompt", PROMPT, "--max-new-tokens", "6"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).stdout.rstrip("\n") == tokenizer.decode(said[:2])


@pytest.mark.parametrize("size", [1, 2])
def test_the_command_stops_at_texts_and_leaves_them_out(
    talker: tuple[PreTrainedModel, list[int]], tmp_path: Path, size: int
) -> None:
    """At what the adapter records, or what is named in its place; with --no-stop at neither."""
    model, said = talker
    tokenizer = byte_tokenizer()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    network = tiny_model("llama", seed=99)
    with torch.no_grad():
        network.lm_head.weight.zero_()
    adapter = ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="a/b")
    adapter.with_config(stop_strings=(tokenizer.decode(said[2 : 2 + size]),)).save_pretrained(tmp_path / "adapter")
    words = ["generate", "--base", str(tmp_path / "base"), "--prompt", PROMPT, "--max-new-tokens", "5"]
    words += ["--adapter", str(tmp_path / "adapter")]

    def spoken_by(*more: str) -> str:
        return CliRunner().invoke(app, [*words, *more], catch_exceptions=False).stdout

    def shown(count: int) -> str:
        return tokenizer.decode(said[:count]) + "\n"

    assert spoken_by() == shown(2)
    assert spoken_by("--no-stop") == shown(5)
    assert spoken_by("--speculative") == shown(2)
    assert spoken_by("--stop", tokenizer.decode(said[1 : 1 + size]), "--stop", "QQ") == shown(1)
    for wrong, message in ((["--stop", "a", "--no-stop"], "exclude each other"), (["--stop", ""], "is empty")):
        with pytest.raises(ConfigError, match=message):
            spoken_by(*wrong)


def test_tokens_that_begin_with_an_end(talker: tuple[PreTrainedModel, list[int]]) -> None:
    """Beside the stop tokens; of one that is split the first token, unless a right answer holds it."""
    model, tokenizer = talker[0], byte_tokenizer()
    a, b = tokenizer.convert_tokens_to_ids(["A", "B"])
    assert end_tokens(model, tokenizer, [], width=97) == [2]
    assert end_tokens(model, tokenizer, ["A", "BC"], width=97) == sorted([2, a, b])
    assert end_tokens(model, tokenizer, ["A", "BC"], width=97, answers=[" B at its end B", "xBy"]) == [2, a]
    assert end_tokens(model, tokenizer, ["BC"], width=b) == [2]


@pytest.mark.real
def test_blank_lines_of_real_tokenizers() -> None:
    """SmolLM2 writes one as two line ends, though it has a token for it; gemma as one token."""
    for place, split in ((smollm2_instruct, True), (gemma_3_270m, False)):
        tokenizer = AutoTokenizer.from_pretrained(place())
        found = {tokenizer.decode([t]) for t in end_tokens(object(), tokenizer, ["\n\n"], width=10**6)}
        assert {"\n\n", tokenizer.eos_token} < found
        assert ("\n" in found) == split
        assert all(text.startswith("\n") or text == tokenizer.eos_token for text in found)
        in_lines = end_tokens(object(), tokenizer, ["\n\n"], width=10**6, answers=["one\ntwo"])
        assert "\n" not in {tokenizer.decode([t]) for t in in_lines}


def test_stop_tokens_come_in_every_form() -> None:
    """One, several, a tensor, none."""
    assert as_set(None) == set()
    assert as_set(5) == {5}
    assert as_set([5, 6]) == as_set(torch.tensor([5, 6])) == {5, 6}
    model = tiny_model("llama", seed=1)
    model.generation_config.eos_token_id = [7, 8]
    assert stop_tokens(model, byte_tokenizer()) == {2, 7, 8}
    assert stop_tokens(model, None) == {7, 8}
    assert stop_tokens(object(), byte_tokenizer()) == {2}
