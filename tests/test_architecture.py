"""The structure of the library: imports point down, files are short, public names are sorted and resolve."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path

from import_arrows import ORDER, PACKAGE, between_packages, imports

import valueadapter

ROOT = {"__init__", "__main__", "compat", "errors", "version"}
LIGHT = ["vocabulary", "artifact", "hub", "cli"]
"""Packages that import no torch, all of their modules but the commands (which import it when they run)."""
MOST_ARROWS = 40
OWN = ("self", "cls")
OF_OTHERS = {
    "_replace",
    "_asdict",
    "_apply",
    "_get_name",
    "_prepare_cache_for_generation",
    "_get_candidate_generator",
}
"""Methods of named tuples and of torch's and transformers' own classes, which are overridden and called here."""


def test_every_file_is_in_a_package() -> None:
    """Eleven packages, each with a sentence that says what it is for, and four files beside them."""
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*ORDER}
    for name in ORDER:
        assert ast.get_docstring(ast.parse((PACKAGE / name / "__init__.py").read_text())), name


def test_packages_import_downwards() -> None:
    """No package imports from one above it, and the arrows between packages stay few."""
    found = between_packages()
    upwards = {arrow: files for arrow, files in found.items() if ORDER.index(arrow[1]) > ORDER.index(arrow[0])}
    assert upwards == {}
    assert len(found) <= MOST_ARROWS


def test_modules_import_no_circle() -> None:
    """Within a package, too, each module can be read after those that it imports."""
    names = {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
    }
    waiting = {name: {*imports(path)} & {*names} for name, path in names.items() if not name.endswith("__init__")}
    while ready := {name for name, needs in waiting.items() if not needs & {*waiting}}:
        waiting = {name: needs for name, needs in waiting.items() if name not in ready}
    assert waiting == {}


def test_no_module_reaches_into_anothers_privates() -> None:
    """What begins with an underscore is used where it is defined, and nowhere else in the library."""
    trees = {path: ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}
    defined: dict[str, set[Path]] = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            own = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr
            name = own or (isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name)
            if name and name.startswith("_") and not name.startswith("__"):
                defined.setdefault(name, set()).add(path)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            of_others = isinstance(node, ast.Attribute) and not (
                isinstance(node.value, ast.Name) and node.value.id in OWN
            )
            if of_others and node.attr in defined and node.attr not in OF_OTHERS:
                assert path in defined[node.attr], f"{path.name}:{node.lineno} uses {node.attr} of another module"
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("valueadapter"):
                assert not [alias.name for alias in node.names if alias.name.startswith("_") and "__" not in alias.name]


def test_functions_are_short() -> None:
    """50 lines of code at most, its docstring aside; more than 40 are rare."""
    lengths = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                lengths[f"{path.name}: {node.name}"] = (node.end_lineno or 0) - first.lineno + 1
    assert {name: length for name, length in lengths.items() if length > 50} == {}
    assert sum(length > 40 for length in lengths.values()) < 0.02 * len(lengths)


def test_files_are_short() -> None:
    """A file over 400 lines becomes a package."""
    for path in [*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_public_names_are_sorted_and_resolve() -> None:
    """What `__all__` promises is there, in order."""
    assert valueadapter.__all__ == sorted(valueadapter.__all__)
    assert all(getattr(valueadapter, name) is not None for name in valueadapter.__all__)


def test_light_packages_import_no_torch() -> None:
    """`import valueadapter` and the packages that know no tensors start at once."""
    paths = [path for name in LIGHT for path in (PACKAGE / name).rglob("*.py") if name != "cli" or path.stem == "app"]
    names = (path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".") for path in paths)
    program = f"import sys, valueadapter, {', '.join(sorted(names))}\n"
    program += "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_public_names_stand_for_type_checkers_too() -> None:
    """The names that are imported when they are asked for, and those that a type checker reads, are the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    read = {a.name: str(node.module) for node in checked.body if isinstance(node, ast.ImportFrom) for a in node.names}
    assert read == {name: f"valueadapter.{module}" for name, module in valueadapter._EXPORTS.items()}


def test_faces_of_packages_resolve() -> None:
    """What a package says it offers is there."""
    for name in ORDER:
        package = importlib.import_module(f"valueadapter.{name}")
        assert all(getattr(package, public) is not None for public in dir(package))


def test_the_wheel_holds_the_library_alone(tmp_path: Path) -> None:
    """Neither tests nor what helps them, nor the studies; the templates that the library writes from."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=PACKAGE.parent, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = [Path(name) for name in zipfile.ZipFile(wheel).namelist()]
    assert {name.parts[0] for name in names if ".dist-info" not in name.parts[0]} == {"valueadapter"}
    rooms = {name.parts[1] for name in names if name.parts[0] == "valueadapter" and len(name.parts) > 2}
    assert rooms == {*ORDER, "hub_templates"}
