"""The built wheel and sdist in a throw-away environment, extra by extra, as somebody meets them who runs `pip install`.

Knows what each extra is for and what is said where it is missing; knows no model, and names no package index: pip's own
configuration decides where packages come from.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
IMPORTS = "import valueadapter as v\nfor name in v.__all__:\n    getattr(v, name)\nprint(v.__file__)"
"""Every public name, which imports every package but `cli`."""


class InstallationError(Exception):
    """What was installed is not what was promised."""


@dataclass(frozen=True)
class Extra:
    """One extra: what shows that it is there, and who names it where it is not."""

    name: str
    imports: str
    """A line of Python that runs where it is installed."""
    asks: Sequence[str] = ()
    """Words of a command that names it where it is not; none where the user imports the package himself."""
    needs: str = "datasets"
    """The package that the message then names."""


EXTRAS = (
    Extra(
        "train",
        "from valueadapter.training.trainer import ValueTrainer\nimport accelerate, datasets",
        ["train", "--base", "nobody/base", "--data", "questions.jsonl", "--output", "out"],
    ),
    Extra(
        "evaluation",
        "import matplotlib\nfrom valueadapter.evaluation.plot import check_plot\ncheck_plot('a.png')",
        ["evaluate", "nobody/adapter", "--base", "nobody/base", "--data", "questions.jsonl", "--plot", "a.png"],
        "matplotlib",
    ),
    Extra("lm-eval", "import lm_eval"),
    Extra("trl", "from trl import SFTTrainer"),
)
"""In the order in which they are added. `vllm` has its own environment (`make test-vllm`), and `cuda` needs a GPU."""


class Environment:
    """A virtual environment in which nothing of this folder is seen."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.python = directory / "bin" / "python"

    def make(self) -> None:
        """Creates it, in the place of an earlier one."""
        shutil.rmtree(self.directory, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", self.directory], check=True)

    def install(self, *words: str) -> None:
        """Runs `pip install`, with the versions in constraints.txt."""
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", str(CONSTRAINTS), *words], check=True)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs its Python in an empty folder, without our paths and without a Hub."""
        kept: Mapping[str, str] = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        empty = self.directory / "empty"
        empty.mkdir(exist_ok=True)
        environment = {**kept, "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
        return subprocess.run([self.python, *words], cwd=empty, env=environment, capture_output=True, text=True)


def built(directory: Path) -> tuple[Path, Path]:
    """Builds wheel and sdist anew; their paths."""
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", directory], cwd=ROOT, check=True, capture_output=True
    )
    (wheel,), (sdist,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return wheel, sdist


def check(environment: Environment, installed: Sequence[Extra]) -> list[str]:
    """What is there works, and what is not is named by the command that wants it.

    Returns:
        A line for each thing that was seen.

    Raises:
        InstallationError: something is otherwise.
    """
    seen = [_package(environment), _command(environment)]
    for extra in EXTRAS:
        if extra in installed:
            _expect(environment.run("-I", "-c", extra.imports), 0, "")
            seen.append(f"[{extra.name}] is there")
        elif extra.asks:
            said = f"{extra.needs} not installed: pip install 'valueadapter[{extra.name}]'"
            _expect(environment.run("-I", "-m", "valueadapter", *extra.asks), 1, said)
            seen.append(f"[{extra.name}] is missing, and {extra.asks[0]} says: {said}")
    return seen


def _package(environment: Environment) -> str:
    place = _expect(environment.run("-I", "-c", IMPORTS), 0, str(environment.directory)).strip()
    return f"every public name is there: {Path(place).relative_to(environment.directory)}"


def _command(environment: Environment) -> str:
    program = str(environment.directory / "bin" / "valueadapter")
    code = f"import subprocess, sys; sys.exit(subprocess.run([{program!r}, '--help']).returncode)"
    _expect(environment.run("-I", "-c", code), 0, "calibrate")
    return "valueadapter --help lists the commands"


def _expect(ran: subprocess.CompletedProcess[str], code: int, said: str) -> str:
    output = ran.stdout + ran.stderr
    if ran.returncode != code or said not in " ".join(output.split()):
        raise InstallationError(f"expected exit code {code} and '{said}'; got {ran.returncode} and:\n{output}")
    return ran.stdout


def main() -> None:
    """Builds, installs and checks; the environment is removed at the end."""
    wheel, sdist = built(ROOT / "build" / "install" / "dist")
    environment = Environment(ROOT / "build" / "install" / "venv")
    environment.make()
    try:
        for count in range(len(EXTRAS) + 1):
            added = EXTRAS[:count]
            wanted = f"[{added[-1].name}]" if added else ""
            sys.stdout.write(f"==> {wheel.name}{wanted}\n")
            environment.install(f"valueadapter{wanted} @ {wheel.as_uri()}")
            sys.stdout.writelines(f"    {line}\n" for line in check(environment, added))
        sys.stdout.write(f"==> {sdist.name}\n")
        environment.install("--force-reinstall", "--no-deps", str(sdist))
        sys.stdout.writelines(f"    {line}\n" for line in check(environment, EXTRAS))
    finally:
        shutil.rmtree(ROOT / "build" / "install")


if __name__ == "__main__":
    main()
