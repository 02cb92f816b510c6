"""What a card shows of an evaluation: kept with the adapter, true to its records, strict, and gone with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapters_on_hub import REPO, server
from huggingface_hub import HfApi, hf_hub_download
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ArtifactError, ConfigError, ValueAdapter, hub
from valueadapter.artifact import file_names
from valueadapter.artifact.card_results import (
    LONGEST,
    CardArm,
    CardPrompt,
    CardResult,
    CardResults,
    Measure,
    read_card_results,
)
from valueadapter.artifact.config import EvaluationRecord
from valueadapter.artifact.standalone import export

__all__ = ["server"]
RECORD = EvaluationRecord("alice/big", "same family, larger", "quiz", 150, 1.0, 1.2, None, 0.9)
PICTURE = b"\x89PNG\r\n\x1a\nnot looked at"
SHOWN = CardResult(
    "alice/big",
    "same family, larger",
    "quiz",
    150,
    (
        CardArm("base", "base alone", Measure(1.2, 1.1, 1.3), Measure(0.1, 0.0, 0.2)),
        CardArm("adapted", "base + adapter", Measure(0.9, 0.8, 1.0)),
    ),
    (CardPrompt("Which gas?\nAnswer:", "nitrogen", {"base": "Air\nis", "adapted": "nitrogen"}),),
)
RESULTS = CardResults((SHOWN,), PICTURE, "Answers quiz questions in a word or two.")
FILES = (file_names.CARD_RESULTS, file_names.CARD_PICTURE)


@pytest.fixture
def adapter() -> ValueAdapter:
    made = ValueAdapter.from_networks(
        [tiny_model("llama", seed=2)], byte_tokenizer(), base_model_name_or_path="alice/base"
    ).with_config(evaluation=(RECORD,))
    made.card_results = RESULTS
    return made


def test_what_a_card_shows_stays_with_the_adapter(adapter: ValueAdapter, tmp_path: Path) -> None:
    """Saved, loaded, exported, copied and saved again: the same files, the same card."""
    adapter.save_pretrained(tmp_path / "one")
    loaded = ValueAdapter.from_pretrained(tmp_path / "one")
    assert loaded.card_results == RESULTS
    loaded.copy().with_config(scale=0.5).save_pretrained(tmp_path / "two")
    export(tmp_path / "one", tmp_path / "three", to="custom_generate")
    for name in FILES:
        assert len({(tmp_path / place / name).read_bytes() for place in ("one", "two", "three")}) == 1
    for place in ("one", "two", "three"):
        text = (tmp_path / place / file_names.CARD).read_text(encoding="utf-8")
        assert f"]({file_names.CARD_PICTURE})" in text
        assert "| Which gas?<br>Answer: | Air<br>is | nitrogen | nitrogen |" in text
        assert "\n\nAnswers quiz questions in a word or two.\n\n" in text


def test_what_belongs_to_no_record_is_shown_no_longer(adapter: ValueAdapter, tmp_path: Path) -> None:
    """Records that are gone take prompts and picture along."""
    adapter.save_pretrained(tmp_path / "one")
    other = dataclasses.replace(RECORD, data="another quiz")
    adapter.with_config(evaluation=(other,)).save_pretrained(tmp_path / "one")
    assert read_card_results(tmp_path / "one") == CardResults(description=RESULTS.description)
    assert not (tmp_path / "one" / file_names.CARD_PICTURE).exists()
    assert "Which gas" not in (tmp_path / "one" / file_names.CARD).read_text(encoding="utf-8")


def test_it_is_published_and_replaced_with_the_adapter(adapter: ValueAdapter, server: LocalHub, tmp_path: Path) -> None:
    """In the same commit; an adapter without results leaves none of them there; a description can be given."""
    adapter.save_pretrained(tmp_path / "one")
    hub.push(tmp_path / "one", REPO)
    assert ValueAdapter.from_pretrained(REPO).card_results == RESULTS
    assert {*FILES} <= {*HfApi().list_repo_files(REPO)}
    adapter.card_results = CardResults()
    adapter.save_pretrained(tmp_path / "two")
    hub.push(tmp_path / "two", REPO, hub.Push(description="Speaks like a pirate."))
    assert ValueAdapter.from_pretrained(REPO).card_results == CardResults(description="Speaks like a pirate.")
    assert file_names.CARD_PICTURE not in HfApi().list_repo_files(REPO)
    (tmp_path / "two" / file_names.CARD_RESULTS).write_bytes(RESULTS.files()[file_names.CARD_RESULTS])
    config = tmp_path / "two" / file_names.CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | {"evaluation": []}))
    hub.push(tmp_path / "two", REPO, hub.Push(description="Speaks like a pirate."))
    assert ValueAdapter.from_pretrained(REPO).card_results.results == ()  # of no record
    assert "\n\nSpeaks like a pirate.\n\n" in Path(hf_hub_download(REPO, file_names.CARD)).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["results"][0].update(colour="red"), r"unknown key 'colour'"),
        (lambda d: d["results"][0]["arms"][0]["bits_per_byte"].update(low="1"), r"low' must be a number"),
        (lambda d: d["results"][0]["prompts"][0].update(prompt="x" * (LONGEST + 1)), r"at most 600 characters"),
        (lambda d: d["results"][0].update(prompts=4 * d["results"][0]["prompts"]), r"at most 3 prompts"),
        (lambda d: d.update(description="one\nline"), r"in one line"),
        (lambda d: d.update(version="new"), r"version' must be a whole number"),
    ],
)
def test_a_damaged_file_is_an_error(
    adapter: ValueAdapter, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """That names it; one of a newer version is left alone, since no adapter computes with it."""
    adapter.save_pretrained(tmp_path)
    path = tmp_path / file_names.CARD_RESULTS
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match=rf"{file_names.CARD_RESULTS}.*{message}"):
        ValueAdapter.from_pretrained(tmp_path)
    path.write_text(json.dumps({"version": 2, "what": "nobody knows"}))
    assert ValueAdapter.from_pretrained(tmp_path).card_results == CardResults()


def test_a_picture_is_a_picture(adapter: ValueAdapter, tmp_path: Path) -> None:
    """Whatever else is called so is neither carried on nor published."""
    adapter.save_pretrained(tmp_path)
    (tmp_path / file_names.CARD_PICTURE).write_bytes(b"<svg onload='alert(1)'>")
    with pytest.raises(ArtifactError, match="is no PNG"):
        ValueAdapter.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "x" * 301, "a\u202eb"])
def test_a_description_is_one_line(text: str) -> None:
    """Before anything is published."""
    with pytest.raises(ConfigError, match="in one line"):
        CardResults(description=text)
