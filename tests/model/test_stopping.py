"""An answer ends at what its adapters record, in every mode of decoding, and at nothing that the prompt says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from transformers import AutoTokenizer, GenerationConfig, TextStreamer, pipeline

from testkit.reference_models import gemma_3_270m, smollm2_instruct
from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.forward.stops import StreamedAnswer, until
from valueadapter.model.stopping import AnswerEnds

LENGTH = 12
GREEDY: dict[str, Any] = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0}
IDS = torch.randint(3, 97, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, :3] = 0
TOKENIZER = byte_tokenizer()
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "sampling": {"do_sample": True},
    "several answers": {"do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "chunked prefill": {"prefill_chunk_size": 3},
    "no end of sequence": {"eos_token_id": None},
}
Made = Callable[..., ValueAdapterForCausalLM]


@pytest.fixture
def made() -> Made:
    """A base with adapters, name -> the texts that each records."""

    def make(**stop_strings: tuple[str, ...]) -> ValueAdapterForCausalLM:
        model = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=TOKENIZER).eval()
        for index, (name, texts) in enumerate(stop_strings.items()):
            network = tiny_model("qwen3", seed=5 + index)
            adapter = ValueAdapter.from_networks([network], TOKENIZER, base_model_name_or_path="a/b")
            model.add_adapter(adapter.with_config(stop_strings=texts), name, scale=0.7)
        return model

    return make


def answers(model: ValueAdapterForCausalLM, **how: Any) -> list[str]:
    """What it says to each row of the batch, padding left out."""
    torch.manual_seed(0)
    out = model.generate(IDS, attention_mask=MASK, **{**GREEDY, **how})
    return [TOKENIZER.decode(row, skip_special_tokens=True) for row in out[:, IDS.shape[1] :].tolist()]


def cut(text: str, stop: str) -> str:
    """A text up to the end of a stop string."""
    return text[: text.find(stop) + len(stop)] if stop in text else text


def a_stop(texts: list[str], size: int = 2) -> str:
    """Two characters that are in one of the texts before its end, and not in all."""
    for text in texts:
        for place in range(1, len(text) - size - 2):
            stop = text[place : place + size]
            if len(set(stop)) == size and sum(stop in other for other in texts) < len(texts):
                return stop
    raise AssertionError("no text has such a place")


@pytest.mark.parametrize("mode", MODES)
def test_an_answer_ends_at_what_is_recorded(made: Made, mode: str) -> None:
    """Each row at its own place, behind which it is padded; the others go on as they would."""
    how = MODES[mode]
    whole = answers(made(one=()), **how)
    stop = a_stop(whole)
    expected = [cut(text, stop) for text in whole]
    assert expected != whole
    if "do_sample" not in how:  # where rows end, others draw otherwise
        assert answers(made(one=(stop,)), **how) == expected
    found = answers(made(one=(stop,)), **how)
    assert any(text.endswith(stop) for text in found)
    assert all(cut(text, stop) == text for text in found)
    for off in ([], None):
        assert answers(made(one=(stop,)), stop_strings=off, **how) == whole
    assert answers(made(one=()), stop_strings=stop, **how) == found
    assert answers(made(one=("\x01",)), stop_strings=[stop], **how) == found


@pytest.mark.parametrize("beams", [2, 3])
def test_beams_that_come_to_an_end_are_finished(made: Made, beams: int) -> None:
    """None of them goes on behind it; several answers for a prompt stand in its rows."""
    how = {"num_beams": beams, "num_return_sequences": 2, "eos_token_id": 2}
    stop = a_stop(answers(made(one=()), **how), size=1)
    found = answers(made(one=(stop,)), **how)
    assert any(text.endswith(stop) for text in found)
    assert all(cut(text, stop) == text for text in found)
    assert answers(made(one=(stop,)), stop_strings=[], **how) == answers(made(one=()), **how)


@pytest.mark.parametrize("mode", ["greedy", "beams"])
def test_each_row_ends_at_its_own_adapters_texts(made: Made, mode: str) -> None:
    """A row of the base alone, or of an adapter that records nothing, is not ended by another row's."""
    how: dict[str, Any] = {"num_beams": 2, "eos_token_id": 2} if mode == "beams" else {}
    for names in (["one", None, "two"], ["two", "one", None], [None, ["one", "two"], "one"]):
        whole = answers(made(one=(), two=()), adapter_names=names, **how)
        stop = a_stop(whole, size=1)
        found = answers(made(one=(stop,), two=()), adapter_names=names, **how)
        for row, name in enumerate(names):
            ends = name is not None and "one" in name
            if not ends:
                assert found[row] == whole[row]
            elif mode == "greedy":
                assert found[row] == cut(whole[row], stop)
            assert not ends or cut(found[row], stop) == found[row]


