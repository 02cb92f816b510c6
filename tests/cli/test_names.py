"""A name that leads nowhere: every command says what it looked for and where, before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from adapters_on_hub import save, server
from huggingface_hub import HfApi, close_session, constants
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from tiny import byte_tokenizer, tiny_model
from typer.testing import CliRunner

from testkit.local_hub import LocalHub
from valueadapter.cli.app import app
from valueadapter.errors import IncompatibleBaseError, MissingFileError

__all__ = ["server"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

TAKES_AN_ADAPTER: dict[str, str] = {
    "inspect": "inspect NAME",
    "verify": "verify NAME",
    "fetch": "fetch NAME --local-dir OUT",
    "generate": "generate --base BASE --adapter NAME --prompt x",
    "trace": "trace --base BASE --adapter NAME --prompt x",
    "evaluate": "evaluate NAME --base BASE --data DATA",
    "calibrate": "calibrate NAME --base BASE --data DATA",
    "align": "align NAME --base BASE --output OUT",
    "export": "export NAME --to custom_generate --output OUT",
    "export to vllm": "export NAME --to vllm --base BASE --output OUT",
    "distill": "distill NAME --base BASE --data DATA --output OUT",
}
TAKES_A_BASE: dict[str, str] = {
    "search": "search --base NAME",
    "train": "train --base NAME --data DATA --output OUT",
    "inspect": "inspect ADAPTER --base NAME",
    "generate": "generate --base NAME --prompt x",
    "trace": "trace --base NAME --adapter ADAPTER --prompt x",
    "evaluate": "evaluate ADAPTER --base BASE --base NAME --data DATA",
    "the donor of evaluate": "evaluate ADAPTER --base BASE --donor NAME --data DATA",
    "calibrate": "calibrate ADAPTER --base NAME --data DATA",
    "align": "align ADAPTER --base NAME --output OUT",
    "export to vllm": "export ADAPTER --to vllm --base NAME --output OUT",
    "distill": "distill ADAPTER --base NAME --data DATA --output OUT",
}
IMPOSSIBLE = {
    "./out/adapter": "there is nothing at '{here}/out/adapter'",
    "a/b/c": "'{here}' is there, 'a' in it is not",
}
Fail = Callable[[str, str], str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("names")
    tiny_model("llama", seed=1).save_pretrained(place / "base")
    byte_tokenizer().save_pretrained(place / "base")
    save(place / "adapter")
    rows = [{"prompt": f"Q{number}:", "completion": "AB"} for number in range(12)]
    (place / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.fixture
def fail(place: Path, server: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Runs a command with a name in it; what it says of it."""
    monkeypatch.chdir(place)
    known = {"BASE": "base", "ADAPTER": "adapter", "DATA": "data.jsonl", "OUT": "out"}

    def run(command: str, name: str) -> str:
        words = [name if word == "NAME" else known.get(word, word) for word in command.split()]
        error = CliRunner().invoke(app, words).exception
        assert isinstance(error, (MissingFileError, RepositoryNotFoundError, LocalEntryNotFoundError)), repr(error)
        assert not Path("out").exists()
        return str(error)

    return run


@pytest.mark.parametrize("command", TAKES_AN_ADAPTER.values(), ids=TAKES_AN_ADAPTER)
def test_an_adapter_that_is_nowhere(command: str, fail: Fail, server: LocalHub, place: Path) -> None:
    """A path, a name without account, a typo; the first two become no request."""
    for name, words in IMPOSSIBLE.items():
        assert words.format(here=place) in fail(command, name)
    assert "names the account, too" in fail(command, "adaptr")
    assert not server.log
    said = fail(command, "alice/adaptr")
    assert f"no model repository 'alice/adaptr' on {server.endpoint} (so HF_ENDPOINT says" in said
    assert f"no directory '{place}/alice/adaptr'" in said


@pytest.mark.parametrize("command", TAKES_A_BASE.values(), ids=TAKES_A_BASE)
def test_a_base_that_is_nowhere(command: str, fail: Fail, server: LocalHub, place: Path) -> None:
    """The same for bases, of which a few have a name alone."""
    for name, words in IMPOSSIBLE.items():
        assert words.format(here=place) in fail(command, name)
    assert not server.log
    for name in ("alice/bse", "bse"):
        said = fail(command, name)
        assert f"no model repository '{name}' on {server.endpoint} (so HF_ENDPOINT says" in said
        assert f"no directory '{place}/{name}'" in said


def test_without_token_it_is_said(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since a private repository looks like none."""
    monkeypatch.setenv("HF_TOKEN", "")
    assert "If it is private, log in with 'hf auth login' or pass token=: no token was sent" in fail(
        "verify NAME", "a/b"
    )


def test_offline_the_cache_is_named(fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE is what forbids asking, and a directory is not there either."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    for command in ("verify NAME", "generate --base NAME --prompt x", "train --base NAME --data DATA --output OUT"):
        said = fail(command, "alice/adapter")
        assert "HF_HUB_OFFLINE forbids asking the Hub" in said
        assert "alice/adapter' on this machine" in said


def test_a_file_is_no_directory(fail: Fail) -> None:
    """A path that is there and is a file."""
    assert "is a file; expected the directory of an adapter" in fail("inspect NAME", "data.jsonl")
    assert "is a file; expected the directory of a base model" in fail("generate --base NAME --prompt x", "data.jsonl")


def test_a_dataset_is_no_base(server: LocalHub) -> None:
    """It is said to be one."""
    HfApi().create_repo("alice/data", repo_type="dataset")
    error = CliRunner().invoke(app, ["generate", "--base", "alice/data", "--prompt", "x"]).exception
    assert isinstance(error, IncompatibleBaseError)
    assert "is a dataset or a space" in str(error)


def test_an_adapter_is_checked_before_the_base_is_loaded(fail: Fail, server: LocalHub) -> None:
    """A typo costs no download of a base."""
    HfApi().create_repo("alice/base")
    HfApi().upload_folder(repo_id="alice/base", folder_path="base")
    seen = len(server.log)
    fail("generate --base alice/base --adapter NAME --prompt x", "alice/adaptr")
    assert not any("safetensors" in request.path for request in server.log[seen:])
