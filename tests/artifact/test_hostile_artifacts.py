"""Artifacts that someone wrote to do harm, or that chance made so: refused with an error of this library."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from test_alignment import permuted, side
from tiny import tiny_model
from vocabularies import KINDS, tokenizer_of

from valueadapter import AlignmentError, ArtifactError, ConfigError, ValueAdapter
from valueadapter.artifact import verification
from valueadapter.errors import ValueAdapterError
from valueadapter.vocabulary.alignment import EXACT, FIRST, NONE, STOP, VocabularyAlignment
from valueadapter.vocabulary.bridge import alignment_name, connect

Change = Callable[[VocabularyAlignment], object]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An adapter of the byte tokenizer that has merges, several control tokens and a chat template."""
    tokenizer = tokenizer_of("bytes")
    network = tiny_model("llama", seed=2, width=len(tokenizer))
    ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="a/b").save_pretrained(tmp_path / "a")
    return tmp_path / "a"


# -- config.json -------------------------------------------------------------------------------------------------------
def nested(depth: int) -> str:
    return '{"model_type": "value_adapter", "format_version": 1, "x": ' + "[" * depth + "]" * depth + "}"


CONFIGS = {
    "scale of 401 digits": lambda text: text.replace('"scale": 1.0', f'"scale": {"1" * 401}'),
    "scale of 5,001 digits": lambda text: text.replace('"scale": 1.0', f'"scale": {"1" * 5001}'),
    "scale beyond floats": lambda text: text.replace('"scale": 1.0', '"scale": 1e999'),
    "scale that is none": lambda text: text.replace('"scale": 1.0', '"scale": NaN'),
    "coefficient of 400 digits": lambda text: text.replace('"coefficient": 1.0', f'"coefficient": -{"9" * 400}'),
    "width of 400 digits": lambda text: text.replace('"logits_width": ', f'"logits_width": {"9" * 400}'),
    "version of 400 digits": lambda text: text.replace('"format_version": 2', f'"format_version": {"9" * 400}'),
    "nested a little": lambda text: nested(500),
    "nested": lambda text: nested(5_000),
    "nested deep": lambda text: nested(500_000),
    "surrogate in the prefix": lambda text: text.replace('"base_prefix": null', '"base_prefix": "\\ud800"'),
    "surrogate in a message": lambda text: text.replace(
        '"base_prefix": null', '"base_prefix": [{"role": "user", "content": "\\udfff"}]'
    ),
    "surrogate in a key": lambda text: text.replace('"scale": 1.0', '"\\ud800": 1'),
    "surrogate in a file's name": lambda text: text.replace('"model.safetensors"', '"\\ud800.safetensors"'),
    "NUL in the prefix": lambda text: text.replace('"base_prefix": null', '"base_prefix": "a\\u0000b"'),
    "NUL in a path": lambda text: text.replace('"path": "value_network"', '"path": "value\\u0000network"'),
    "line break in a path": lambda text: text.replace('"path": "value_network"', '"path": "value\\nnetwork"'),
    "NUL in the base": lambda text: text.replace('"a/b"', '"a/b\\u0000"'),
    "NUL in the revision": lambda text: text.replace(
        '"base_model_revision": null', '"base_model_revision": "a\\u0000"'
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_any_config_gives_an_error_of_this_library(saved: Path, kind: str) -> None:
    """Numbers beyond any type, nesting beyond any stack, text that is none."""
    path = saved / "config.json"
    text = path.read_text()
    assert CONFIGS[kind](text) != text
    path.write_text(CONFIGS[kind](text))
    with pytest.raises(ValueAdapterError, match=r"config\.json|must be|holds|format version"):
        verification.verify(saved)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "value_network/config.json", "tokenizer.json"])
@pytest.mark.parametrize("text", ["", "[]", "nul", nested(500_000), '{"a": ' + "1" * 5001 + "}", "\ufeff{}"])
def test_any_other_json_does_too(saved: Path, name: str, text: str) -> None:
    """The small files beside it."""
    (saved / name).write_text(text)
    with pytest.raises(ArtifactError, match=name.split("/")[-1]):
        verification.verify(saved)