@pytest.mark.parametrize("row", [0, 2])
@pytest.mark.parametrize("by", ["an assistant", "an assistant with adapter", "prompt lookup"])
@pytest.mark.parametrize("size", [1, 2])
def test_guesses_do_not_go_beyond_an_end(made: Made, by: str, size: int, row: int) -> None:
    """Assisted decoding accepts several tokens at once, and gives what decoding one by one gives."""
    model = made(one=())
    how: dict[str, Any] = {"prompt_lookup_num_tokens": 5} if by == "prompt lookup" else {}
    prompt = IDS[row : row + 1]
    said = model.generate(prompt, **GREEDY)
    ids = torch.cat([said, prompt], dim=1) if how else prompt  # so that lookup finds the answer
    whole = model.generate(ids, **GREEDY)[0, ids.shape[1] :].tolist()
    stop = TOKENIZER.decode(whole)[4 : 4 + size]
    ending = made(one=(stop,))
    if not how:
        how["assistant_model"] = made(one=(stop,)) if by.endswith("adapter") else made(one=())
    expected = ending.generate(ids, **GREEDY)
    assert expected.shape[1] < ids.shape[1] + LENGTH
    assert torch.equal(ending.generate(ids, **GREEDY, **how), expected)
    assert torch.equal(ending.generate(ids, **GREEDY, stop_strings=[], **how)[0, ids.shape[1] :], torch.tensor(whole))


@pytest.mark.parametrize("by", ["an assistant", "prompt lookup"])
@pytest.mark.parametrize("row", [0, 2])
def test_guesses_for_the_base_alone_do_not_go_beyond_an_end(made: Made, by: str, row: int) -> None:
    """Where no adapter acts and the caller names an end, the same holds."""
    model = made(one=())
    prompt = IDS[row : row + 1]
    with model.disable_adapter():
        said = model.generate(prompt, **GREEDY)
        ids = torch.cat([said, prompt], dim=1) if by == "prompt lookup" else prompt
        whole = model.generate(ids, **GREEDY)[0, ids.shape[1] :]
        stop = TOKENIZER.decode(whole)[4:6]
        how = {"prompt_lookup_num_tokens": 5} if by == "prompt lookup" else {"assistant_model": model.base}
        expected = model.generate(ids, stop_strings=stop, **GREEDY)
        assert expected.shape[1] < ids.shape[1] + LENGTH
        assert torch.equal(model.generate(ids, stop_strings=stop, **GREEDY, **how), expected)


@pytest.mark.parametrize("wrong", [[""], [3], ["a", None]])
def test_ends_that_are_none_are_refused(made: Made, wrong: Any) -> None:
    """An empty text would end every answer at once."""
    with pytest.raises(ConfigError, match="must be texts that are not empty"):
        made(one=()).generate(IDS, stop_strings=wrong, **GREEDY)


def test_what_the_prompt_says_is_no_part_of_the_answer(made: Made) -> None:
    """A prompt that ends with an end, or with half of one that the answer's first token completes."""
    said = answers(made(one=()))[0]
    begun = TOKENIZER.decode(IDS[0, -1:]) + said[0]  # half in the prompt
    assert answers(made(one=(begun,)))[0] == cut(said, begun)
    assert len(answers(made(one=(TOKENIZER.decode(IDS[0, -2:]),)))[0]) == LENGTH
    assert answers(made(one=(said[:2],)))[0] == said[:2]  # an end is an end, where nothing stands before it, too


def test_the_base_alone_is_ended_by_nothing(made: Made) -> None:
    """Nor is one whose adapters are at scale 0; but by what the caller names, it is."""
    whole = answers(made())
    model = made(one=tuple(text[3] for text in whole))
    with model.disable_adapter():
        assert answers(model) == whole
        assert answers(model, stop_strings=whole[0][4]) == [cut(text, whole[0][4]) for text in whole]
        assert answers(model, stop_strings=[]) == whole
    model.set_scale("one", 0.0)
    assert answers(model) == whole
    assert answers(model, adapter_names=[None] * 3) == whole


def test_settings_that_name_a_text_are_the_callers_choice(made: Made) -> None:
    """They hold in place of what is recorded, as transformers understands them."""
    whole = answers(made(one=()))
    model = made(one=(whole[0][1],))
    settings = GenerationConfig(**GREEDY, stop_strings=[whole[0][5]])
    found = model.generate(IDS[:1], generation_config=settings, tokenizer=TOKENIZER)[0, 7:]
    assert TOKENIZER.decode(found) == cut(whole[0], whole[0][5])


