"""Saving replaces an adapter as a whole, wherever a directory lies, and loses nothing that is not the adapter's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from saves import FILES, NEW, change_scale, old, scale, visible
from saving_run import GOLDEN, save

from valueadapter import ArtifactError, ValueAdapter
from valueadapter.artifact import file_names, verification
from valueadapter.artifact.atomic_directory import check_target, staged
from valueadapter.artifact.standalone import export
from valueadapter.errors import ConfigError, MissingFileError

__all__ = ["old"]
PROGRAM = Path(__file__).parents[1] / "saving_run.py"


def mounted(kind: str, target: Path, before: str = "true") -> subprocess.CompletedProcess[str]:
    """Saves into a mount point, in a process that alone sees the mount; lists what is there."""
    source = target.with_name("source")
    source.mkdir()
    mount = f"mount -t tmpfs none {target}" if kind == "tmpfs" else f"mount --bind {source} {target}"
    program = f"{sys.executable} {PROGRAM} {target} -1"
    script = f"set -e; {mount}; {before}; {program}; {program}; ls -A {target}; {sys.executable} -m valueadapter verify"
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{script} {target}"], capture_output=True, text=True, check=False
    )


def may_mount() -> bool:
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(probe, capture_output=True).returncode == 0


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_a_mount_point_is_saved_to(tmp_path: Path, kind: str) -> None:
    """Empty but for what file systems put there, and again over an adapter; nothing is left beside or in it."""
    if not may_mount():
        pytest.skip("mounting needs root; the directory whose parent may not be written runs")
    target = tmp_path / "model"
    target.mkdir()
    done = mounted(kind, target, before=f"mkdir {target}/lost+found; chmod 0 {target}/lost+found")
    assert done.returncode == 0, done.stderr
    listed = {path.name for path in GOLDEN.iterdir()} | {"lost+found"}
    assert listed <= set(done.stdout.split())
    assert file_names.SAVING not in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"model", "source"}


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory that another user made, without write permission for this one (root becomes nobody)."""
    parent = Path(tempfile.mkdtemp(prefix="valueadapter-saving-"))
    try:
        (parent / "adapter").mkdir()
        if os.geteuid() == 0:
            os.chown(parent / "adapter", 65534, -1)
        parent.chmod(0o555)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir("/")
            if os.geteuid() == 0:
                os.seteuid(65534)
                try:
                    yield parent
                finally:
                    os.seteuid(0)
            else:
                yield parent
    finally:
        parent.chmod(0o755)
        shutil.rmtree(parent)


def test_a_parent_that_may_not_be_written(as_nobody: Path) -> None:
    """The directory is saved to all the same; one that would have to be made there is refused at once."""
    save(as_nobody / "adapter")
    change_scale(as_nobody / "adapter")
    save(as_nobody / "adapter")
    assert scale(as_nobody / "adapter") == NEW
    assert visible(as_nobody / "adapter") == FILES
    with pytest.raises(ArtifactError, match=r"may not be written by this user.*save elsewhere"):
        check_target(as_nobody / "other" / "adapter")
    (as_nobody / "adapter").chmod(0o555)
    with pytest.raises(ArtifactError, match=r"adapter' may not be written by this user"):
        check_target(as_nobody / "adapter")
    (as_nobody / "adapter").chmod(0o755)


