"""Adapters are found for a base by the tags of their cards: by its name, and by its vocabulary."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest
from adapters_on_hub import put, requests, save, server
from huggingface_hub import HfApi, close_session, constants
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter, hub
from valueadapter.artifact.card import search_tags
from valueadapter.errors import IncompatibleBaseError

__all__ = ["server"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def _adapter(folder: Path, repo_id: str, *, base: str, size: int = 97, tags: tuple[str, ...] = ()) -> None:
    """Publishes an adapter that was trained on `base`, with a vocabulary of `size` tokens."""
    network = tiny_model("llama", seed=2, width=size)
    adapter = ValueAdapter.from_networks([network], byte_tokenizer(size), base_model_name_or_path=base)
    adapter.save_pretrained(folder)
    hub.push(folder, repo_id, hub.Push(tags=tags))


def _base(folder: Path, repo_id: str, size: int = 97) -> None:
    """Publishes a base's small files, with padded logits."""
    tiny_model("llama", seed=1, width=size + 31).config.save_pretrained(folder)
    byte_tokenizer(size).save_pretrained(folder)
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)


@pytest.fixture
def published(server: LocalHub, tmp_path: Path) -> LocalHub:
    """Two bases of one vocabulary, an adapter of each, one of another vocabulary, and what is no adapter."""
    _base(tmp_path / "base", "alice/base")
    _adapter(tmp_path / "own", "alice/own", base="alice/base", tags=("quiz",))
    _adapter(tmp_path / "sister", "alice/sister", base="alice/other")
    _adapter(tmp_path / "far", "alice/far", base="acme/far", size=60)
    HfApi().create_repo("alice/lora")
    put("alice/lora", README__md="---\nlibrary_name: peft\nbase_model: alice/base\n---\n")
    return server


def _relations(findings: hub.Findings) -> dict[str, str]:
    return {one.name: one.relation for one in findings.found}


def test_name_and_vocabulary_lead_to_adapters(published: LocalHub) -> None:
    """Trained on the base first; padded logits are the same vocabulary; others only where asked; no weights read."""
    seen = len(published.log)
    findings = hub.find_adapters("alice/base")
    assert list(_relations(findings).items()) == [("alice/own", "trained on it"), ("alice/sister", "same vocabulary")]
    assert (findings.found[0].trained_on, findings.found[0].about) == ("alice/base", ("quiz",))
    assert (findings.endpoint, findings.vocabulary_unknown) == (published.endpoint, None)
    everything = hub.find_adapters("alice/base", others=True)
    assert _relations(everything) == {**_relations(findings), "alice/far": "another vocabulary"}
    assert len(hub.find_adapters("alice/base", others=True, limit=2).found) == 2
    assert not any("safetensors" in request.path for request in published.log[seen:])


def test_the_hub_filters_by_all_tags_of_a_set(published: LocalHub) -> None:
    """As `GET /api/models?filter=a&filter=b` does; the library's tag comes first."""
    hub.find_adapters("alice/base")
    asked = requests(published, "GET", "/api/models?")
    assert ["filter=value-adapter" in path for path in asked] == [True, True]
    assert "filter=base_model%3Aalice%2Fbase" in asked[0]
    assert "filter=vocab%3A" in asked[1]


def test_a_directory_is_known_by_its_vocabulary(published: LocalHub, tmp_path: Path) -> None:
    """It has no name that a card could have."""
    found = _relations(hub.find_adapters(str(tmp_path / "base")))
    assert found == {"alice/own": "same vocabulary", "alice/sister": "same vocabulary"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(IncompatibleBaseError, match=r"has no config\.json"):
        hub.find_adapters(str(tmp_path / "empty"))


def test_an_older_card_is_found_by_its_base(published: LocalHub) -> None:
    """Before this version cards had no tag for the vocabulary."""
    text = Path(HfApi().hf_hub_download("alice/own", "README.md")).read_text()
    put("alice/own", README__md="\n".join(line for line in text.splitlines() if "vocab:" not in line))
    assert _relations(hub.find_adapters("alice/base"))["alice/own"] == "trained on it"
    assert _relations(hub.find_adapters("alice/other", others=True))["alice/own"] == "vocabulary not told"


def test_a_card_of_ones_own_needs_the_tags(
    published: LocalHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without them nobody finds the adapter, which a push says."""
    folder = tmp_path / "own"
    (folder / "README.md").write_text("---\ntags: [value-adapter]\nbase_model: alice/base\n---\n# Mine\n")
    tag = search_tags(hub.fetch_config(folder))[1]
    with caplog.at_level(logging.WARNING):
        hub.push(folder, "alice/mine")
    assert f"add to the tags in that card: {tag}" in caplog.text
    caplog.clear()
    (folder / "README.md").write_text(f'---\ntags: [value-adapter, "{tag}"]\nbase_model: alice/base\n---\n# Mine\n')
    with caplog.at_level(logging.WARNING):
        hub.push(folder, "alice/mine", hub.Push(overwrite_card=True))
    assert "tags" not in caplog.text
    assert _relations(hub.find_adapters("alice/base"))["alice/mine"] == "trained on it"


def test_a_gated_base_is_searched_for_by_name(published: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tokenizer cannot be read, its name can."""
    HfApi().update_repo_settings("alice/base", gated="manual")
    findings = hub.find_adapters("alice/base", token="hf_bob", others=True)
    assert _relations(findings)["alice/own"] == "trained on it"
    assert _relations(findings)["alice/far"] == "vocabulary not told"
    assert "is gated" in str(findings.vocabulary_unknown)


def test_a_base_that_is_elsewhere(published: LocalHub) -> None:
    """A Hub with adapters alone knows their bases' names; a name that nobody knows is a mistake."""
    assert _relations(hub.find_adapters("acme/far")) == {"alice/far": "trained on it"}
    with pytest.raises(RepositoryNotFoundError, match="no model repository 'alice/bse'"):
        hub.find_adapters("alice/bse")


def test_private_adapters_show_to_their_owners(published: LocalHub) -> None:
    """As everything on the Hub."""
    HfApi().update_repo_settings("alice/own", private=True)
    assert "alice/own" in _relations(hub.find_adapters("alice/base"))
    assert "alice/own" not in _relations(hub.find_adapters("alice/base", token="hf_bob"))


def test_offline_is_said(published: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to search without a Hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(OfflineModeIsEnabled, match=r"HF_HUB_OFFLINE forbids asking the Hub at .*unset it"):
        hub.find_adapters(str(tmp_path / "base"))


def test_the_tag_is_of_the_tokens(tmp_path: Path) -> None:
    """Adapters of one vocabulary share it; another vocabulary has another."""
    one, other = (ValueAdapter.from_pretrained(save(tmp_path / str(seed), seed=seed)).config for seed in (2, 3))
    assert search_tags(one) == search_tags(other)
    changed = dataclasses.replace(one, vocabulary=dataclasses.replace(one.vocabulary, byte_fingerprint="c" * 64))
    assert search_tags(changed) == ["value-adapter", "vocab:" + "c" * 16]
