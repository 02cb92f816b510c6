"""What `make` and `make test-minimum` install agrees with the ranges that users get."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def pins(file: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def requirements() -> list[Requirement]:
    """Of whoever uses the library: no tools for tests, no kernels for CUDA."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        Requirement(one)
        for one in sum((extras[e] for e in ("train", "evaluation", "lm-eval", "trl")), project["dependencies"])
    ]
    return [one for one in wanted if one.name != project["name"]]


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    """Otherwise `make test-minimum` tests what nobody was promised, or not what everybody was."""
    oldest = pins("constraints-minimum.txt")
    for one in requirements():
        bounds = [bound for bound in one.specifier if bound.operator == ">="]
        if one.name != "torch":  # its older CPU builds are not at hand
            assert [Version(bound.version) for bound in bounds] == [oldest[canonicalize_name(one.name)]], one


def test_the_usual_versions_are_in_the_ranges() -> None:
    """No range is out of reach of what is tested most."""
    usual = pins("constraints.txt")
    for one in requirements():
        assert one.specifier.contains(usual[canonicalize_name(one.name)]), one
