"""The structure of the library: imports point down, files are short, public names are sorted and resolve."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import valueadapter

PACKAGE = Path(valueadapter.__file__).parent
# from the ground up; a module imports only from floors below its own, or from its own in the order given
FLOORS = [
    ["version", "errors", "layout", "visible"],
    ["extras", "records", "messages", "contents", "foreign_records", "record_files"],
    ["json_file", "weight_file", "network_settings", "tokenizer_settings"],
    ["config", "record_checks", "network_files"],
    ["demonstrations"],
    ["vocabulary"],
    ["stable_cuts"],
    ["text_encoder"],
    ["alignment"],
    ["context"],
    ["artifact", "card", "link"],
    ["save_target"],
    ["staging"],
    ["compatibility", "export"],
    ["hub"],
    ["devices", "encoding", "steps", "model_state"],
    ["network", "outputs", "losses", "heads", "data", "stops", "cache", "plan", "row_cache"],
    ["positions"],
    ["refinement", "prefix", "fused_kernels", "network_loading", "tokenizer_loading", "provenance"],
    ["reader", "connection"],
    ["adapter", "value_logits", "acting", "chat_text"],
    ["base_prefix", "fused_loss", "chat", "effect", "injected"],
    ["choosing", "training_loss", "token_mean", "claims"],
    ["status", "fused_head", "saving"],
    ["attachment", "base_states", "rows", "loading"],
    ["generation", "bounded_logits"],
    ["judge", "trace", "distillation"],
    ["modeling"],
    ["training_bases"],
    ["hidden_state_loss"],
    ["lora_checkpoint"],
    ["checkpoints"],
    ["training", "scoring"],
    ["calibration"],
    ["evaluation"],
    ["recipe_settings", "run_callbacks", "run_directory"],
    ["recipes"],
    ["cli"],
]
LIGHT = ["version", "errors", "layout", "records", "config", "vocabulary", "text_encoder", "alignment", "context"]
LIGHT += ["json_file", "weight_file", "network_settings", "tokenizer_settings", "network_files"]
LIGHT += ["artifact", "contents", "save_target", "staging", "card", "link", "compatibility", "export", "hub", "cli"]
LIGHT += ["extras", "messages", "foreign_records", "record_checks", "record_files", "visible", "stable_cuts"]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("valueadapter"):
            rest = (node.module or "").split(".")[1:]
            found |= {rest[0]} if rest else {alias.name for alias in node.names if alias.name != "__version__"}
    return found


def modules() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if name not in ("__init__", "__main__", "testing"):
            found.setdefault(name, []).append(path)
    return found


def test_imports_point_down() -> None:
    """No module imports from its own floor or from above."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    assert set(modules()) <= set(floor)
    for name, paths in modules().items():
        for imported in {i for path in paths for i in imports(path)} - {name}:
            assert floor[imported] < floor[name], f"{name} imports {imported}"


def test_files_are_short() -> None:
    """A file over 400 lines becomes a package."""
    for path in [*PACKAGE.rglob("*.py"), *Path(__file__).parent.rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_public_names_are_sorted_and_resolve() -> None:
    """What `__all__` promises is there, in order."""
    assert valueadapter.__all__ == sorted(valueadapter.__all__)
    assert all(getattr(valueadapter, name) is not None for name in valueadapter.__all__)


def test_light_modules_import_no_torch() -> None:
    """`import valueadapter` and the modules below the networks start at once."""
    names = ", ".join(f"valueadapter.{name}" for name in LIGHT if name in modules())
    program = f"import sys, valueadapter, {names}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
