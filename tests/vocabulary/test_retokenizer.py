"""The value network's text in step with the base's: after every push it is the whole text encoded at once."""

from __future__ import annotations

import codecs
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from vocabularies import KINDS, TEXTS, tokenizer_of

from valueadapter.vocabulary.model_vocabulary import ModelVocabulary
from valueadapter.vocabulary.retokenizer import Retokenizer, RetokenizingRules

PAIRS = [(b, v) for b in KINDS for v in KINDS if b != v]
PIECES = (
    *("the ", "quick ", "readers", "1860", "12345", "3.14", "\r\n", "\n\n", "\t", "    ", "def f(x):", "  # "),
    *("e\u0301", "\u00e9", "\ufb01ne", "\u6771\u4eac", "\u0645\u0631", "\U0001f469\u200d\U0001f4bb", "\U0001f1eb"),
    *("<|end|>", "</s>", "<s>", "<pad>", "<0x0A>", "\u00a0", "\u200b", "\u2581", "a", "Z", ".", "'s", " "),
)
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=60).map("".join)


def side(kind: str) -> ModelVocabulary:
    tokenizer = tokenizer_of(kind)
    return ModelVocabulary(tokenizer.backend_tokenizer.to_str(), len(tokenizer), tokenizer.eos_token)


SIDES = {kind: side(kind) for kind in KINDS}


def reading(base: str, value: str) -> RetokenizingRules:
    return RetokenizingRules.between(SIDES[value], SIDES[base])


def whole(reading: RetokenizingRules, ids: list[int]) -> list[int]:
    """What encoding all of the text at once gives (texts without control tokens)."""
    data = b"".join(reading.data[token] for token in ids)
    text = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
    if reading.opens_with_space:
        text = text.removeprefix(" ")
    return [*reading.encoder.prefix, *(reading.encoder.encode(text, start=True) if text else [])]


def base_ids(kind: str, text: str) -> list[int]:
    return SIDES[kind].encoder.encode(text, start=True)


@pytest.mark.parametrize(("base", "value"), PAIRS)
@settings(max_examples=25, deadline=None)
@given(text=texts)
def test_ids_are_those_of_the_whole_text_at_every_step(base: str, value: str, text: str) -> None:
    """Whatever the two vocabularies and the text; and rollback and new ids say what changed."""
    between = reading(base, value)
    aligner, ids = Retokenizer(between), base_ids(base, text)
    for step in range(len(ids)):
        before = aligner.ids.copy()
        rollback, new = aligner.push(ids[step : step + 1])
        assert aligner.ids == [*before[: len(before) - rollback], *new]
        assert aligner.ids == whole(between, ids[: step + 1])


@pytest.mark.parametrize(("base", "value"), PAIRS)
@settings(max_examples=10, deadline=None)
@given(text=texts, cuts=st.lists(st.integers(1, 9), max_size=40), back=st.lists(st.integers(0, 12), max_size=40))
def test_taking_back_is_never_having_read(base: str, value: str, text: str, cuts: list[int], back: list[int]) -> None:
    """Pushes of any size, each followed by taking some tokens back: the rest reads as if alone."""
    between = reading(base, value)
    aligner, ids, kept = Retokenizer(between), base_ids(base, text), []
    for size, gone in zip(cuts, back, strict=False):
        chunk, ids = ids[:size], ids[size:]
        aligner.push(chunk)
        kept += chunk
        gone = min(gone, len(kept))
        before = aligner.ids.copy()
        unchanged = aligner.pop(gone)
        del kept[len(kept) - gone :]
        assert aligner.base_ids == kept
        assert aligner.ids == whole(between, kept)
        assert aligner.ids[:unchanged] == before[:unchanged]


def test_a_copy_goes_on_alone() -> None:
    """Beams share what they have read and nothing after."""
    aligner = Retokenizer(reading("coarse bytes", "bytes"))
    ids = base_ids("coarse bytes", TEXTS[1])
    aligner.push(ids[:9])
    twin = aligner.copy()
    twin.push(ids[9:])
    twin.pop(len(ids) - 4)
    assert aligner.ids == whole(aligner.reading, ids[:9])
    assert twin.ids == whole(aligner.reading, ids[:4])


def test_text_never_becomes_a_control_token() -> None:
    """Not even where the value tokenizer's own model has the control token as a piece (Unigram)."""
    for base, value in PAIRS:
        aligner = Retokenizer(reading(base, value))
        aligner.push(base_ids(base, "It is <|end|> what </s> <s> it is"))
        text = aligner.ids[len(aligner.reading.encoder.prefix) :]
        controls = SIDES[value].vocabulary.special - {0}  # <pad> is also what stands for the unknown
        assert not controls & set(text), (base, value)


