"""Tokenizers that look far ahead: what is settled stays, whatever comes; and what is read is cheap where it can be."""

from __future__ import annotations

import functools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_context import SIDES, whole
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from vocabularies import CORPUS, KINDS

from valueadapter.alignment import Side
from valueadapter.context import ContextAligner, Reading

O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PATTERNS = {
    "digits from the right": r"\d{1,3}(?=(?:\d{3})*\b)",
    "digits and commas from the right": r"\d{1,3}(?=(?:[\d,]{3})*(?![\d,]))",
    "digits before a unit": r"\d(?=\d*%)|\d+",
    "o200k": O200K,
    "llama 3": LLAMA3,
    "quoted at once": r'"[^"]*"|\S+|\s+',
    "until the line ends": r"#(?=.*!)|\w+|\s+|[^\w\s]+",
    "far ahead over lines": r"\w(?=[\s\S]*END)|\w+|\s+|[^\w\s]+",
    "white space runs": r"\s+(?=\S)|\S+|\s+",
    "tags": r"<(?:[^<>]|\s)+>|\S+|\s+",
}
SEEDS = [
    *CORPUS,
    "123456789012345678901234567890 1,234,567,890 12% 1234567890% ABCDEFGHIJKLMNOP\u6771\u4eacABCDEFGHa 'tis <a b c> ",
    '"a quoted text" "an" # so it is! ////\n/\n/\n----==== \u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd END',
]
PIECES = (
    *("1234567890", "1", "12", ",", "%", ".", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "a", "\u6771\u4eac\u306f", "'", "'re", '"'),
    *(" ", "      ", "\n", "\n/", "\t", "#", "!", "<", ">", "END", "the quick ", "dog", "\u3000", "-", "e\u0301"),
)
texts = st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 9)).map(lambda p: p[0] * p[1]), max_size=30).map(
    "".join
)


@functools.cache
def side_of(name: str, *, words: bool = True) -> Side:
    """A byte-level tokenizer whose pre-tokenizer has one of PATTERNS, before GPT-2's where `words`."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=words)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SEEDS * 3, trainer)
    return Side(backend.to_str(), backend.get_vocab_size(), "</s>")


def check_every_push(value: Side, text: str, base: str = "characters") -> ContextAligner:
    """After every base token the ids are those of the whole text so far."""
    reading = Reading.between(value, SIDES[base])
    aligner, ids = ContextAligner(reading), SIDES[base].encoder.encode(text, start=True)
    for step in range(len(ids)):
        aligner.push(ids[step : step + 1])
        assert aligner.ids == whole(reading, ids[: step + 1])
    return aligner


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=30, deadline=None)
@given(text=texts)
@example(text="There were 1" + "234" * 40 + " of them, 1" + "234" * 40)
@example(text="The dog. " * 9 + "\u6771\u4eac" + "A" * 60 + "b")
@example(text="The dog. " * 9 + '"' + "it is there " * 20 + '" again')
def test_ids_are_those_of_the_whole_text_however_far_it_looks(name: str, words: bool, text: str) -> None:
    """Later text may regroup a run of any length; a part of it that was settled could not be regrouped."""
    check_every_push(side_of(name, words=words), text, "bytes")


@pytest.mark.parametrize("value", KINDS)
@settings(max_examples=30, deadline=None)
@given(text=texts)
def test_ids_are_those_of_the_whole_text_in_long_runs(value: str, text: str) -> None:
    """The ordinary kinds of tokenizers, on runs of one kind of character."""
    check_every_push(SIDES[value], text, "coarse bytes" if value != "coarse bytes" else "bytes")
