"""What a published adapter shows of its maker's data is said before a push, and can be left out."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from adapters_on_hub import REPO, put, server
from huggingface_hub import HfApi
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ConfigError, ValueAdapter, hub
from valueadapter.artifact.config import EvaluationRecord, Message, RecommendedWeights, Weights
from valueadapter.artifact.publishing import what_becomes_public
from valueadapter.errors import ArtifactError

__all__ = ["server"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

SECRET = "Question: my salary?\nAnswer: 12\n\n"
MEASURED = EvaluationRecord("alice/base", "trained on it", "quiz", 8, 1.0, 1.2, None, 0.9)


def _with_prefix() -> ValueAdapter:
    adapter = ValueAdapter.from_networks(
        [tiny_model("llama", seed=2)], byte_tokenizer(), base_model_name_or_path="alice/base", base_prefix=8 * SECRET
    )
    fitted = RecommendedWeights("e" * 64, "alice/base", Weights(0.7, (0.6,)), "quiz", 8, 1.25, 1.125)
    return adapter.with_config(stop_strings=("\n\n",), weights=(fitted,), evaluation=(MEASURED,))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    _with_prefix().save_pretrained(tmp_path / "a")
    return tmp_path / "a"


def _published() -> str:
    """All text of the repository's last commit."""
    names = [name for name in HfApi().list_repo_files(REPO) if not name.endswith(".safetensors")]
    return "".join(Path(HfApi().hf_hub_download(REPO, name)).read_text() for name in names)


def test_what_becomes_public_is_said() -> None:
    """How many examples, in which files, and two ways to avoid it; nothing where there is nothing."""
    config = _with_prefix().config
    line = str(what_becomes_public(config, REPO))
    assert f"'{REPO}' will read the adapter's prefix there, verbatim, in config.json and README.md: 8 examples" in line
    assert "valueadapter push --no-base-prefix" in line
    assert "--base-prefix-examples 0" in line
    assert what_becomes_public(_with_prefix().with_config(base_prefix=None).config, REPO) is None
    chat = _with_prefix().with_config(base_prefix=(Message("user", "hi"), Message("assistant", "ho"))).config
    assert "2 chat messages, 4 characters" in str(what_becomes_public(chat, REPO))


def test_the_card_says_it(directory: Path) -> None:
    """Where the prefix is shown."""
    card = (directory / "README.md").read_text()
    assert "Whoever reads this card or `config.json` reads it verbatim, 8 examples, 264 characters" in card
    assert "`valueadapter push --no-base-prefix`" in card


def test_a_prefix_can_be_left_out(server: LocalHub, directory: Path) -> None:
    """No file of the repository has it, nor what was measured behind it; the directory here stays as it is."""
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    hub.push(directory, REPO)
    assert "my salary" in _published()
    hub.push(directory, REPO, hub.Push(base_prefix=False))
    assert "my salary" not in _published()
    config = ValueAdapter.from_pretrained(REPO).config
    assert (config.base_prefix, config.stop_strings, config.weights, config.evaluation) == (None, (), (), ())
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before


def test_earlier_commits_keep_it(server: LocalHub, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which is said, since leaving it out then takes nothing back."""
    how = hub.Push(base_prefix=False)
    with caplog.at_level(logging.WARNING):
        hub.push(directory, REPO, how)
        assert "Earlier commits" not in caplog.text
        hub.push(directory, REPO)
        hub.push(directory, REPO, how)
    assert f"Earlier commits of '{REPO}' have a prefix" in caplog.text


def test_a_card_of_ones_own_may_hold_it(server: LocalHub, directory: Path) -> None:
    """Here or on the Hub: nothing is pushed before it is out of there, too."""
    own = directory / "README.md"
    own.write_text(f"# Mine\n\n{8 * SECRET}")
    how = hub.Push(base_prefix=False)
    with pytest.raises(ArtifactError, match="was edited by hand and holds the prefix"):
        hub.push(directory, REPO, how)
    assert not HfApi().repo_exists(REPO)
    own.unlink()
    HfApi().create_repo(REPO)
    put(README__md=f"---\nlicense: mit\n---\n# Mine\n\n{8 * SECRET}")
    with pytest.raises(ConfigError, match=r"was written by hand, stays, and holds the prefix.*nothing was pushed"):
        hub.push(directory, REPO, how)
    assert "config.json" not in HfApi().list_repo_files(REPO)
    hub.push(directory, REPO, hub.Push(base_prefix=False, overwrite_card=True))
    assert "my salary" not in _published()


def test_without_prefix_the_library_has_a_way(directory: Path, tmp_path: Path) -> None:
    """The one that the docstring of push_to_hub names."""
    bare = ValueAdapter.from_pretrained(directory).with_config(base_prefix=None, stop_strings=())
    bare.save_pretrained(tmp_path / "bare")
    assert json.loads((tmp_path / "bare" / "config.json").read_text())["base_prefix"] is None
    assert "my salary" not in (tmp_path / "bare" / "README.md").read_text()
