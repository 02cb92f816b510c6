"""The code in README.md runs as it stands, and the file tree in it is true."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from pathlib import Path

import pytest
from adapters_on_hub import server as server
from huggingface_hub import HfApi
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OURS = {"valueadapter", "testkit", "studies"}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_readmes_code_runs(server: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its two users renamed to those of the loopback Hub."""
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(tmp_path / "base")
    HfApi().create_repo("acme/base-model")
    HfApi().upload_folder(repo_id="acme/base-model", folder_path=tmp_path / "base")
    for name, seed in (("alice/adapter", 2), ("alice/another", 3)):
        network = tiny_model("llama", seed=seed)
        adapter = ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="acme/base-model")
        adapter.push_to_hub(name)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(code.replace("org/", "acme/").replace("user/", "alice/"), "README", "exec"), {})
    assert capsys.readouterr().out.startswith("Question:")


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
    tree = README.split("## Where things are")[1].split("```")[1]
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