def test_streams_and_own_decoding_loops_end_there(made: Made) -> None:
    """What is streamed is what is returned; a loop that the caller brings is handed the criterion."""
    stop = a_stop(answers(made(one=())))
    model = made(one=(stop,))
    row = next(index for index, text in enumerate(answers(model)) if text.endswith(stop))
    inputs = {"input_ids": IDS[row : row + 1], "attention_mask": MASK[row : row + 1]}
    streamed: list[str] = []

    class Kept(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            streamed.append(text)

    model.generate(**inputs, **GREEDY, streamer=Kept(TOKENIZER, skip_prompt=True))
    assert "".join(streamed) == answers(model)[row]

    def loop(model: Any, input_ids: torch.Tensor, stopping_criteria: Any, **rest: Any) -> torch.Tensor:
        while not stopping_criteria(input_ids, None).all():
            logits = model(input_ids, attention_mask=None, use_cache=False).logits
            input_ids = torch.cat([input_ids, logits[:, -1:].argmax(-1)], dim=1)
        return input_ids

    own = model.generate(IDS[:1], **GREEDY, custom_generate=loop)
    assert torch.equal(own, model.generate(IDS[:1], **GREEDY))


def test_a_pipeline_ends_there(made: Made) -> None:
    """As `generate` does, and with `stop_strings=[]` it does not."""
    prompt = TOKENIZER.decode(IDS[0])
    how: dict[str, Any] = {"max_new_tokens": LENGTH, "do_sample": False, "return_full_text": False}
    whole = pipeline("text-generation", model=made(one=()), tokenizer=TOKENIZER)(prompt, **how)[0]["generated_text"]
    speak = pipeline("text-generation", model=made(one=(whole[2:4],)), tokenizer=TOKENIZER)
    assert speak(prompt, **how)[0]["generated_text"] == cut(whole, whole[2:4])
    assert speak(prompt, **how, stop_strings=[])[0]["generated_text"] == whole


def test_it_is_said_once(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    """With how to switch it off; and not where nothing is recorded, or it is switched off."""
    model = made(one=("QQ",))
    with caplog.at_level(logging.INFO, logger="valueadapter"):
        answers(made(one=()))
        answers(model, stop_strings=[])
        assert "answers end" not in caplog.text
        answers(model)
        answers(model)
    assert [one.getMessage() for one in caplog.records if "answers end at 'QQ'" in one.getMessage()] == [
        "answers end at 'QQ', which stands between the examples of the prefix; stop_strings=[] switches that off"
    ]


def test_texts_end_where_they_should() -> None:
    """A stream shows what it can and holds back what may be the beginning of an end."""
    assert (until("a\n\nb", ["\n\n"]), until("ab", ["\n\n"]), until("a#b\n\n", ["\n\n", "#"])) == ("a", "ab", "a")
    for pieces in (["a\n", "\nb", "c"], ["a\n\n", "b"], ["a", "\n", "\n"]):
        stream = StreamedAnswer(["\n\n"])
        shown = [stream.add(piece) for piece in pieces]
        assert "".join(shown) + stream.add("", last=True) == "a", pieces
    stream = StreamedAnswer(["\n\n", "END"])
    assert [stream.add("a\n"), stream.add("b E"), stream.add("N"), stream.add("", last=True)] == ["a", "\nb ", "", "EN"]


@pytest.mark.real
@pytest.mark.parametrize("folder", [smollm2_instruct, gemma_3_270m])
def test_real_vocabularies_end_at_blank_lines(folder: Callable[[], Any]) -> None:
    """In one token, in two, with text around, behind a prompt that ends with a line; not after one line end."""
    tokenizer = AutoTokenizer.from_pretrained(folder())
    prompt = tokenizer("Q: a\n", return_tensors="pt")["input_ids"]
    ends = AnswerEnds([["\n\n"]], tokenizer, begin=prompt.shape[1])
    for said, over in (("\n", False), (" Paris\n", False), (" Paris\n\n", True), ("\n\n", True), (" x \n\n\n y", True)):
        ids = tokenizer(said, add_special_tokens=False, return_tensors="pt")["input_ids"]
        steps = [bool(ends(torch.cat([prompt, ids[:, : 1 + step]], dim=1), None)) for step in range(ids.shape[1])]
        assert any(steps) == over, (said, steps)
    line = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert bool(ends(torch.cat([prompt, torch.tensor([line + line])], dim=1), None))