# -- the tokenizer's settings ------------------------------------------------------------------------------------------
SETTINGS = {
    "a word ends texts": {"eos_token": "er"},
    "a word is padding, as an object": {"pad_token": {"content": "er", "__type": "AddedToken"}},
    "a new token": {"sep_token": "<|new|>"},
    "more control tokens": {"additional_special_tokens": ["er"]},
    "further control tokens": {"extra_special_tokens": ["er"]},
    "named control tokens": {"extra_special_tokens": {"image_token": "er"}},
    "a token of a model": {"image_token": "er"},
    "one token for another": {"added_tokens_decoder": {"3": {"content": "</s>", "special": True}}},
    "a word as an added token": {"added_tokens_decoder": {"300": {"content": "er", "special": True}}},
    "no control token any more": {"added_tokens_decoder": {"2": {"content": "</s>", "special": False}}},
    "spaces around a token": {"eos_token": {"content": "</s>", "lstrip": True, "__type": "AddedToken"}},
    "a space before texts": {"add_prefix_space": True},
    "control tokens as text": {"split_special_tokens": True},
    "code": {"auto_map": {"AutoTokenizer": ["x--y.Z", None]}},
    "another file": {"tokenizer_file": "/etc/passwd"},
    "another vocabulary": {"vocab": {"a": 0}},
    "tokens of a wrong type": {"additional_special_tokens": [7]},
    "objects of a wrong type": {"added_tokens_decoder": [1]},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_make_another_tokenizer_are_refused(saved: Path, kind: str) -> None:
    """`verify` says so, without transformers: the recorded tokenizer is the one that loading gives, or none."""
    path = saved / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SETTINGS[kind]))
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json"):
        verification.verify(saved)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizer", "T5Tokenizer", "BertTokenizer", "NoSuchTokenizer"])
def test_a_class_that_makes_another_tokenizer_is_refused(saved: Path, name: str) -> None:
    """What transformers makes is compared with what is recorded, whole: it is that, or an error."""
    path = saved / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))
    try:
        loaded = ValueAdapter.from_pretrained(saved)
    except ArtifactError:
        return
    assert loaded.side.vocabulary == side("bytes").vocabulary
    assert loaded.side.spec == loaded.config.vocabulary


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("special_tokens_map.json", {"eos_token": "er"}),
        ("special_tokens_map.json", {"additional_special_tokens": ["<|new|>"]}),
        ("added_tokens.json", {"<|new|>": 5}),
        ("added_tokens.json", {"</s>": 5}),
    ],
)
def test_older_settings_are_held_against_the_tokenizer_too(saved: Path, name: str, content: object) -> None:
    """Files that transformers reads besides."""
    (saved / name).write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=name):
        verification.verify(saved)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_comes_back(kind: str, tmp_path: Path) -> None:
    """None of them is taken for another by these checks, and its vocabulary is the recorded one."""
    if kind == "characters":
        pytest.skip("has no byte view")
    tokenizer = tokenizer_of(kind)
    network = tiny_model("llama", seed=2, width=len(tokenizer) + 3)
    ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="a/b").save_pretrained(tmp_path / "a")
    loaded = ValueAdapter.from_pretrained(tmp_path / "a")
    assert loaded.side.spec == loaded.config.vocabulary
    assert loaded.tokenizer.name_or_path == str(tmp_path / "a")


def test_a_tokenizer_that_would_come_back_as_another_is_refused_before_any_work() -> None:
    """Not when it is saved, after a training."""
    tokenizer = tokenizer_of("bytes").__class__(
        tokenizer_object=tokenizer_of("bytes").backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.pad_token = "er"
    network = tiny_model("llama", seed=2, width=len(tokenizer))
    with pytest.raises(ConfigError, match="comes back as another"):
        ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="a/b")


# -- maps --------------------------------------------------------------------------------------------------------------
def turn(alignment: VocabularyAlignment) -> None:
    rows = np.flatnonzero(alignment.kind == EXACT)
    alignment.source[rows] = np.roll(alignment.source[rows], 1)


