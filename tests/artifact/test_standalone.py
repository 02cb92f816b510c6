"""An exported adapter is still an adapter, and runs where this library is not installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_on_hub import server
from exported import ADAPTERS, GREEDY, IDS, PREFIX, WITHOUT_THE_PACKAGE, exported, tiny_adapter, wrapper
from huggingface_hub import HfApi
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ArtifactError, ConfigError, ValueAdapter, hub
from valueadapter.adapter.lora import build_lora_network
from valueadapter.artifact.standalone import export

__all__ = ["server"]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")
ROOT = Path(__file__).parents[2]
SPEAK = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(2)
try:
    import valueadapter
except ModuleNotFoundError:
    pass
else:
    sys.exit("this library is there")
base, given = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(base)
ids = torch.tensor(given.pop("ids"))
try:
    print(json.dumps(model.generate(ids, trust_remote_code=True, **given).tolist()))
except ImportError as error:
    print(f"ImportError: {error}")
assert not [name for name in sys.modules if name.split(".")[0] == "valueadapter"]
"""


def spoken(base: str | Path, environment: dict[str, str], absent: tuple[str, ...] = (), **how: Any) -> Any:
    """What a process without this library says, whose code is in no directory that could be imported from."""
    program = WITHOUT_THE_PACKAGE.format(absent=absent) + SPEAK
    given = json.dumps({"ids": IDS.tolist(), **GREEDY, **how})
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(base), given],
        env={"PATH": "", **environment},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = done.stdout.strip().splitlines()[-1]
    return line if line.startswith("ImportError") else torch.tensor(json.loads(line))


def base_in(folder: Path) -> Path:
    """A base of alice's with its tokenizer."""
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("to", ["custom_generate", "logits_processor"])
def test_the_copy_is_the_adapter_and_more(to: Any, tmp_path: Path) -> None:
    """Every file of it, verified as an adapter, the same networks; the code names no place of this machine."""
    adapter = tiny_adapter(**ADAPTERS["a prefix"])
    folder = exported(adapter, tmp_path, to)
    assert hub.fetch(folder) == folder
    before, after = (
        {p.relative_to(d).as_posix(): p.read_bytes() for p in d.rglob("*") if p.is_file()}
        for d in (tmp_path / "adapter", folder)
    )
    card = before.pop("README.md"), after.pop("README.md")
    assert before.items() <= after.items()
    code = {name: data.decode() for name, data in after.items() if name not in before}
    entry = "generate.py" if to == "custom_generate" else "__init__.py"
    assert set(code) == {f"{to}/{name}" for name in (entry, "value_networks.py", "requirements.txt")}
    assert not [name for name, text in code.items() if str(tmp_path) in text or "import valueadapter" in text]
    assert ("custom_generate=" in card[1].decode()) == (to == "custom_generate")
    again = ValueAdapter.from_pretrained(folder)
    assert all(torch.equal(a(IDS).logits, b(IDS).logits) for a, b in zip(again.networks, adapter.networks, strict=True))


def test_exporting_again_replaces_and_keeps_what_a_person_wrote(tmp_path: Path) -> None:
    """A second export, of the copy itself too; saving an adapter over it takes the code away."""
    folder = exported(tiny_adapter(), tmp_path)
    (folder / "README.md").write_text("mine")
    (folder / "LICENSE").write_text("mine")
    export(folder, folder, to="logits_processor", repo_id="alice/a")
    assert {p.name for p in folder.iterdir()} > {"custom_generate", "logits_processor", "LICENSE"}
    assert (folder / "README.md").read_text() == "mine"
    export(tmp_path / "adapter", folder, to="custom_generate", repo_id="alice/a")
    assert (folder / "README.md").read_text() == "mine"
    assert 'ADAPTER = "alice/a"' in (folder / "custom_generate" / "generate.py").read_text()
    tiny_adapter().save_pretrained(folder)
    assert not (folder / "custom_generate").exists()


def test_a_trainers_state_is_not_exported(tmp_path: Path) -> None:
    """Whoever uploads the copy by other means publishes no pickles."""
    folder = tmp_path / "trained"
    tiny_adapter().save_pretrained(folder)
    for name in ("optimizer.pt", "training_args.bin", "checkpoint-5/rng_state.pth", "runs/events"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    export(folder, tmp_path / "copy", to="custom_generate")
    names = {path.name for path in (tmp_path / "copy").rglob("*")}
    assert "custom_generate" in names
    assert not names & {"optimizer.pt", "training_args.bin", "checkpoint-5", "rng_state.pth", "runs", "events"}


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    """Says what was expected; nothing is written."""
    tiny_adapter().save_pretrained(tmp_path / "adapter")
    network = tiny_model("llama", seed=2)
    ValueAdapter.from_networks(
        [network], byte_tokenizer(), base_model_name_or_path="a/b", connection="cascade"
    ).save_pretrained(tmp_path / "cascade")
    target = tmp_path / "new"
    with pytest.raises(ConfigError, match="expected custom_generate or logits_processor"):
        export(tmp_path / "adapter", target, to="onnx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="form user/name; got"):
        export(tmp_path / "adapter", target, to="custom_generate", repo_id='a/b"; import os')
    with pytest.raises(ConfigError, match="'cascade', and the exported code runs"):
        export(tmp_path / "cascade", target, to="custom_generate")
    assert not target.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ArtifactError, match="holds something else"):
        export(tmp_path / "adapter", tmp_path / "mine", to="custom_generate")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["generate.py", "value_network/custom_generate/x.py", "custom/generate.py"])
