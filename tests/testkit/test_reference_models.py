"""The reference models are ordinary folders that load quietly, and a damaged folder is never handed out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from testkit.packages import cache_directory
from testkit.reference_models import (
    MARKER,
    gemma_3_270m,
    kept_folder,
    smollm2_derived,
    smollm2_instruct,
)

Reference = Callable[..., Path]

wants_gemma = os.environ.get("VALUEADAPTER_TEST_GEMMA") or (cache_directory() / "models/gemma-3-270m").is_dir()
GEMMA = pytest.param(
    gemma_3_270m,
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(not wants_gemma, reason="VALUEADAPTER_TEST_GEMMA=1 downloads it (238 MB, Gemma terms)"),
    ],
    id="gemma",
)
REFERENCES = [
    pytest.param(smollm2_instruct, id="smollm2"),
    pytest.param(smollm2_derived, id="derived"),
    GEMMA,
]
every_reference = pytest.mark.parametrize("reference", REFERENCES)


@pytest.mark.real
@every_reference
def test_generation_defaults_agree_with_the_tokenizer(reference: Reference) -> None:
    """Generation stops at the tokenizer's end and pads without guessing."""
    folder = reference()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    defaults = json.loads((folder / "generation_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        assert defaults[name] == config[name] == getattr(tokenizer, name)
    assert len(tokenizer) == config["vocab_size"]
    assert tokenizer.model_max_length == config["max_position_embeddings"]


@pytest.mark.real
@every_reference
def test_folder_names_no_path_of_this_machine(reference: Reference) -> None:
    """A folder that is published or copied tells nobody where it was made."""
    for path in reference().glob("*.json"):
        text = path.read_text(encoding="utf-8") if path.name != "tokenizer.json" else ""
        assert str(Path.home()) not in text
        assert "name_or_path" not in text


@pytest.mark.real
@every_reference
def test_verified_again_in_no_time(reference: Reference) -> None:
    """Asking for a folder is cheap enough to do on every use: its gigabyte is not read again."""
    reference()
    start = time.perf_counter()
    reference()
    assert time.perf_counter() - start < 1


@pytest.mark.real
def test_chat_template_gives_a_turn_to_the_assistant() -> None:
    """The instruct model and its derived sibling can be chatted with."""
    turns = [{"role": "user", "content": "Hello"}]
    for folder in (smollm2_instruct(), smollm2_derived()):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.real
def test_digits_are_single_tokens() -> None:
    """SmolLM2 was trained on single digits; the conversion must not lose that rule."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_instruct())
    assert tokenizer.tokenize("in 1984") == ["in", "Ġ", "1", "9", "8", "4"]


@pytest.mark.real
def test_conversion_answers_as_the_published_model() -> None:
    """Weights, positions and tokens of the converted model are in their places: it knows a capital."""
    folder = smollm2_instruct()
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    tokens = model.generate(**inputs, do_sample=False, max_new_tokens=1)
    assert tokenizer.decode(tokens[0, -1:]) == " Paris"


@pytest.mark.real
def test_derived_model_is_the_full_one_without_four_layers() -> None:
    """Every weight of the smaller model is one of the full model's, with layers 14 to 17 left out."""
    full = AutoModelForCausalLM.from_pretrained(smollm2_instruct())
    derived = AutoModelForCausalLM.from_pretrained(smollm2_derived())
    kept = [*range(14), *range(18, 30)]
    assert derived.config.num_hidden_layers == len(derived.model.layers) == len(kept)
    for layer, number in zip(derived.model.layers, kept, strict=True):
        expected = full.model.layers[number].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in layer.state_dict().items())


class Builder:
    """Builds a folder with one file, and counts how often."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.runs = 0
        self.said: list[str] = []

    def build(self, folder: Path) -> None:
        self.runs += 1
        (folder / "model.bin").write_bytes(b"weights")

    def folder(self, source: str = "source") -> Path:
        return kept_folder("small", [source], build=self.build, cache=self.cache, say=self.said.append)


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    return Builder(tmp_path)


def test_folder_is_built_once(builder: Builder) -> None:
    """A good folder is used as it is and without a word."""
    assert builder.folder() == builder.folder()
    assert (builder.runs, builder.said) == (1, [])


def damage_bytes(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"w3ights")


def truncate(folder: Path) -> None:
    (folder / "model.bin").write_bytes(b"wei")


def remove(folder: Path) -> None:
    (folder / "model.bin").unlink()


def damage_marker(folder: Path) -> None:
    (folder / MARKER).write_text("{")


def older_marker(folder: Path) -> None:
    (folder / MARKER).write_text('{"recipe": ["1"], "files": {"model.bin": "0"}}')


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_bytes, "the cached folder is damaged (model.bin has another checksum)"),
        (truncate, "the cached folder is damaged (model.bin has another checksum)"),
        (remove, "the cached folder is damaged (model.bin is missing)"),
        (damage_marker, f"the cached folder is damaged ({MARKER}: Expecting property name"),
        (older_marker, "the cached folder was converted by another version of this library"),
    ],
)
def test_damaged_folder_is_rebuilt(damage: Callable[[Path], None], reason: str, builder: Builder) -> None:
    """What was changed, lost or made by an older version is made again, and the reason is said."""
    damage(builder.folder())
    assert (builder.folder() / "model.bin").read_bytes() == b"weights"
    assert builder.runs == 2
    assert builder.said[0].startswith(f"rebuilding small: {reason}")


def test_other_sources_make_another_folder(builder: Builder) -> None:
    """A folder made from other packages is outdated, whatever its checksums."""
    builder.folder("one")
    builder.folder("two")
    assert builder.runs == 2


def test_touched_file_is_compared_once_and_kept(builder: Builder) -> None:
    """A copied cache, whose times differ, is read once and not rebuilt; its new times are recorded."""
    folder = builder.folder()
    os.utime(folder / "model.bin", ns=(1, 1))
    builder.folder()
    assert builder.runs == 1
    assert json.loads((folder / MARKER).read_text())["files"]["model.bin"]["mtime_ns"] == 1


def test_failed_build_leaves_the_old_folder(builder: Builder, tmp_path: Path) -> None:
    """An interrupted conversion never shows as a folder, and what a killed one left is removed."""

    def fail(folder: Path) -> None:
        (folder / "model.bin").write_bytes(b"half")
        raise OSError("disk full")

    old = builder.folder()
    (old.parent / ".building-small-killed").mkdir()
    with pytest.raises(OSError, match="disk full"):
        kept_folder("small", ["newer"], build=fail, cache=tmp_path, say=builder.said.append)
    assert (old / "model.bin").read_bytes() == b"weights"
    assert sorted(path.name for path in old.parent.iterdir()) == ["small", "small.lock"]
