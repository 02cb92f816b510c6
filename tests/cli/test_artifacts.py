"""Adapters found, fetched and pushed from the command line, against a Hub on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adapters_on_hub import REPO, contents, publish, save, server
from tiny import byte_tokenizer, tiny_model
from typer.testing import CliRunner, Result

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter, hub
from valueadapter.cli import output
from valueadapter.cli.app import app
from valueadapter.cli.search import search
from valueadapter.errors import ArtifactError

__all__ = ["server"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
LINE = "whoever may read 'alice/adapter' will read the adapter's prefix there, verbatim"


def invoke(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (output.out, output.err):
        monkeypatch.setattr(console, "_width", 300)


def test_fetch_into_a_directory(server: LocalHub, tmp_path: Path) -> None:
    """Whole, and again over the adapter that is there, which it replaces; a person's files stay."""
    publish(tmp_path / "a", seed=3)
    target = tmp_path / "mine"
    done = json.loads(invoke("fetch", REPO, "--local-dir", target, "--json").stdout)
    assert done["directory"] == str(target)
    assert contents(target) == contents(tmp_path / "a")
    (target / "LICENSE").write_text("free")
    publish(tmp_path / "b", seed=4)
    assert invoke("fetch", REPO, "--local-dir", target).exit_code == 0
    assert contents(target) == {**contents(tmp_path / "b"), "LICENSE": b"free"}
    assert not any(path.is_symlink() for path in target.rglob("*"))


def test_fetch_refuses_a_directory_of_something_else(server: LocalHub, tmp_path: Path) -> None:
    """Before anything is asked for, and what is there stays."""
    target = tmp_path / "thesis"
    target.mkdir()
    (target / "thesis.tex").write_text("years of work")
    error = invoke("fetch", REPO, "--local-dir", target).exception
    assert isinstance(error, ArtifactError)
    assert "holds something else (thesis.tex)" in str(error)
    assert not server.log
    assert [path.name for path in target.iterdir()] == ["thesis.tex"]


def test_fetch_leaves_nothing_of_a_damaged_adapter(server: LocalHub, tmp_path: Path) -> None:
    """Not at all, where it is not whole."""
    broken = save(tmp_path / "a")
    weights = broken / "value_network" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    assert isinstance(invoke("fetch", broken, "--local-dir", tmp_path / "b" / "c").exception, ArtifactError)
    assert [path.name for path in tmp_path.iterdir() if path.name != "server"] == ["a"]


def test_search_shows_adapters_and_what_comes_next(server: LocalHub, tmp_path: Path) -> None:
    """A table for a person, all of it for a program; where nothing is found, what was looked for and where."""
    base = tmp_path / "base"
    tiny_model("llama", seed=1).config.save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    nothing = invoke("search", "--base", base)
    assert f"was found at {server.endpoint}. Looked for models tagged value-adapter and vocab:" in nothing.stdout
    assert nothing.exit_code == 0
    publish(tmp_path / "a")
    shown = invoke("search", "--base", base).stdout
    assert REPO in shown
    assert "same vocabulary" in shown
    following = f'valueadapter generate --base {base} --adapter {REPO} --prompt "…"'
    assert search(str(base)) == following, "which a terminal gets as the line that comes next"
    facts = json.loads(invoke("search", "--base", base, "--json").stdout)
    (found,) = facts["adapters"]
    assert (facts["endpoint"], found["name"], found["next"]) == (server.endpoint, REPO, following)
    assert found["trained_on"] == "alice/base"


def _with_prefix(folder: Path) -> Path:
    network = tiny_model("llama", seed=2)
    ValueAdapter.from_networks(
        [network], byte_tokenizer(), base_model_name_or_path="alice/base", base_prefix="Q: A\n\n"
    ).save_pretrained(folder)
    return folder


def test_every_push_says_first_what_becomes_public(server: LocalHub, tmp_path: Path) -> None:
    """The prefix, and how to avoid it; not where there is none, and not in what a program reads."""
    folder = _with_prefix(tmp_path / "a")
    done = invoke("push", folder, REPO, "--json")
    assert LINE in done.stderr
    assert json.loads(done.stdout)["repository"] == REPO
    assert LINE not in invoke("push", save(tmp_path / "b"), "alice/other").stderr
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    coarse = byte_tokenizer(60)
    tiny_model("llama", seed=1, width=60).save_pretrained(tmp_path / "coarse")
    coarse.save_pretrained(tmp_path / "coarse")
    (tmp_path / "d.jsonl").write_text('{"prompt": "Q:", "completion": "A"}\n' * 2)
    for words in (
        ["align", REPO, "--base", tmp_path / "coarse", "--push"],
        ["calibrate", REPO, "--base", tmp_path / "base", "--data", tmp_path / "d.jsonl", "--push"],
    ):
        done = invoke(*words)
        assert done.exit_code == 0, done.exception
        assert LINE in done.stderr, words[0]


def test_push_without_the_prefix(server: LocalHub, tmp_path: Path) -> None:
    """The remedy that the line names."""
    done = invoke("push", _with_prefix(tmp_path / "a"), REPO, "--no-base-prefix")
    assert LINE not in done.stderr
    assert hub.fetch_config(REPO).base_prefix is None