def test_the_current_directory_is_saved_to(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays the same directory, whose new files the process sees."""
    monkeypatch.chdir(old)
    save(Path("."))
    assert os.path.samefile(".", old)
    assert scale(Path(".")) == NEW
    assert visible(old) == FILES


def test_links_are_followed(old: Path, tmp_path: Path) -> None:
    """A link to a directory, and one to a directory that is yet to be made."""
    (tmp_path / "link").symlink_to(old)
    (tmp_path / "to-be").symlink_to(tmp_path / "made")
    for link in ("link", "to-be"):
        check_target(tmp_path / link)
        save(tmp_path / link)
        assert (tmp_path / link).is_symlink()
        assert scale(tmp_path / link) == NEW


@pytest.mark.parametrize("fixed", [False, True], ids=["exchanged", "inside"])
def test_what_others_write_meanwhile_is_kept(old: Path, fixed: bool) -> None:
    """New files and folders, changed ones, and what a process goes on writing to a file that it has open."""
    (old / "train.log").write_text("one\n")
    (old / "NOTES.md").write_text("old")
    if fixed:
        (old / ".ipynb_checkpoints").mkdir()
    with (old / "train.log").open("a") as log:
        with staged(old) as new:
            shutil.copytree(GOLDEN, new, dirs_exist_ok=True)
            log.write("two\n")
            log.flush()
            (old / "note.txt").write_text("new")
            (old / "NOTES.md").write_text("new")
            (old / "README.md").write_text("by hand")
            for name in ("checkpoint-7/optimizer.pt", "mine/deep/x.txt", "value_network/mine.txt", ".hidden/x"):
                (old / name).parent.mkdir(parents=True, exist_ok=True)
                (old / name).write_text("new")
            (old / "checkpoint-8").mkdir()
        log.write("three\n")
    assert (old / "train.log").read_text() == "one\ntwo\nthree\n"
    assert (old / "README.md").read_text() == "by hand"
    names = ("note.txt", "NOTES.md", "mine/deep/x.txt", "value_network/mine.txt", ".hidden/x")
    assert {(old / name).read_text() for name in (*names, "checkpoint-7/optimizer.pt")} == {"new"}
    assert (old / "checkpoint-8").is_dir()
    assert scale(old) == NEW
    assert [path.name for path in old.parent.iterdir()] == [old.name]
    assert not list(old.glob(f"{file_names.SAVING}*"))


def test_a_directory_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    """The target did not exist when the save began."""
    with staged(tmp_path / "adapter") as new:
        shutil.copytree(GOLDEN, new, dirs_exist_ok=True)
        (tmp_path / "adapter").mkdir()
        (tmp_path / "adapter" / "note.txt").write_text("theirs")
    assert visible(tmp_path / "adapter") == FILES | {"note.txt"}


def test_of_two_saves_the_last_wins(old: Path) -> None:
    """Whole: no file of the first stays, and its generated card is no person's."""
    with staged(old) as new:
        shutil.copytree(GOLDEN, new, dirs_exist_ok=True)
        with staged(old) as other:
            shutil.copytree(GOLDEN, other, dirs_exist_ok=True)
            (other / "value_network").rename(other / "expert")
            config = json.loads((other / "config.json").read_text().replace('"value_network"', '"expert"'))
            (other / "config.json").write_text(json.dumps({**config, "scale": 0.25}))
        assert scale(old) == 0.25
    assert visible(old) == FILES
    assert scale(old) == NEW


def killed_after(moves: int, target: Path) -> bool:
    """Whether a save that was to be killed after so many moves was killed."""
    done = subprocess.run([sys.executable, PROGRAM, target, str(moves)], capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def test_killed_at_any_moment(old: Path, tmp_path: Path) -> None:
    """Old, new or an error, never a mixture; the next save works, and a person's card and files are there."""
    (old / ".ipynb_checkpoints").mkdir()  # so that it is put in place entry by entry
    (old / "README.md").write_text("by hand")
    (old / "value_network" / "mine.txt").write_text("mine")
    moves, seen = 0, set()
    while True:
        target = tmp_path / f"killed-{moves}"
        shutil.copytree(old, target)
        if not killed_after(moves, target):
            break
        try:
            seen.add(scale(target))
        except (MissingFileError, ConfigError) as error:
            assert "is being saved" in str(error)  # noqa: PT017
            seen.add("refused")
        check_target(target)
        save(target)
        assert scale(target) == NEW
        assert (target / "README.md").read_text() == "by hand"
        assert visible(target) == FILES | {"value_network/mine.txt", "README.md"}
        assert not list(target.glob(f"{file_names.SAVING}*"))
        moves += 1
    assert moves > 8
    assert seen == {0.5, "refused"}


def test_a_killed_save_is_brought_to_its_end_by_the_next(old: Path) -> None:
    """Once the adapter before lies aside as a whole, the new one is not lost, even if the next save fails."""
    (old / ".ipynb_checkpoints").mkdir()
    aside = len({path.name for path in old.iterdir()}) - 1
    assert killed_after(aside + 1, old)
    with pytest.raises(MissingFileError, match=r"is being saved to .* or that was interrupted"):
        verification.verify(old)
    with pytest.raises(RuntimeError, match="the next one fails"), staged(old):
        raise RuntimeError("the next one fails")
    assert scale(old) == NEW


def test_a_move_that_fails_is_undone(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full or broken at any of the moves leaves the old adapter, byte for byte, and no debris."""
    (old / ".ipynb_checkpoints").mkdir()
    before = {name: (old / name).read_bytes() for name in visible(old)}
    move = shutil.move

    def failing(at: int) -> Callable[[Any, Any], Any]:
        def counted(source: Any, target: Any) -> Any:
            counts.append(1)
            if len(counts) == at:
                raise OSError(28, "No space left on device")
            return move(source, target)

        return counted

    for at in range(1, 100):
        counts: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "move", failing(at))
            try:
                save(old)
            except OSError as error:
                assert error.errno == 28  # noqa: PT017
                assert {name: (old / name).read_bytes() for name in visible(old)} == before
                assert not list(old.glob(f"{file_names.SAVING}*"))
                continue
        break
    assert at > 8
    assert scale(old) == NEW


@pytest.mark.parametrize("fixed", [False, True], ids=["exchanged", "inside"])
def test_readers_meanwhile_see_old_new_or_an_error(old: Path, fixed: bool) -> None:
    """Two processes' worth of saves in a loop, and readers that verify: no third content is ever seen."""
    if fixed:
        (old / ".ipynb_checkpoints").mkdir()
    stop, seen, failures = threading.Event(), set(), []

    def keep_saving() -> None:
        while not stop.is_set():
            try:
                save(old)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=keep_saving) for _ in range(2)]
    for thread in threads:
        thread.start()
    reads, until = 0, time.monotonic() + 60
    while reads < 150 or (NEW not in seen and time.monotonic() < until):  # how often one is let in depends on the disk
        reads += 1
        try:
            seen.add(scale(old))
        except (OSError, ArtifactError, ConfigError):
            seen.add("error")
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen <= {0.5, NEW, "error"}
    assert NEW in seen
    assert scale(old) == NEW
    assert visible(old) == FILES


def test_the_mode_of_the_directory_is_kept(old: Path) -> None:
    """One that a group shares stays so."""
    old.chmod(0o2775)
    save(old)
    assert stat.S_IMODE(old.stat().st_mode) == 0o2775


def half_done(new: Path) -> None:
    (new / "config.json").write_text("half")
    raise KeyboardInterrupt


def test_a_failed_save_leaves_no_debris(old: Path) -> None:
    """Neither beside nor inside the directory, in both ways of saving."""
    for folder in (None, ".hidden"):
        if folder:
            (old / folder).mkdir()
        before = visible(old)
        with pytest.raises(KeyboardInterrupt), staged(old) as new:
            half_done(new)
        assert visible(old) == before
        assert [path.name for path in old.parent.iterdir()] == [old.name]


def test_a_copy_keeps_what_a_person_has_in_its_place(old: Path, tmp_path: Path) -> None:
    """`export` brings the source's documents, but not over those in the directory; checkpoints are nobody's copy."""
    (old / "LICENSE").write_text("source's")
    (old / "NOTICE").write_text("source's")
    (old / "checkpoint-5").mkdir()
    (old / "checkpoint-5" / "x").write_text("source's")
    save(tmp_path / "out")
    (tmp_path / "out" / "LICENSE").write_text("mine")
    (tmp_path / "out" / "checkpoint-5").mkdir()
    (tmp_path / "out" / "checkpoint-5" / "x").write_text("mine")
    export(old, tmp_path / "out", to="custom_generate")
    assert (tmp_path / "out" / "LICENSE").read_text() == (tmp_path / "out" / "checkpoint-5" / "x").read_text() == "mine"
    assert (tmp_path / "out" / "NOTICE").read_text() == "source's"
    export(tmp_path / "out", tmp_path / "out", to="logits_processor")
    assert (tmp_path / "out" / "checkpoint-5" / "x").read_text() == "mine"


def test_an_adapter_is_saved_where_it_was_loaded_from(
    tiny_adapter: Callable[..., ValueAdapter], tmp_path: Path
) -> None:
    """The networks may lie in the files that are replaced."""
    tiny_adapter(seed=3).save_pretrained(tmp_path / "a")
    for folder in (None, ".hidden"):
        if folder:
            (tmp_path / "a" / folder).mkdir()
        loaded = ValueAdapter.from_pretrained(tmp_path / "a")
        expected = tiny_adapter(seed=3).networks[0].lm_head.weight
        loaded.save_pretrained(tmp_path / "a")
        again = ValueAdapter.from_pretrained(tmp_path / "a").networks[0].lm_head.weight
        assert bool((again == expected).all())


def test_where_two_renames_are_all_there_is(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Systems without an exchange in one step."""
    monkeypatch.setattr(sys, "platform", "darwin")
    (old / "LICENSE").write_text("mine")
    save(old)
    assert scale(old) == NEW
    assert visible(old) == FILES | {"LICENSE"}
    assert [path.name for path in old.parent.iterdir()] == [old.name]