def test_code_anywhere_else_is_still_refused(place: str, tmp_path: Path) -> None:
    """Only the two directories that `export` writes may hold some."""
    folder = exported(tiny_adapter(), tmp_path)
    (folder / place).parent.mkdir(exist_ok=True, parents=True)
    (folder / place).write_text("")
    with pytest.raises(ArtifactError, match="is code; a value adapter holds none but"):
        hub.fetch(folder)


@pytest.mark.parametrize("which", ADAPTERS)
def test_a_directory_speaks_without_the_library(which: str, tmp_path: Path) -> None:
    """By itself, in a process that cannot import this library."""
    adapter = tiny_adapter(**ADAPTERS[which])
    folder, base = exported(adapter, tmp_path), base_in(tmp_path / "base")
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    found = spoken(base, environment, custom_generate=str(folder), adapter=str(folder))
    assert torch.equal(found, wrapper(tiny_model("llama", seed=1), byte_tokenizer(), adapter).generate(IDS, **GREEDY))


def test_a_repository_speaks_without_the_library(server: LocalHub, tmp_path: Path) -> None:
    """Pushed by `hub.push`, used by its Hub ID: a LoRA, and a network at a pinned commit that reads the prefix.

    Code and weights are of one commit, also after another was pushed; LoRA without PEFT says what to install.
    """
    api = HfApi()
    api.create_repo("alice/base")
    commit = api.upload_folder(repo_id="alice/base", folder_path=base_in(tmp_path / "base")).oid
    lora = build_lora_network(tiny_model("llama", seed=1), rank=2, name="alice/base", revision=commit)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.35, generator=generator)
    adapter = ValueAdapter.from_networks(
        [lora, f"alice/base@{commit}"],
        byte_tokenizer(),
        base_model_name_or_path="alice/base",
        coefficients=[1.0, -1.0],
        base_prefix=PREFIX,
        reads_prefix=[False, True],
    )
    first = str(hub.push(exported(adapter, tmp_path), "alice/my.own-adapter").oid)
    text = (tmp_path / "exported" / "custom_generate" / "generate.py").read_text()
    assert "ADAPTER = None" in text
    environment = server.env(token="hf_alice", home=tmp_path / "home")
    expected = wrapper(tiny_model("llama", seed=1), byte_tokenizer(), adapter).generate(IDS, **GREEDY)
    repository = {"custom_generate": "alice/my.own-adapter"}
    assert torch.equal(spoken("alice/base", environment, **repository), expected)
    assert "is a LoRA: pip install peft" in spoken("alice/base", environment, ("peft",), **repository)
    card = Path(api.hf_hub_download("alice/my.own-adapter", "README.md")).read_text()
    assert 'custom_generate="alice/my.own-adapter", trust_remote_code=True' in card
    assert "- custom_generate" in card

    other = tiny_adapter()
    hub.push(exported(other, tmp_path / "second"), "alice/my.own-adapter")
    newer = wrapper(tiny_model("llama", seed=1), byte_tokenizer(), other).generate(IDS, **GREEDY)
    assert torch.equal(spoken("alice/base", environment, **repository), newer)
    assert torch.equal(spoken("alice/base", environment, **repository, revision=first), expected)


def test_pushing_an_adapter_leaves_code_of_others_alone(server: LocalHub, tmp_path: Path) -> None:
    """An adapter without code takes none away: a repository may have a `generate` that a person wrote."""
    hub.push(exported(tiny_adapter(), tmp_path), "alice/a")
    (tmp_path / "adapter" / "custom_generate").mkdir()
    (tmp_path / "adapter" / "custom_generate" / "secret.py").write_text("")
    hub.push(tmp_path / "adapter", "alice/a")
    names = HfApi().list_repo_files("alice/a")
    assert "custom_generate/generate.py" in names
    assert "custom_generate/secret.py" not in names
    fetched = hub.fetch("alice/a")
    assert not list(fetched.rglob("*.py"))


def test_requirements_are_the_librarys_own() -> None:
    """One place says which versions; and peft is asked for only where a network is a LoRA."""
    from valueadapter.artifact import standalone as module

    wanted = set(re.findall(r'^    "([^"]+)",\s+#', (ROOT / "pyproject.toml").read_text(), re.M))
    assert {*module._NEEDED, module._NEEDED_BY_LORA} <= wanted


def test_the_code_is_in_the_wheel(tmp_path: Path) -> None:
    """An installed library exports what the checkout does."""
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, env={**os.environ})
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in ("generate.py", "value_networks.py", "logits_processor.py"):
            assert archive.read(f"valueadapter/hub_templates/{name}") == (ROOT / "hub_templates" / name).read_bytes()