def test_the_end_of_a_text_is_read_as_the_networks_own() -> None:
    """Base end of text -> value end of text; its beginning and its turns are read as nothing."""
    aligner = Retokenizer(reading("sentencepiece", "bytes"))
    hello = base_ids("sentencepiece", "the dog")
    aligner.push([1, 3, *hello])
    assert aligner.ids == SIDES["bytes"].encoder.encode("the dog", start=True)
    aligner.push([2, *hello])
    assert aligner.ids.count(SIDES["bytes"].eos) == 1
    aligner.pop(len(hello) + 1)
    assert aligner.ids == SIDES["bytes"].encoder.encode("the dog", start=True)


def test_what_stands_before_every_text_stays_before_it() -> None:
    """Before text, before a chat prompt, whose own beginning is left out, in a copy, and after taking all back."""
    between = reading("coarse bytes", "sentencepiece")
    start = list(between.encoder.prefix)
    assert start
    lead = [*start, 40, 41]
    aligner = Retokenizer(between, lead)
    ids = base_ids("coarse bytes", "the dog")
    aligner.push(ids)
    text = between.encoder.encode("the dog", start=True)
    assert aligner.ids == [*lead, *text]
    twin = aligner.copy()
    twin.push_prompt(ids, [*start, 50, 51])
    assert twin.ids == [*lead, 50, 51]
    assert aligner.ids == [*lead, *text]
    aligner.pop(len(ids))
    assert aligner.ids == lead


def test_half_a_character_is_held_back() -> None:
    """No value token until the bytes are a character, and the right one then."""
    between = reading("bytes", "sentencepiece")
    aligner = Retokenizer(between)
    ids = [SIDES["bytes"].vocabulary.by_bytes(10**6)[bytes([byte])] for byte in "\U0001f469".encode()]
    assert [aligner.push([token]) for token in ids[:3]] == [(0, [])] * 3
    assert aligner.push(ids[3:]) == (0, between.encoder.encode("\U0001f469", start=True))


def test_a_long_text_is_not_encoded_again_with_every_token() -> None:
    """The tail that is encoded anew stays short, for tokenizers with and without a pre-tokenizer."""
    for value in ("bytes", "coarse bytes", "metaspace", "sentencepiece", "unigram"):
        base = "coarse bytes" if value != "coarse bytes" else "bytes"
        aligner = Retokenizer(reading(base, value))
        for token in base_ids(base, "The quick brown fox jumps over the lazy dog, again and again. " * 20):
            aligner.push([token])
        assert len(aligner._tail) < 300, value


def test_an_added_token_is_not_cut_in_two() -> None:
    """What the pre-tokenizer takes for a boundary lies inside a token that was added as a whole."""
    state = json.loads(SIDES["bytes"].tokenizer_json)
    added = {**state["added_tokens"][0], "id": SIDES["bytes"].width, "content": "lazy dog, again and", "special": False}
    state["added_tokens"].append(added)
    value = ModelVocabulary(json.dumps(state), SIDES["bytes"].width + 1, "</s>")
    between = RetokenizingRules.between(value, SIDES["coarse bytes"])
    aligner, ids = (
        Retokenizer(between),
        base_ids("coarse bytes", "The fox. lazy dog, again and lazy dog, again " * 9),
    )
    for step in range(len(ids)):
        aligner.push(ids[step : step + 1])
        assert aligner.ids == whole(between, ids[: step + 1])
    assert aligner.ids.count(added["id"]) == 9


def test_a_part_of_a_chat_prompt_is_taken_back_as_a_whole() -> None:
    """Its two forms have no common places inside: nothing of it is read until its end has come again."""
    aligner = Retokenizer(reading("sentencepiece", "bytes"))
    aligner.push_prompt([1, 2, 3], [7, 8, 9, 10])
    ids = base_ids("sentencepiece", "the dog")
    aligner.push(ids)
    aligner.pop(len(ids))
    assert aligner.ids == [7, 8, 9, 10]
    for gone in (1, 1):
        assert aligner.pop(gone) == 0
        assert (aligner.ids, aligner.waiting) == ([], True)
    assert (aligner.base_ids, aligner.copy().waiting) == ([1], True)
    assert aligner.push_prompt([1, 2, 3], [7, 8, 9, 10]) == (0, [7, 8, 9, 10])
    assert not aligner.waiting
    aligner.pop(2)
    aligner.push(ids)  # no prompt after all
    assert (aligner.ids, aligner.base_ids) == (whole(aligner.reading, ids), [1, *ids])
    aligner.pop(len(ids) + 1)
    assert (aligner.ids, aligner.base_ids) == ([], [])


def test_ids_without_a_token_read_as_nothing() -> None:
    """Padded rows of the base's logits, and ids beyond them."""
    aligner = Retokenizer(reading("sentencepiece", "bytes"))
    assert aligner.push([10**6]) == (0, [])


def test_prefix_is_what_the_tokenizer_puts_first() -> None:
    """A beginning of sequence that only one side has is each side's own business."""
    for kind in KINDS:
        raw = Tokenizer.from_str(SIDES[kind].tokenizer_json)
        expected = [1] if kind in ("sentencepiece", "unigram") else []
        assert list(SIDES[kind].encoder.prefix) == expected == raw.encode("a").ids[: len(expected)]
