"""The code in README.md runs as it stands, and the file tree in docs/architecture.md is true."""

from __future__ import annotations

import ast
import importlib
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
from adapters_on_hub import pair
from adapters_on_hub import server as server
from huggingface_hub import HfApi
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OURS = {"valueadapter", "testkit", "studies"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readmes_code_runs(
    server: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, with its users and models renamed to those of the loopback Hub, on tiny models and the CPU."""
    base = tiny_model("llama", seed=1)
    base.config.max_position_embeddings = 2048  # a byte is a token here
    for part in (base, byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    HfApi().create_repo("acme/base-model")
    HfApi().upload_folder(repo_id="acme/base-model", folder_path=tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    for name, seed in (("alice/adapter", 2), ("alice/another", 3)):
        pair(base, byte_tokenizer(), "acme/base-model", seed=seed, prefix="Q: A\n\n").push_to_hub(name)
    code = "".join(re.findall(r"```python\n(.*?)```", README, re.S)).replace("org/", "acme/").replace("user/", "alice/")
    for model in ("HuggingFaceTB/SmolLM2-135M-Instruct", "google/gemma-3-270m"):
        code = code.replace(model, "acme/base-model")
    code = code.replace("range(2, 42)", "range(2, 9)")  # fewer records, so that it takes seconds
    code = code.replace('output_dir="sailor")', 'output_dir="sailor", arguments={"use_cpu": True})')
    exec(compile(code, "README", "exec"), {})
    assert capsys.readouterr().out
    assert (tmp_path / "sailor" / "adapter" / "config.json").is_file()


def test_the_training_pages_code_trains(
    server: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The block that trains the default pair, with its user renamed, on a tiny model and the CPU: the loss falls."""
    base = tiny_model("llama", seed=1)
    for part in (base, byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    HfApi().create_repo("acme/base-model")
    HfApi().upload_folder(repo_id="acme/base-model", folder_path=tmp_path / "base")
    records = [{"prompt": f"Q {i % 7} ", "completion": "ABC" * 4} for i in range(40)]
    (tmp_path / "demonstrations.jsonl").write_text("\n".join(map(json.dumps, records)))
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page.split("## In Python")[1], re.S)[0]
    names: dict[str, Any] = {}
    code = code.replace("org/", "acme/").replace('Arguments("out")', 'Arguments("out", use_cpu=True)')
    exec(compile(code, "training.md", "exec"), names)
    losses = [entry["loss"] for entry in names["trainer"].state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1
    loaded = ValueAdapter.from_pretrained(tmp_path / "my-adapter")
    assert loaded.reads_prefix
    assert [spec.path for spec in loaded.config.networks] == ["value_network", None]
    assert loaded.config.training is not None
    assert (loaded.config.training.lora_rank, loaded.config.training.initialisation) == (16, "pretrained")
    assert "adapter 'default': active, scale 1" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_pages_import_is_there(page: Path) -> None:
    """Every name that an example imports from the library, wherever the modules have gone."""
    for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for node in ast.walk(ast.parse(textwrap.dedent(code).replace("…", "..."))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, name.name) for name in node.names), ast.unparse(node)


def test_the_file_tree_is_true() -> None:
    """Every module of the package stands in it, and everything in it exists."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("## Where things are")[1].split("```")[1]
    named = set(re.findall(r"(?:^  |\s{2,})([a-z_]+\.py|[a-z_]+/)(?=\s)", tree)) - {"tests/", "docs/", "examples/"}
    package = ROOT / "valueadapter"
    there = {p.name for p in package.glob("*.py") if not p.name.startswith("__")}
    there |= {f"{p.name}/" for p in package.iterdir() if p.is_dir() and (p / "__init__.py").exists()}
    assert there <= named, there - named
    assert all((package / name).exists() or (ROOT / name).exists() for name in named), named


def test_known_problems_name_tests_that_exist() -> None:
    """Each row is shown by something."""
    root = Path(__file__).parent
    page = (root.parent / "docs" / "known-problems.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    defined = {
        name for path in root.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 20
    assert named <= defined, named - defined


def test_the_table_of_pefts_surface_names_tests_that_exist() -> None:
    """Each file that it names is there."""
    root = Path(__file__).parent
    page = (root.parent / "docs" / "adapters.md").read_text(encoding="utf-8")
    assert {*re.findall(r"`(test_\w+\.py)`", page)} <= {path.name for path in root.rglob("test_*.py")}
