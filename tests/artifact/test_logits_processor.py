"""The exported logits processor is right, or it raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exported import ADAPTERS, GREEDY, IDS, exported, padded, processor_of, tiny_adapter, wrapper
from test_prefix_reading import starting_tokenizer
from tiny import byte_tokenizer, tiny_model
from transformers import LogitsProcessorList

REPEATING = [
    torch.randint(3, 20, (1, 3), generator=torch.Generator().manual_seed(seed)).repeat(1, 4) for seed in range(8)
]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tiny_adapter(**how) for name, how in ADAPTERS.items()}
    return {name: exported(one, tmp_path_factory.mktemp("e"), "logits_processor") for name, one in made.items()}


def speak(model: Any, processor: Any, ids: torch.Tensor, **how: Any) -> torch.Tensor:
    """`generate` of the base with the processor, which takes no argument that it could find the mask in."""
    found: torch.Tensor = model.generate(
        ids, logits_processor=LogitsProcessorList([processor]), **{**GREEDY, "attention_mask": None, **how}
    )
    return found


@pytest.mark.parametrize("base", ["llama", "gpt2", "gemma3", "mistral", "qwen3"])
@pytest.mark.parametrize("which", ["one network", "two networks"])
def test_it_gives_the_wrappers_tokens(base: str, which: str, exports: dict[str, Path]) -> None:
    """Greedy, and sampling several answers with a seed; again after a reset."""
    tokenizer, plain = byte_tokenizer(), tiny_model(base, seed=1)
    model = wrapper(tiny_model(base, seed=1), tokenizer, tiny_adapter(**ADAPTERS[which]))
    processor = processor_of(exports[which])(plain, tokenizer=tokenizer)
    for how in ({}, {"do_sample": True, "num_return_sequences": 2}, {"use_cache": False}):
        processor.reset()
        torch.manual_seed(0)
        expected = model.generate(IDS, **{**GREEDY, **how})
        torch.manual_seed(0)
        assert torch.equal(speak(plain, processor, IDS, **how), expected), how


@pytest.mark.parametrize("base", ["llama", "gemma3"])
@pytest.mark.parametrize("starts", [True, False])
def test_a_prefix_is_in_the_prompt_or_an_error(base: str, starts: bool, tmp_path: Path) -> None:
    """In the prompt, as `prefixed` puts it there, it gives the wrapper's tokens; nobody's business is an error."""
    tokenizer = starting_tokenizer() if starts else byte_tokenizer()
    adapter = tiny_adapter(**ADAPTERS["a prefix"], tokenizer=tokenizer)
    made = processor_of(exported(adapter, tmp_path, "logits_processor"))
    ids, plain = IDS.clone(), tiny_model(base, seed=1)
    if starts:
        ids[:, 0] = 1
    model = wrapper(tiny_model(base, seed=1), tokenizer, adapter)
    processor = made(plain, tokenizer=tokenizer, prefix_in_prompt=True)
    prompt = processor.prefixed(ids)
    whole = {"return_dict_in_generate": True}
    found = speak(plain, processor, prompt, **whole, output_scores=True)
    expected = model.generate(ids, **GREEDY, **whole, output_logits=True)
    torch.testing.assert_close(found.scores, expected.logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.sequences[:, prompt.shape[1] :], expected.sequences[:, ids.shape[1] :])
    with pytest.raises(ValueError, match="does not begin with the prefix"):
        speak(plain, made(plain, tokenizer=tokenizer, prefix_in_prompt=True), ids)
    with pytest.raises(ValueError, match="has the base read a prefix, which a processor cannot do"):
        made(plain, tokenizer=tokenizer)
    model.set_base_prefix(None)
    without = speak(plain, made(plain, tokenizer=tokenizer, base_prefix=None), ids)
    assert torch.equal(without, model.generate(ids, **GREEDY))
    assert torch.equal(made(plain, tokenizer=tokenizer, base_prefix=None).prefixed(ids), ids)


def test_beams_are_refused(exports: dict[str, Path]) -> None:
    """At once, by their log-probabilities; and where other processors hide these, when texts change places."""
    tokenizer, plain = byte_tokenizer(), tiny_model("llama", seed=1)
    processor = processor_of(exports["one network"])(plain, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"log-probabilities of several rows, as in beam search.*custom_generate"):
        speak(plain, processor, IDS, num_beams=3)
    processor.reset()
    with pytest.raises(ValueError, match="texts change places"):
        speak(plain, processor, IDS, num_beams=3, suppress_tokens=list(range(3, 60)))


def test_left_padding_is_refused(exports: dict[str, Path]) -> None:
    """Unless the caller says that texts begin with that token, which nobody else can know."""
    tokenizer, plain = byte_tokenizer(), tiny_model("llama", seed=1)
    made = processor_of(exports["one network"])
    with pytest.raises(ValueError, match=r"left padding cannot be right.*begins_with_pad=True"):
        speak(plain, made(plain, tokenizer=tokenizer), **{"ids": padded()["input_ids"]})
    ids = IDS.clone()
    ids[:, 0] = 0
    how = {"attention_mask": torch.ones_like(ids)}
    expected = wrapper(tiny_model("llama", seed=1), tokenizer, tiny_adapter()).generate(ids, **how, **GREEDY)
    processor = made(plain, tokenizer=tokenizer, begins_with_pad=True)
    assert torch.equal(speak(plain, processor, ids, **how), expected)
    tokenizer.pad_token = None  # generate then pads with the token that ends texts
    plain.generation_config.pad_token_id = None
    ids[:, 0] = 2
    with pytest.raises(ValueError, match="left padding cannot be right"):
        speak(plain, made(plain, tokenizer=tokenizer), ids)


def test_a_second_text_is_refused_until_reset(exports: dict[str, Path]) -> None:
    """The same prompt again, another batch, a longer one, and a history that changed."""
    tokenizer, plain = byte_tokenizer(), tiny_model("llama", seed=1)
    processor = processor_of(exports["one network"])(plain, tokenizer=tokenizer)
    first = speak(plain, processor, IDS)
    scores = torch.zeros(2, 97)
    changed = first.clone()
    changed[1, 0] = 5
    for ids in (IDS, IDS[:1], torch.cat([first, IDS], dim=1), changed):
        with pytest.raises(ValueError, match=r"For another text call reset\(\) first"):
            processor(ids, scores[: len(ids)])
    processor.reset()
    assert torch.equal(speak(plain, processor, IDS), first)
    with pytest.raises(ValueError, match="expected scores of 97 tokens; got 98"):
        processor(IDS, torch.zeros(2, 98))


@pytest.mark.parametrize("speculation", ["prompt lookup", "an assistant"])
def test_speculation_is_right_or_refused(speculation: str, exports: dict[str, Path]) -> None:
    """Where all guesses hold, texts only grow; where one is taken back, the processor raises."""
    tokenizer, plain = byte_tokenizer(), tiny_model("llama", seed=1)
    model = wrapper(tiny_model("llama", seed=1), tokenizer, tiny_adapter())
    how = {"prompt_lookup_num_tokens": 4} if speculation == "prompt lookup" else {}
    if not how:
        how = {"assistant_model": tiny_model("gpt2", seed=5)}
    made, refused = processor_of(exports["one network"]), 0
    for ids in REPEATING:
        try:
            found = speak(plain, made(plain, tokenizer=tokenizer), ids, **how)
        except ValueError as error:
            refused += "texts change places or are taken back" in str(error)
        else:
            assert torch.equal(found, model.generate(ids, **GREEDY))
    assert refused > 0
