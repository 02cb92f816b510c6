"""Blocks of code and commands of the documentation run, page by page, on tiny models and a loopback Hub.

All but those that `doc_blocks.ELSEWHERE` names, with the place where what they do is tested. README's code runs in
`test_docs.py`, the notebooks in `test_tutorials.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from adapters_on_hub import hub_of_alice, pair
from datasets import Dataset
from doc_blocks import BEFORE, ELSEWHERE, IN_TESTS, PAGES, RENAMED, ROOT, blocks, commands
from hub_clients import ASKS_ITS_ENDPOINT
from huggingface_hub import HfApi
from tiny import tiny_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner
from vocabularies import tokenizer_of

from valueadapter.cli.app import app

pytestmark = [ASKS_ITS_ENDPOINT, pytest.mark.filterwarnings("default")]
RECORDS = [{"prompt": f"Q {i % 7} ", "completion": "ABC " * (1 + i % 3)} for i in range(40)]
HELD_OUT = [{"prompt": f"R {i % 7} ", "completion": "ABC " * (1 + i % 3)} for i in range(20)]
BASES = {"base-model": "bytes", "base": "bytes", "base-a": "bytes", "base-b": "sentencepiece", "other-base": "unigram"}
BASES |= {
    "small": "bytes",
    "small-instruct": "bytes",
    "small-base": "bytes",
    "larger-model": "bytes",
    "other-family": "coarse bytes",
}
PREFIX = "Q 8 ABC \n\nQ 9 ABC \n\n"
ADAPTERS = {"adapter": 2, "style": 3, "style-2": 4, "facts": 5}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Hub with the bases and adapters that the pages name, and a folder with their files."""
    place = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch, hub_of_alice(place, patch):
        for seed, (name, kind) in enumerate(BASES.items()):
            tokenizer = tokenizer_of(kind)
            model = tiny_model("llama", seed=10 + seed, width=len(tokenizer))
            model.config.max_position_embeddings = 4096
            for part in (model, tokenizer):
                part.save_pretrained(place / name)
            HfApi().create_repo(f"acme/{name}")
            HfApi().upload_folder(repo_id=f"acme/{name}", folder_path=place / name)
        yield place


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the pages name; the adapters as they were published first."""
    base = AutoModelForCausalLM.from_pretrained("acme/base-model")
    for name, seed in ADAPTERS.items():
        adapter = pair(base, tokenizer_of("bytes"), "acme/base-model", seed=seed, prefix=PREFIX)
        HfApi().delete_repo(f"alice/{name}", missing_ok=True)
        adapter.push_to_hub(f"alice/{name}")
    adapter.save_pretrained(tmp_path / "my-adapter")
    monkeypatch.chdir(tmp_path)
    for path, records in (
        ("demonstrations", RECORDS),
        ("held-out", HELD_OUT),
        ("labelled", RECORDS[:8]),
        ("examples", RECORDS[:8]),
    ):
        Path(f"{path}.jsonl").write_text("\n".join(map(json.dumps, records)))
    Path("question.txt").write_text("The readers")
    return tmp_path


def names_of_page(folder: Path) -> dict[str, Any]:
    """What every page's code may take for granted; `task` is one of lm-evaluation-harness over a local file."""
    records = RECORDS[:26] + HELD_OUT[:4]
    names: dict[str, Any] = {"records": records, "Dataset": Dataset}
    path = folder / "questions.json"
    path.write_text("".join(json.dumps({"question": "A", "choices": ["B", "C"], "answer": 0}) + "\n" for _ in range(4)))
    names["task"] = {
        **{"task": "page", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}},
        **{"output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{question}}"},
        **{"doc_to_choice": "choices", "doc_to_target": "answer"},
    }
    return names


def run_command(words: list[str]) -> None:
    """A command of ours or of huggingface_hub's, in this process, which talks to the loopback Hub."""
    given = Path(words.pop()).read_text() if "<" in words else None
    words = [word for word in words if word != "<"]
    if words[0] == "hf":
        from huggingface_hub.cli.hf import app as hf

        hf(words[1:], standalone_mode=False)
        return
    assert words[0] == "valueadapter", words
    done = CliRunner().invoke(app, words[1:], input=given)
    assert done.exit_code == 0, f"{' '.join(words)}\n{done.output}\n{done.exception!r}"
    assert done.output, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_to_type_runs(page: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page, as a reader would who follows it, in one session."""
    found = list(blocks(page))
    monkeypatch.syspath_prepend(str(ROOT))
    names = names_of_page(here)
    if any("lm_eval" in block.code for block in found):
        names["none"] = pytest.importorskip("lm_eval.tasks").TaskManager(include_defaults=False)
    for block in found:
        if block.language == "python":
            exec(compile(block.code, f"{page.name}, block {block.number}", "exec"), names)
        elif block.language == "console":
            for words in commands(block.code):
                run_command(words)
        else:
            check_settings(block.code)


def check_settings(text: str) -> None:
    """Settings of accelerate are those that it knows; what they do is tested with processes (`test_distributed.py`)."""
    from accelerate.commands.config.config_args import ClusterConfig

    known = set(ClusterConfig.__dataclass_fields__)
    assert set(yaml.safe_load(text)) <= known


def test_what_is_said_of_blocks_holds() -> None:
    """Each preparation has its block, each renaming and exception its place on the pages, and named tests are there."""
    texts = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
    for page, number in BEFORE:
        assert texts[page].count("```python") > number, page
    everything = "\n".join(texts.values())
    for old in (*RENAMED, *IN_TESTS, *ELSEWHERE):
        assert old in everything, old
    for reason in ELSEWHERE.values():
        assert (ROOT / reason.split(": ")[1]).exists(), reason
