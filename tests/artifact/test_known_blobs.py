"""Weights in the Hub's cache are hashed once per download; whatever changes them is seen all the same."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from tiny import byte_tokenizer, tiny_model

from valueadapter import ArtifactError, ValueAdapter
from valueadapter.artifact import known_blobs, verification, weight_file
from valueadapter.artifact.weight_file import WeightFile


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter as the Hub's cache holds it, nothing of which is known yet."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    directory = tmp_path / "models--alice--x" / "snapshots" / ("0" * 40)
    adapter = ValueAdapter.from_networks(
        [tiny_model("llama", seed=2)], byte_tokenizer(), base_model_name_or_path="alice/base"
    )
    adapter.save_pretrained(directory)
    blobs = tmp_path / "models--alice--x" / "blobs"
    blobs.mkdir()
    for path in directory.rglob("*.safetensors"):
        blob = blobs / verification.sha256(path)
        path.rename(blob)
        path.symlink_to(blob)
    return directory


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each weight file whose content is hashed while the test runs: its bytes."""
    found: list[int] = []

    class Counted:
        def __init__(self, header: bytes) -> None:
            self.digest, self.place = hashlib.sha256(header), -1

        def update(self, part: memoryview) -> None:
            if self.place < 0:
                self.place = len(found)
                found.append(0)
            found[self.place] += len(part)
            self.digest.update(part)

        def hexdigest(self) -> str:
            return self.digest.hexdigest()

    monkeypatch.setattr(weight_file, "hashlib", SimpleNamespace(sha256=Counted))
    return found


def weights(adapter: ValueAdapter) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in adapter.networks[0].state_dict().items()}


def check_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_blob_is_read_once(cached: Path, hashed: list[int]) -> None:
    """The first load hashes it, the next ones do not, and `verify` believes that too."""
    first = weights(ValueAdapter.from_pretrained(cached))
    assert len(hashed) == 1
    again = ValueAdapter.from_pretrained(cached)
    verification.verify(cached)
    assert len(hashed) == 1
    check_equal(first, weights(again))
    with torch.no_grad():
        again.networks[0].lm_head.weight.fill_(7.0)  # what is trained is a copy in memory
    check_equal(first, weights(ValueAdapter.from_pretrained(cached)))
    assert verification.verify(cached)


@pytest.mark.parametrize("times_kept", [False, True])
def test_a_blob_that_has_changed_is_read_again(cached: Path, hashed: list[int], times_kept: bool) -> None:
    """Even where somebody puts its times back: that of its last change cannot be."""
    ValueAdapter.from_pretrained(cached)
    (blob,) = (cached.parent.parent / "blobs").iterdir()
    before = blob.stat()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    if times_kept:
        os.utime(blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ArtifactError, match="has changed since it was saved"):
        ValueAdapter.from_pretrained(cached)
    assert len(hashed) == 2


def test_what_is_not_in_the_cache_is_hashed_each_time(cached: Path, hashed: list[int], tmp_path: Path) -> None:
    """A directory of somebody's, and a blob that is named by another checksum than it has."""
    adapter = ValueAdapter.from_pretrained(cached)
    adapter.save_pretrained(tmp_path / "own")
    hashed.clear()
    for number in (1, 2):
        ValueAdapter.from_pretrained(tmp_path / "own")
        assert len(hashed) == number
    (blob,) = (cached.parent.parent / "blobs").iterdir()
    assert not known_blobs.is_known(blob, "0" * 64, blob.stat())
    assert known_blobs.is_known(blob, blob.name, blob.stat())


def test_a_file_of_another_checksum_is_not_noted(cached: Path, tmp_path: Path) -> None:
    (blob,) = (cached.parent.parent / "blobs").iterdir()
    with WeightFile(blob) as file, pytest.raises(ArtifactError):
        file.check("0" * 64)
    assert not known_blobs.is_known(blob, blob.name, blob.stat())
    assert not list((tmp_path / "home").rglob("*"))


def test_notes_that_cannot_be_written_or_read_change_nothing(
    cached: Path, hashed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    for number in (1, 2):
        ValueAdapter.from_pretrained(cached)
        assert len(hashed) == number
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    ValueAdapter.from_pretrained(cached)
    (note,) = (path for path in (tmp_path / "home").rglob("*") if path.is_file())
    for number, content in enumerate(("[", "[" * 100_000)):
        note.write_text(content)
        ValueAdapter.from_pretrained(cached)
        assert len(hashed) == 4 + number


def test_a_loaded_model_does_not_follow_its_file(cached: Path) -> None:
    """Its weights are read, not mapped: a blob that is written over or cut off later changes nothing."""
    ValueAdapter.from_pretrained(cached)
    loaded = ValueAdapter.from_pretrained(cached)
    before = weights(loaded)
    (blob,) = (cached.parent.parent / "blobs").iterdir()
    with blob.open("r+b") as file:
        file.seek(-64, os.SEEK_END)
        file.write(bytes(64))
    os.truncate(blob, 100)
    check_equal(before, weights(loaded))


def test_a_file_that_is_touched_while_it_is_read_is_hashed(
    cached: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ValueAdapter.from_pretrained(cached)
    answers = iter([True, False, False])
    monkeypatch.setattr(known_blobs, "is_known", lambda *_: next(answers))
    ValueAdapter.from_pretrained(cached)
    assert len(hashed) == 2
