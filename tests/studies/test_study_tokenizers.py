"""Tokenizers of our own give every text back, and are the same whenever they are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from studies.material.study_tokenizers import CONTROLS, bpe_tokenizer, byte_tokenizer
from valueadapter.vocabulary.byte_view import Vocabulary

TEXTS = [
    "The readers read 1984 again and again.",
    "def f(x):\n\treturn  x\r\n",
    "Où est-ce, 世界? 👩\u200d💻 e\u0301",
    " \n ",
]


def bpe() -> PreTrainedTokenizerFast:
    return bpe_tokenizer(TEXTS * 5, size=300, context=64)


MAKERS = [pytest.param(bpe, id="bpe"), pytest.param(lambda: byte_tokenizer(context=64), id="bytes")]


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_from_a_saved_tokenizer(
    maker: Callable[[], PreTrainedTokenizerFast], text: str, tmp_path: Path
) -> None:
    """Every byte of UTF-8 has a token, and nothing is put around a text."""
    maker().save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded(text)["input_ids"]
    assert loaded.decode(ids, clean_up_tokenization_spaces=False) == text
    assert not set(ids) & set(loaded.all_special_ids)
    assert ids == maker()(text)["input_ids"]


@pytest.mark.parametrize("maker", MAKERS)
def test_vocabulary_spells_text(maker: Callable[[], PreTrainedTokenizerFast]) -> None:
    """Alignments read the tokens' bytes: all 256 are there, and the three controls are special."""
    vocabulary = Vocabulary.from_tokenizer_json(maker().backend_tokenizer.to_str())
    assert vocabulary.spells_text
    assert {bytes([byte]) for byte in range(256)} <= set(vocabulary.tokens.values())
    assert {vocabulary.tokens[token].decode() for token in vocabulary.special} == set(CONTROLS)


@pytest.mark.parametrize("maker", MAKERS)
def test_controls_have_their_parts(maker: Callable[[], PreTrainedTokenizerFast]) -> None:
    """Training ends a text and pads a batch with different tokens, and the context is the model's."""
    tokenizer = maker()
    assert [tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token] == CONTROLS
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer.model_max_length == 64


def test_id_is_the_byte() -> None:
    """The byte vocabulary needs no table, and its controls follow."""
    tokenizer = byte_tokenizer(context=64)
    assert tokenizer("é \n")["input_ids"] == list("é \n".encode())
    assert tokenizer.convert_tokens_to_ids(CONTROLS) == [256, 257, 258]
    assert len(tokenizer) == 259


def test_merges_are_learned_and_digits_stay_single() -> None:
    """A BPE of the size asked for that shortens text, but never joins digits; the same texts make the same one."""
    tokenizer = bpe()
    assert len(tokenizer) == 300
    assert len(tokenizer(TEXTS[0])["input_ids"]) < len(TEXTS[0])
    assert tokenizer.tokenize("1984") == ["1", "9", "8", "4"]
    assert bpe().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