def one_row(alignment: VocabularyAlignment) -> None:
    row = np.flatnonzero(alignment.kind == FIRST)[-1]
    alignment.source[row] = alignment.source[np.flatnonzero(alignment.kind == EXACT)[0]]


def to_nothing(alignment: VocabularyAlignment) -> None:
    row = np.flatnonzero(alignment.kind == EXACT)[3]
    alignment.source[row], alignment.kind[row] = -1, NONE


MAPS: dict[str, Change] = {
    "turned": turn,
    "one row": one_row,
    "a row of nothing": to_nothing,
    "ends of text at words": lambda a: a.kind.__setitem__(np.flatnonzero(a.kind == NONE)[:1], STOP),
    "no ends of text": lambda a: a.kind.__setitem__(a.kind == STOP, NONE),
    "said to be the same": lambda a: setattr(a, "relation", "identity"),
    "said to be permuted": lambda a: setattr(a, "relation", "permuted"),
    "to a control token": lambda a: a.source.__setitem__(np.flatnonzero(a.kind == EXACT)[:1], 2),
    "kinds that are none": lambda a: a.kind.__setitem__(slice(5), 77),
    "a kind without a token": lambda a: a.kind.__setitem__(np.flatnonzero(a.kind == EXACT)[:1], NONE),
    "no stops": lambda a: setattr(a, "stops", ()),
    "negative stops": lambda a: setattr(a, "stops", (-1, -300)),
    "stops that are words": lambda a: setattr(a, "stops", (7, 8)),
    "stops of fractions": lambda a: setattr(a, "stops", (2.0, 4.0)),
    "stops of truth": lambda a: setattr(a, "stops", (True,)),
    "stops beyond": lambda a: setattr(a, "stops", (10**6,)),
    "another width": lambda a: setattr(a, "value", dataclasses.replace(a.value, logits_width=a.value.logits_width + 1)),
    "a width that is true": lambda a: setattr(a, "base", dataclasses.replace(a.base, logits_width=True)),
}


@pytest.mark.parametrize("kind", MAPS)
def test_a_map_is_the_one_of_its_two_tokenizers(saved: Path, kind: str) -> None:
    """Any other is refused, by `verify` or when a base is met: never a number that the right map would not give."""
    mine, theirs = ValueAdapter.from_pretrained(saved).side, side("unigram")
    alignment = VocabularyAlignment.build(mine, theirs)
    MAPS[kind](alignment)
    alignment.save(saved / "alignments" / f"{alignment_name(theirs)}.safetensors")
    with pytest.raises((ArtifactError, AlignmentError), match=r"map|token|alignment|digits|must be"):
        connect(mine, theirs, ValueAdapter.from_pretrained(saved).alignments)


def test_the_right_map_is_accepted(saved: Path) -> None:
    """Of another vocabulary, and of the same under other ids."""
    mine = ValueAdapter.from_pretrained(saved).side
    for theirs in (side("unigram"), side("wordpiece"), permuted("bytes")):
        alignment = VocabularyAlignment.build(mine, theirs)
        alignment.save(saved / "alignments" / f"{alignment_name(theirs)}.safetensors")
        found = connect(mine, theirs, ValueAdapter.from_pretrained(saved).alignments)
        assert found is not None
        assert (found.alignment.source == alignment.source).all()


def test_a_map_first_used_in_inference_mode_takes_gradients_later() -> None:
    """What is kept of it is no inference tensor."""
    alignment = VocabularyAlignment.build(side("bytes"), side("unigram"))
    logits = torch.randn(2, side("bytes").width, requires_grad=True)
    with torch.inference_mode():
        alignment.project(logits)
        alignment.value_ids(torch.arange(3))
    alignment.project(logits).sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


def test_an_adapter_loaded_in_inference_mode_is_trained_later(saved: Path) -> None:
    """Nor are its weights."""
    with torch.inference_mode():
        network = ValueAdapter.from_pretrained(saved).networks[0]
    network(torch.tensor([[5, 6, 7]])).logits.sum().backward()
    assert network.lm_head.weight.grad is not None
