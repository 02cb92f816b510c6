"""The byte view of vocabularies and what their fingerprints see."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from valueadapter import AlignmentError
from valueadapter.vocabulary.byte_view import Vocabulary, byte_of_character

TEXT = byte_tokenizer().backend_tokenizer.to_str()


def sentencepiece() -> str:
    pieces = [("<unk>", 0.0), ("\u2581a", -1.0), ("b", -2.0), ("<0x0A>", -3.0)]
    return str(Tokenizer(models.Unigram(pieces, 0, byte_fallback=True)).to_str())


def test_byte_level_characters_stand_for_all_bytes() -> None:
    """256 characters, 256 bytes."""
    assert sorted(byte_of_character().values()) == list(range(256))


@given(st.text("ABCdef !~", max_size=12))
def test_tokens_spell_the_text(text: str) -> None:
    """Put together, the bytes of a text's tokens are the text (spaces aside, which this vocabulary lacks)."""
    vocabulary = Vocabulary.from_tokenizer_json(TEXT)
    ids = Tokenizer.from_str(TEXT).encode(text).ids
    assert b"".join(vocabulary.tokens[i] for i in ids) == text.replace(" ", "").encode()


def test_sentencepiece_spaces_and_lone_bytes() -> None:
    """`▁` is a space, `<0x0A>` a newline."""
    tokens = Vocabulary.from_tokenizer_json(sentencepiece()).tokens
    assert (tokens[1], tokens[2], tokens[3]) == (b" a", b"b", b"\n")


def test_rows_without_tokens_change_no_fingerprint() -> None:
    """Padding of the logits is no part of the vocabulary; tokens beyond the rows are none either."""
    vocabulary = Vocabulary.from_tokenizer_json(TEXT)
    assert vocabulary.byte_fingerprint(97) == vocabulary.byte_fingerprint(128)
    assert vocabulary.byte_fingerprint(96) != vocabulary.byte_fingerprint(97)
    assert vocabulary.differences(97, vocabulary, 128) == []


def changed(how: str) -> str:
    backend = Tokenizer.from_str(TEXT)
    if how == "normaliser":
        backend.normalizer = normalizers.Lowercase()
    elif how == "pre-tokenizer":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    state = json.loads(backend.to_str())
    if how == "token":
        state["model"]["vocab"]["\u0120"] = state["model"]["vocab"].pop("A")
    elif how == "control":
        state["added_tokens"][1]["special"] = False
    return json.dumps(state)


@pytest.mark.parametrize("how", ["normaliser", "token", "control"])
def test_a_change_is_seen_and_shown(how: str) -> None:
    """Normaliser, a token's text, what counts as a control token: each is another vocabulary."""
    mine, other = Vocabulary.from_tokenizer_json(TEXT), Vocabulary.from_tokenizer_json(changed(how))
    (line,) = mine.differences(97, other, 97)
    shown = {
        "normaliser": "split in another way",
        "token": "id 35: 'A' against ' '",
        "control": "'<s>' (control) against",
    }
    assert shown[how] in line


def test_what_is_no_tokenizer_is_refused() -> None:
    """The message says what came of it."""
    with pytest.raises(AlignmentError, match="not a tokenizer"):
        Vocabulary.from_tokenizer_json("{}")
