"""The map and the context in step hold on vocabularies of published models, not only on small ones."""

from __future__ import annotations

import functools
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_full_tokenizers import MARKS, NPM
from test_retokenizer import whole
from tokenizers import Tokenizer

from testkit.full_tokenizers import FULL_SIZE_TOKENIZERS, full_size_tokenizer
from testkit.texts import sample_texts
from valueadapter.vocabulary.alignment import NONE, VocabularyAlignment
from valueadapter.vocabulary.model_vocabulary import ModelVocabulary
from valueadapter.vocabulary.retokenizer import Retokenizer, RetokenizingRules

LENGTH, STEP, BACK = 2_000, 20, 50
DOMAINS = ("english", "chinese", "french", "python", "markdown")
OTHERS = [name for name in FULL_SIZE_TOKENIZERS if name != "smollm2"]
PAIRS = [*(("smollm2", name) for name in OTHERS), *((name, "smollm2") for name in OTHERS), ("llama-3", "qwen-3")]

pytestmark = pytest.mark.real


def marks_of(*names: str) -> list[pytest.MarkDecorator]:
    return [mark for name in names for mark in MARKS.get(name, [])]


pairs = pytest.mark.parametrize(
    ("value", "base"), [pytest.param(*pair, marks=marks_of(*pair), id=" on ".join(pair)) for pair in PAIRS]
)


def every_vocabulary() -> pytest.MarkDecorator:
    """Parametrises by name."""
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in FULL_SIZE_TOKENIZERS])


@functools.cache
def side(name: str) -> ModelVocabulary:
    folder = full_size_tokenizer(name)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    width = max(Tokenizer.from_str(text).get_vocab().values()) + 1
    return ModelVocabulary(text, width, eos_token(folder))


def eos_token(folder: Path) -> str | None:
    path = folder / "tokenizer_config.json"
    eos = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.is_file() else "<|endoftext|>"
    return eos["content"] if isinstance(eos, dict) else eos


@functools.cache
def alignment(value: str, base: str) -> VocabularyAlignment:
    return VocabularyAlignment.build(side(value), side(base))


@functools.cache
def texts() -> dict[str, str]:
    return sample_texts()


@pairs
def test_every_ordinary_token_that_can_be_spelled_has_a_source(value: str, base: str) -> None:
    """Only control tokens get the mean, and bytes that the value vocabulary lacks (SmolLM2: 21 values)."""
    built, vocabulary = alignment(value, base), side(base).vocabulary
    assert built.relation == "static"
    spelled = side(value).vocabulary.by_bytes(side(value).width)
    bare = [token for token in vocabulary.ordinary(side(base).width) if built.kind[token] == NONE]
    assert not [data for token in bare if (data := vocabulary.tokens[token])[:1] in spelled]


@pairs
def test_load_gives_what_was_saved(value: str, base: str, tmp_path: Path) -> None:
    """read(write(x)) == x."""
    built = alignment(value, base)
    built.save(tmp_path / "map")
    loaded = VocabularyAlignment.load(tmp_path / "map")
    assert np.array_equal(loaded.source, built.source)
    assert np.array_equal(loaded.kind, built.kind)
    assert (loaded.relation, loaded.stops) == (built.relation, built.stops)
    loaded.check(side(value).spec, side(base).spec)


@NPM
@pairs
@pytest.mark.parametrize("domain", DOMAINS)
def test_ids_are_those_of_the_whole_text(value: str, base: str, domain: str) -> None:
    """Token by token; and taking tokens back is never having read them."""
    between = RetokenizingRules.between(side(value), side(base))
    aligner, ids = Retokenizer(between), side(base).encoder.encode(texts()[domain][:LENGTH], start=True)
    for read, token in enumerate(ids, start=1):
        aligner.push([token])
        if read % STEP == 0 or read == len(ids):
            assert aligner.ids == whole(between, ids[:read])
    aligner.pop(BACK)
    assert aligner.ids == whole(between, ids[:-BACK])
    aligner.push(ids[-BACK:])
    assert aligner.ids == whole(between, ids)


def permuted(name: str) -> ModelVocabulary:
    """The same tokenizer, each of its model's ids the next one; tokens added behind the model cannot move."""
    state = json.loads(side(name).tokenizer_json)
    used = sorted(state["model"]["vocab"].values())
    move = dict(pairwise([*used, used[0]]))
    state["model"]["vocab"] = {text: move[index] for text, index in state["model"]["vocab"].items()}
    for added in state["added_tokens"]:
        added["id"] = move.get(added["id"], added["id"])
    state["post_processor"] = None
    return ModelVocabulary(json.dumps(state), side(name).width, side(name).eos_token)


@every_vocabulary()
def test_a_permuted_copy_is_recognised(name: str) -> None:
    """Under other ids it is the same vocabulary, and every row gets the logit of its own token."""
    copy = permuted(name)
    built = VocabularyAlignment.build(side(name), copy)
    assert built.relation == "permuted"
    tokens = side(name).vocabulary.tokens
    assert all(tokens[built.source[token]] == data for token, data in copy.vocabulary.tokens.items())


@every_vocabulary()
def test_of_tokens_with_the_same_bytes_the_one_that_text_becomes_is_meant(name: str) -> None:
    """The network never saw the other, and its logit says nothing."""
    vocabulary, width = side(name).vocabulary, side(name).width
    count = Counter(vocabulary.tokens[token] for token in vocabulary.ordinary(width))
    texts = [data.decode() for data, times in count.items() if times > 1 and is_text(data)]
    meant = vocabulary.by_bytes(width)
    become = dict(zip(texts, side(name).encoder.encode_pieces(texts), strict=True))
    assert not {text: ids for text, ids in become.items() if ids != [meant[text.encode()]]}


def is_text(data: bytes) -> bool:
    return "\ufffd" not in data.decode("utf-8", "replace")
