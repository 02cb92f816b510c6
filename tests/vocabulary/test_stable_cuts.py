"""Tokenizers that look far ahead: what is settled stays, whatever comes; and what is read is cheap where it can be."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_retokenizer import SIDES, whole
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from vocabularies import CORPUS, KINDS

from valueadapter.vocabulary.model_vocabulary import ModelVocabulary
from valueadapter.vocabulary.retokenizer import Retokenizer, RetokenizingRules
from valueadapter.vocabulary.stable_cuts import barriers

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
    "tags": r"<(?:[^<>\s]|\s)+>|\S+|\s+",
}
SEEDS = [
    *CORPUS,
    "123456789012345678901234567890 1,234,567,890 12% 1234567890% ABCDEFGHIJKLMNOP\u6771\u4eacABCDEFGHa 'tis <a b c> ",
    '"a quoted text" "an" # so it is! ////\n/\n/\n----==== \u6771\u4eac\u306f\u65e5\u672c\u306e\u9996\u90fd END',
]
PIECES = (
    *("1234567890", "1", "12", ",", "%", ".", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "a", "\u6771\u4eac\u306f", "'", "'re", '"'),
    *(
        " ",
        "      ",
        "\n",
        "\n/",
        "\t",
        "#",
        "!",
        "<",
        ">",
        "END",
        "the quick ",
        "dog",
        "\u3000",
        "-",
        "e\u0301",
        "\u3002",
        "\uff0c\u3002",
    ),
)
texts = st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 9)).map(lambda p: p[0] * p[1]), max_size=30).map(
    "".join
)


@functools.cache
def side_of(name: str, *, words: bool = True) -> ModelVocabulary:
    """A byte-level tokenizer whose pre-tokenizer has one of PATTERNS, before GPT-2's where `words`."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=words)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SEEDS * 3, trainer)
    return ModelVocabulary(backend.to_str(), backend.get_vocab_size(), "</s>")


def check_every_push(value: ModelVocabulary, text: str, base: str = "characters") -> Retokenizer:
    """After every base token the ids are those of the whole text so far."""
    reading = RetokenizingRules.between(value, SIDES[base])
    aligner, ids = Retokenizer(reading), SIDES[base].encoder.encode(text, start=True)
    for step in range(len(ids)):
        aligner.push(ids[step : step + 1])
        assert aligner.ids == whole(reading, ids[: step + 1])
    return aligner


@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("name", PATTERNS)
@settings(max_examples=30, deadline=None)
@given(text=texts)
@example(text="There were 1" + "234" * 40 + " of them, 1" + "234" * 40)
@example(text="The dog. " * 9 + "\u6771\u4eac" + "ABCDEFGH" * 9 + "a")
@example(text="\u6771\u4eac\u306f\u3001\u9996\u90fd\u3002" * 20)
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


FAR = {
    "quoted at once": "",
    "far ahead over lines": "",
    "tags": "",
    "until the line ends": "\n",
    "o200k": " \t\u3000",
    "llama 3": " \n\t\r\u3000",
    "digits from the right": " \n\t\r\u3000",
}


@pytest.mark.parametrize("name", FAR)
def test_what_holds_a_pattern_back(name: str) -> None:
    """White space that a pattern repeats together with text is no place to cut, whichever way it is written."""
    state = {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": PATTERNS[name]}}, "normalizer": None}
    found = barriers(state, Tokenizer(models.BPE()))
    assert "".join(one for one in found if one.isspace()) == FAR[name]


@pytest.mark.parametrize(
    ("pattern", "far"),
    [
        *(
            (r"\d+(?=(?:\d{3})*\b)", False),
            (r"\p{L}++|\s*+$", False),
            (r"(?i:a|b)*", False),
            (r"[\p{L}&&[^\p{Han}]]+", False),
        ),
        *((r"(?:\w|\s)+", True), (r"(\w+\s*)*x", True), (r"[^x]{3,}", True), (r"\D+", True), (r"(?=[\s\S]*?x)", True)),
        *(
            (r"(?:a(?:\s|b))+", True),
            (r"[^\]x]+", True),
            (r"[^\s\]]+", False),
            (r"\S{1,9}\s{2}", False),
            (r"\X+", True),
        ),
    ],
)
def test_patterns_that_repeat_white_space_with_text(pattern: str, far: bool) -> None:
    """Groups, classes within classes, bounded and unbounded repetition."""
    state = {"normalizer": {"type": "Replace", "pattern": {"Regex": pattern}, "content": ""}, "pre_tokenizer": None}
    assert (" " not in barriers(state, Tokenizer(models.BPE()))) is far


def test_steps_of_unknown_kinds_hold_nothing_back() -> None:
    """What is not known to look a short way ahead may look far."""
    state = {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "SomethingNew"}]}, "normalizer": None}
    assert barriers(state, Tokenizer(models.BPE())) == ""


def test_a_normaliser_that_writes_spaces_otherwise_is_looked_through() -> None:
    """A pattern that meets the written form repeats it with text."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^ \n]+"), "isolated")
    state = json.loads(backend.to_str())
    assert " " not in barriers(state, backend)
    assert "\n" in barriers(state, backend)


@pytest.mark.parametrize("value", [*KINDS, *PATTERNS])
def test_the_text_that_is_encoded_again_stays_short(value: str) -> None:
    """Prose, code and Chinese cost the same however long they are, where no pattern looks past white space."""
    side = SIDES[value] if value in SIDES else side_of(value)
    base = "coarse bytes" if value != "coarse bytes" else "bytes"
    for text in ("The readers read 12345 foxes, and the fox reads. " * 20, "def f(x):\n    return x ** 2\n\n" * 30):
        aligner = Retokenizer(RetokenizingRules.between(side, SIDES[base]))
        longest = 0
        for token in SIDES[base].encoder.encode(text, start=True):
            aligner.push([token])
            longest = max(longest, len(aligner._tail))
        assert longest < 300 or (value in FAR and " " not in FAR[value]), value
