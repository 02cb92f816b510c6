"""Whatever a tokenizer's `save_pretrained` writes is saved, verified, published, downloaded and replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from adapters_on_hub import REPO, server
from huggingface_hub import HfApi
from tiny import tiny_model
from transformers import AddedToken, PreTrainedTokenizerFast
from vocabularies import KINDS, tokenizer_of

from testkit.local_hub import LocalHub
from valueadapter import ArtifactError, ConfigError, ValueAdapter, hub
from valueadapter.artifact import file_names, verification
from valueadapter.artifact.config import NetworkSpec

__all__ = ["server"]
TEMPLATES = {"default": "{{ messages }}", "tool_use": "{{ tools }}", "with space": "{{ 1 }}", "[a]*": "{{ 2 }}"}


def _fresh(kind: str) -> PreTrainedTokenizerFast:
    made = tokenizer_of(kind)
    return PreTrainedTokenizerFast(
        tokenizer_object=made.backend_tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def _with_templates(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = dict(TEMPLATES)


def _without_default(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = {"tool_use": "{{ tools }}"}


def _with_one_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = "{{ messages }}"


def _with_more_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|more|>"]})
    tokenizer.add_tokens([AddedToken("plainly", special=False)])


CHANGES = [_with_templates, _without_default, _with_one_template, _with_more_tokens]


def _adapter(tokenizer: PreTrainedTokenizerFast) -> ValueAdapter:
    network = tiny_model("llama", seed=2, width=len(tokenizer))
    return ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base")


def files(directory: Path) -> dict[str, bytes]:
    """Path -> content of every file that is not hidden, the card left out."""
    found = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "README.md" and name[0] != "."}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_file_that_a_tokenizer_saves_arrives(
    server: LocalHub, tmp_path: Path, kind: str, change: Callable[[PreTrainedTokenizerFast], None]
) -> None:
    """After push and load the files are those of the directory, and the tokenizer has the same templates."""
    tokenizer = _fresh(kind)
    change(tokenizer)
    written = {Path(name).relative_to(tmp_path / "alone") for name in tokenizer.save_pretrained(tmp_path / "alone")}
    _adapter(tokenizer).save_pretrained(tmp_path / "a")
    assert {path.as_posix() for path in written} <= set(files(tmp_path / "a"))
    hub.push(tmp_path / "a", REPO)
    assert files(hub.fetch(REPO)) == files(tmp_path / "a")
    assert ValueAdapter.from_pretrained(REPO).tokenizer.chat_template == tokenizer.chat_template


def test_templates_that_the_new_adapter_lacks_go(server: LocalHub, tmp_path: Path) -> None:
    """On the Hub and in a directory; a person's files beside them stay."""
    with_templates, plain = _fresh("bytes"), _fresh("bytes")
    _with_templates(with_templates)
    _adapter(with_templates).push_to_hub(REPO)
    _adapter(with_templates).save_pretrained(tmp_path / "a")
    (tmp_path / "a" / "LICENSE").write_text("mine")
    _adapter(plain).save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a" / file_names.CHAT_TEMPLATES).exists()
    assert (tmp_path / "a" / "LICENSE").read_text() == "mine"
    hub.push(tmp_path / "a", REPO)
    assert not [name for name in HfApi().list_repo_files(REPO) if name.endswith(".jinja")]


@pytest.mark.parametrize("name", ["notes.txt", "deeper/tool.jinja", ".hidden.jinja", "tool.jinja.bak", "x.py"])
def test_only_templates_lie_among_templates(tmp_path: Path, name: str) -> None:
    """What is no `*.jinja` there, or is one that no push publishes, is refused."""
    tokenizer = _fresh("bytes")
    _with_templates(tokenizer)
    _adapter(tokenizer).save_pretrained(tmp_path)
    path = tmp_path / file_names.CHAT_TEMPLATES / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    with pytest.raises(ArtifactError, match=r"is no chat template|is code"):
        verification.verify(tmp_path)


@pytest.mark.parametrize(
    "path", [file_names.CHAT_TEMPLATES, f"{file_names.CHAT_TEMPLATES}/a", ".value", "a/.b", "wandb"]
)
def test_no_network_lies_where_others_do(path: str) -> None:
    """Among templates, where a tracker writes, or hidden, which is not published."""
    with pytest.raises(ConfigError, match=r"may not (lie in|be hidden)"):
        NetworkSpec(1.0, path=path)
