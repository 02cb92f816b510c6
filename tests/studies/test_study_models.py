"""The study's models are ordinary folders, made the same way twice, that say what they were made from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import byte_tokenizer as tiny_tokenizer
from tiny import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from studies.material.corpora import Corpus
from studies.material.pretraining import Schedule, Shape
from studies.material.study_models import (
    BYTES,
    LARGE,
    SMALL,
    TRAINING_FILE,
    Scratch,
    byte_model,
    scratch_pair,
    smollm2_continued,
    train_from_scratch,
    train_further,
)
from testkit.packages import cache_directory
from testkit.reference_models import kept_folder, smollm2_instruct

CORPUS = Corpus(["the cat sat on the mat. " * 20, "a dog ran. " * 20], ["the dog sat on the cat. " * 3])
BRIEF = Schedule(steps=2, rows=2, window=16, learning_rate=1e-2, held_out_pieces=2)
TINY = Shape(layers=2, width=16, heads=2)
SPECS = [
    pytest.param(Scratch("tiny-bpe", TINY, BRIEF, 280), id="bpe"),
    pytest.param(Scratch("tiny-bytes", TINY, BRIEF, None), id="bytes"),
]


def quiet(line: str) -> None:
    """Says nothing."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def made(model: Scratch, folder: Path) -> Path:
    folder.mkdir()
    train_from_scratch(model, folder, CORPUS, say=quiet)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder as a reference model's, with a tokenizer of its own."""
    folder = tmp_path / "source"
    tiny_model("llama", seed=1).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("model", SPECS)
def test_folder_from_scratch_loads(model: Scratch, tmp_path: Path) -> None:
    """Model and tokenizer fit each other, in float32, and generation knows where to stop."""
    folder = made(model, tmp_path / "made")
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    assert loaded.config.vocab_size == len(tokenizer)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.model_max_length == loaded.config.max_position_embeddings
    assert tokenizer.decode(tokenizer("the cat, é")["input_ids"]) == "the cat, é"


@pytest.mark.parametrize("model", SPECS)
def test_same_seed_makes_the_same_bytes(model: Scratch, tmp_path: Path) -> None:
    """Every file of the folder, and another seed makes other weights."""
    first, again = made(model, tmp_path / "first"), made(model, tmp_path / "again")
    assert contents(first) == contents(again)
    other = made(replace(model, schedule=replace(BRIEF, seed=1)), tmp_path / "other")
    assert contents(other)["model.safetensors"] != contents(first)["model.safetensors"]
    assert contents(other)["tokenizer.json"] == contents(first)["tokenizer.json"]


def test_training_further_begins_with_the_source(source: Path, tmp_path: Path) -> None:
    """Without a learning rate nothing changes, with one every layer does, and the source stays as it was."""
    before = contents(source)
    still, moved = tmp_path / "still", tmp_path / "moved"
    for folder, rate in ((still, 0.0), (moved, 1e-2)):
        folder.mkdir()
        train_further(source, folder, CORPUS, schedule=replace(BRIEF, learning_rate=rate), say=quiet)
    weights = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (source, still, moved)]
    original, same, trained = weights
    assert all(torch.equal(original[name], same[name]) for name in original)
    assert not any(torch.equal(original[name], trained[name]) for name in original)
    assert contents(source) == before


def test_training_further_keeps_the_tokenizer(source: Path, tmp_path: Path) -> None:
    """An adapter's vocabulary check takes the new model for one of the same vocabulary."""
    folder = tmp_path / "further"
    folder.mkdir()
    train_further(source, folder, CORPUS, schedule=BRIEF, say=quiet)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()


def test_report_says_what_the_model_was_made_from(source: Path, tmp_path: Path) -> None:
    """Corpus, tokens and the cost of held-out text before and after; no path of this machine."""
    folder = tmp_path / "further"
    folder.mkdir()
    train_further(source, folder, CORPUS, schedule=BRIEF, say=quiet)
    report = json.loads((folder / TRAINING_FILE).read_text())
    assert (report["corpus_sha256"], report["tokens"]) == (CORPUS.digest, 64)
    assert set(report["held_out_bits_per_byte"]) == {"before", "after"}
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))


def test_kept_folder_holds_all_files(tmp_path: Path) -> None:
    """The folder is verified as those of the reference models, its report included."""
    spec: Scratch = Scratch("tiny", TINY, BRIEF, None)
    runs = []

    def build(folder: Path) -> None:
        runs.append(folder)
        train_from_scratch(spec, folder, CORPUS, say=quiet)

    for _ in range(2):
        folder = kept_folder("tiny", [str(spec)], build=build, cache=tmp_path, say=quiet)
    assert len(runs) == 1
    assert {"model.safetensors", "config.json", "tokenizer.json", TRAINING_FILE} <= set(contents(folder))


MODELS = cache_directory() / "models"


def built(name: str) -> pytest.MarkDecorator:
    wanted = os.environ.get("VALUEADAPTER_TEST_STUDY") or (MODELS / name).is_dir()
    return pytest.mark.skipif(not wanted, reason="VALUEADAPTER_TEST_STUDY=1 trains it (minutes)")


REAL = [
    pytest.param(smollm2_continued, id="continued", marks=built("SmolLM2-continued-on-Shakespeare")),
    pytest.param(lambda: scratch_pair()[0], id="small", marks=built(LARGE.name)),
    pytest.param(lambda: scratch_pair()[1], id="large", marks=built(LARGE.name)),
    pytest.param(byte_model, id="bytes", marks=built(BYTES.name)),
]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("model", REAL)
def test_held_out_text_costs_clearly_less_than_before(model: Callable[[], Path]) -> None:
    """Each is what it says: trained, in float32, on text like the one it is measured on."""
    folder = model()
    costs = json.loads((folder / TRAINING_FILE).read_text())["held_out_bits_per_byte"]
    assert costs["after"] < 0.97 * costs["before"]
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
    assert len(AutoTokenizer.from_pretrained(folder)("a")["input_ids"]) == 1


@pytest.mark.real
@pytest.mark.slow
@built(LARGE.name)
def test_pair_shares_its_tokenizer() -> None:
    """Two sizes, one vocabulary; minutes of training bring both far from where they began."""
    small, large = scratch_pair()
    assert (small / "tokenizer.json").read_bytes() == (large / "tokenizer.json").read_bytes()
    costs = [json.loads((folder / TRAINING_FILE).read_text())["held_out_bits_per_byte"] for folder in (small, large)]
    assert all(cost["after"] < 0.8 * cost["before"] for cost in costs)
    assert SMALL.schedule == LARGE.schedule


@pytest.mark.real
@pytest.mark.slow
@built("SmolLM2-continued-on-Shakespeare")
def test_continued_model_has_the_vocabulary_of_its_source() -> None:
    """Its adapters need no alignment."""
    name = "tokenizer.json"
    assert (smollm2_continued() / name).read_bytes() == (smollm2_instruct() / name).read_bytes()
