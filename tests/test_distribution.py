"""What is built and published: wheel, sdist, their metadata, and the files that say how it is tested and cited."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from valueadapter.version import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIGHT = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
import valueadapter
from valueadapter.artifact.card import templates
from valueadapter.cli import main
assert (templates() / "model_card.md.jinja").is_file() and templates().is_relative_to(sys.argv[1])
print(valueadapter.__file__)
sys.argv[1:] = ["--version"]
main()
"""


def build(source: Path, target: Path, *kinds: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), *kinds]
    subprocess.run(command, cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with wheel and sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


def read_yaml(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_sdist_makes_the_same_wheel(built: Path, wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Byte for byte, with nothing of the repository around it."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
        rooms = {path.parts[1] for path in map(Path, archive.getnames()) if len(path.parts) > 2}
    build(tmp_path / f"valueadapter-{__version__}", tmp_path / "dist", "-t", "wheel")
    again = zipfile.ZipFile(next((tmp_path / "dist").glob("*.whl")))
    assert {name: again.read(name) for name in again.namelist()} == {
        name: wheel.read(name) for name in wheel.namelist()
    }
    assert rooms == {"valueadapter", "hub_templates"}


def test_the_metadata_say_what_pyproject_says(wheel: zipfile.ZipFile) -> None:
    """Version, extras, licence, the command, and the plugin that vLLM looks for."""
    info = f"valueadapter-{__version__}.dist-info"
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "Apache-2.0")
    assert {*metadata.get_all("Provides-Extra", ())} == {*PROJECT["optional-dependencies"]}
    always = {Requirement(one).name for one in metadata.get_all("Requires-Dist", ()) if "extra ==" not in one}
    assert always == {Requirement(one).name for one in PROJECT["dependencies"]}
    points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "[console_scripts]\nvalueadapter = valueadapter.cli:main" in points
    assert "[vllm.general_plugins]\nvalueadapter = valueadapter.serving.plugin:register" in points
    assert {f"{info}/licenses/LICENSE", "valueadapter/py.typed"} <= {*wheel.namelist()}


def test_an_unpacked_wheel_runs_alone(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """In a fresh interpreter, away from the repository: its own files, its command line, its templates."""
    wheel.extractall(tmp_path / "wheel")
    command = [sys.executable, "-I", "-c", LIGHT, str(tmp_path / "wheel")]
    out = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert out.split() == [str(tmp_path / "wheel" / "valueadapter" / "__init__.py"), __version__]


def test_extras_that_are_named_exist() -> None:
    """Whoever is told `pip install 'valueadapter[name]'` gets something."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "valueadapter").rglob("*.py")]
    named = {extra for page in pages for extra in re.findall(r"valueadapter\[([a-z-]+)\]", page.read_text())}
    required = {
        extra
        for page in (ROOT / "valueadapter").rglob("*.py")
        for extra in re.findall(r'require\("([a-z-]+)"', page.read_text())
    }
    assert {"train", "evaluation"} <= required
    assert named | required <= {*PROJECT["optional-dependencies"]}


def test_the_workflow_runs_what_ci_run_runs() -> None:
    """So that a pull request meets the same commands as a contributor."""
    jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
    targets = {*jobs["make"]["strategy"]["matrix"]["target"]}
    mine = re.findall(r"^run (.*?)\s*(?:#.*)?$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert {*mine} <= targets
    assert targets - {*mine} == {"docs", "test-install"}
    made = {*re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.M)}
    assert {target.split()[0] for target in targets} <= made | {"test-minimum"}


def test_a_release_is_published_by_its_tag_alone() -> None:
    """By trusted publishing: the one job that may ask for an identity builds nothing, and there is no secret."""
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    release = yaml.safe_load(text)
    assert release[True] == {"push": {"tags": ["v*"]}}  # "on" is a boolean of YAML's
    publish = release["jobs"]["publish"]
    assert (publish["needs"], publish["environment"], publish["permissions"]) == (
        "build",
        "pypi",
        {"id-token": "write"},
    )
    assert [step["uses"].split("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    assert "secrets." not in text
    assert "permissions" not in release["jobs"]["build"]


def test_hooks_are_those_of_make_check() -> None:
    """With the tools of the environment that `make` makes, whose versions stand in one file."""
    hooks = [hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    checked = re.findall(r"\$\(PY\) -m (ruff check|ruff format|mypy)", (ROOT / "Makefile").read_text())
    entries = [hook["entry"].removeprefix(".venv/bin/python -m ").removesuffix(" --fix") for hook in hooks]
    assert entries == checked


def test_the_citation_is_of_this_version() -> None:
    """And names the paper whose method this is."""
    citation = read_yaml("CITATION.cff")
    assert (citation["version"], citation["license"]) == (__version__, PROJECT["license"])
    (paper,) = citation["references"]
    assert paper["title"] == "Transferable Post-training via Inverse Value Learning"


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.stem)
def test_forms_and_workflows_can_be_read(path: Path) -> None:
    """An issue form needs a name, a description and fields, each with a label; a workflow has jobs with steps."""
    form = yaml.safe_load(path.read_text())
    if path.parent.name == "workflows":
        assert all(job["steps"] for job in form["jobs"].values())
    elif path.stem != "config":
        assert form["name"]
        assert form["description"]
        assert all(field["attributes"].get("label") for field in form["body"] if field["type"] != "markdown")
