"""Whether an adapter may be saved to a directory is said before the work; what is not an adapter's is kept there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from saves import FILES, NEW, old, scale, visible
from saving_run import save

from valueadapter import ArtifactError
from valueadapter.artifact.atomic_directory import check_target, staged

__all__ = ["old"]
KEPT = [
    ".ipynb_checkpoints/README-checkpoint.md",
    ".ipynb_checkpoints/train-checkpoint.py",
    "value_network/.ipynb_checkpoints/config-checkpoint.json",
    "alignments/.ipynb_checkpoints/x.json",
    "value_network/notes.txt",
    ".cache/huggingface/download/config.json.metadata",
    ".git/objects/aa/bb",
    ".gitattributes",
    "wandb/run-1/files/config.yaml",
    "mlruns/0/meta.yaml",
    "runs/events.out.tfevents.1",
    "checkpoint-5/optimizer.pt",
    "checkpoint-5/adapter/model.safetensors",
    "LICENSE",
    "NOTES.md",
]


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_the_adapters_is_kept(old: Path, name: str) -> None:
    """Hidden files and folders, trackers' and a Trainer's, and a person's own files: in place, byte for byte."""
    (old / name).parent.mkdir(parents=True, exist_ok=True)
    (old / name).write_text("theirs")
    check_target(old)
    save(old)
    assert (old / name).read_text() == "theirs"
    assert scale(old) == NEW
    assert visible(old) == FILES | {name}


@pytest.mark.parametrize("name", [".ipynb_checkpoints/a.md", ".gitkeep", "lost+found/x", "checkpoint-5/optimizer.pt"])
def test_a_directory_without_an_adapter_may_hold_these(tmp_path: Path, name: str) -> None:
    """An otherwise empty directory, and a Trainer's output."""
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("theirs")
    check_target(tmp_path / "out")
    save(tmp_path / "out")
    assert visible(tmp_path / "out") == FILES | {name}


def _folder(at: Path) -> None:
    (at / "my_model").mkdir()
    (at / "my_model" / "config.json").write_text("{}")


def _peft(at: Path) -> None:
    (at / "adapter_config.json").write_text("{}")


def _other_model(at: Path) -> None:
    (at / "config.json").write_text('{"model_type": "llama"}')
    (at / "trainer_state.json").write_text("{}")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a folder": (_folder, "my_model' is not part of a value adapter"),
    "a link": (lambda at: (at / "data.txt").symlink_to("/etc/hostname"), r"data\.txt' is not part"),
    "a link to a folder": (lambda at: (at / "more").symlink_to("/tmp"), "more' is not part"),
    "a network that is a link": (
        lambda at: ((at / "value_network").rename(at.with_name("x")), (at / "value_network").symlink_to("../x")),
        "value_network' is not part",
    ),
    "a pipe": (lambda at: os.mkfifo(at / "pipe"), "pipe' is not part"),
    "a pickle": (lambda at: (at / "data.pt").write_bytes(b"x"), r"'data\.pt' may be a pickle"),
    "a pickle beside weights": (lambda at: (at / "value_network/x.bin").write_bytes(b"x"), "may be a pickle"),
    "code": (lambda at: (at / "train.py").write_text("x"), r"'train\.py' is code"),
    "a card that is no text": (lambda at: (at / "README.md").write_bytes(b"\xff"), r"README\.md' is no model card"),
    "a PEFT adapter": (_peft, "holds something else"),
    "another model": (_other_model, "holds something else"),
    "a damaged adapter": (lambda at: (at / "config.json").write_text("{"), "holds something else"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_lost_or_refused_is_said_before_the_work(old: Path, kind: str) -> None:
    """By `check_target` and by the save, before its block runs, in the same words; nothing changes."""
    spoil, message = REFUSED[kind]
    spoil(old)
    before = sorted(str(path) for path in old.parent.rglob("*"))
    with pytest.raises(ArtifactError, match=message) as early:
        check_target(old)
    with pytest.raises(ArtifactError, match=message) as late, staged(old):
        raise AssertionError("the work was done in vain")
    assert str(early.value) == str(late.value)
    assert sorted(str(path) for path in old.parent.rglob("*")) == before


def test_a_file_and_what_lies_below_one_are_refused(tmp_path: Path) -> None:
    """A path that is a file, one below a file, and a circle of links."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "circle").symlink_to("circle")
    for place in ("file", "file/adapter"):
        with pytest.raises(ArtifactError, match="file' is a file; expected a directory"):
            check_target(tmp_path / place)
    with pytest.raises(ArtifactError, match="cannot be followed"):
        check_target(tmp_path / "circle")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(ArtifactError, match=r"holds something else \(thesis\.tex\)"):
        check_target(tmp_path / "thesis")


@pytest.mark.parametrize(
    "command",
    [["align", "--base", "none"], ["evaluate", "--base", "none", "--data", "none"], ["calibrate", "--base", "none"]],
    ids=lambda command: command[0],
)
def test_commands_look_at_the_target_first(tmp_path: Path, command: list[str]) -> None:
    """Before data, adapter or base, none of which is there."""
    (tmp_path / "thesis.tex").write_text("x")
    data = ["--data", "none"] if command[0] == "calibrate" else []
    arguments = [command[0], "none", *command[1:], *data, "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "valueadapter", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "holds something else (thesis.tex)" in " ".join(done.stderr.split())
