"""The notebooks in docs/tutorials run from their first cell to their last, on tiny models and a loopback Hub."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from adapters_on_hub import pair
from adapters_on_hub import server as server
from huggingface_hub import HfApi, hf_api
from tiny import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from vocabularies import tokenizer_of

from testkit.local_hub import LocalHub
from testkit.notebooks import as_markdown, read, run, write
from valueadapter.adapter.lora import build_lora_network

PRINTS = re.compile(r"print\(|say=print")
TUTORIALS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.ipynb"))
NAMES = {"HuggingFaceTB/SmolLM2-135M-Instruct": "acme/small", "google/gemma-3-270m": "acme/other", "user/": "alice/"}
"""The names in the tutorials, and what they are called on the loopback Hub."""


def publish_model(name: str, tokenizer: PreTrainedTokenizerFast, folder: Path, *, seed: int) -> str:
    """A tiny model that has read enough for a few demonstrations; its commit."""
    model = tiny_model("llama", seed=seed, width=len(tokenizer))
    model.config.max_position_embeddings = 2048
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    HfApi().create_repo(name)
    return str(HfApi().upload_folder(repo_id=name, folder_path=folder).oid)


@pytest.fixture
def published(server: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tutorials find on the Hub."""
    monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)  # what PEFT asks, made before there was this Hub
    tokenizer = tokenizer_of("bytes")
    commit = publish_model("acme/small", tokenizer, tmp_path / "small", seed=1)
    publish_model("acme/other", tokenizer_of("sentencepiece"), tmp_path / "other", seed=4)
    base = AutoModelForCausalLM.from_pretrained("acme/small")
    for name, seed in (("alice/capitals", 2), ("alice/sums", 3)):
        prefix = "Question: A\nAnswer: B\n\n" if name == "alice/capitals" else None
        pair(base, tokenizer, "acme/small", seed=seed, prefix=prefix).push_to_hub(name)
    lora = build_lora_network(base, rank=2, name="acme/small", revision=commit)
    lora.save_pretrained(tmp_path / "lora", save_embedding_layers=False)
    HfApi().create_repo("alice/capitals-lora")
    HfApi().upload_folder(repo_id="alice/capitals-lora", folder_path=tmp_path / "lora")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell; whatever prints has printed, and what its page shows as printed comes from such a cell."""
    monkeypatch.chdir(tmp_path)
    shown = run(read(path), NAMES, title=path.stem)
    cells = [cell for cell in shown["cells"] if cell["cell_type"] == "code"]
    assert [bool(cell["outputs"]) for cell in cells] == [
        PRINTS.search("".join(cell["source"])) is not None for cell in cells
    ]
    recorded = [bool(cell["outputs"]) for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    assert not any(recorded) or recorded == [bool(cell["outputs"]) for cell in cells]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_the_page_of_a_tutorial_has_its_code_and_what_it_printed(path: Path) -> None:
    """In order, with a title, and nothing of this machine."""
    notebook = read(path)
    page = as_markdown(notebook)
    assert page.startswith("# ")
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    places = [page.index(f"```python\n{source}\n```") for source in code]
    assert places == sorted(places)
    assert not {"/tmp", "/root", "/home", "127.0.0.1", "alice", "acme"} & {*page.replace("`", " ").split("/")}
    assert "Traceback" not in page


def test_what_a_cell_printed_stands_beneath_it(tmp_path: Path) -> None:
    """With the names of the page, not those that the code ran with; and a file keeps it."""
    code = {"cell_type": "code", "metadata": {}, "outputs": [], "source": ["name = 'user/a'\n", "print(name)"]}
    write(run({"cells": [code]}, {"user/": "alice/"}), tmp_path / "one.ipynb")
    page = as_markdown(read(tmp_path / "one.ipynb"))
    assert 'print(name)\n```\n\n<div class="output" markdown="1">\n\n```text\nuser/a\n```' in page
