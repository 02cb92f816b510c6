"""The command line, as a person or a script meets it: real processes against a real Hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from tiny import byte_tokenizer, tiny_model

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter

RUN = [sys.executable, "-m", "valueadapter"]


class Shell:
    """Runs `valueadapter` in an environment that knows one loopback Hub."""

    def __init__(self, hub: LocalHub, home: Path) -> None:
        self.hub = hub
        self.environment = {"PATH": "", "COLUMNS": "200", "NO_COLOR": "1", **hub.env(token="hf_alice", home=home)}

    def __call__(self, *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*RUN, *map(str, arguments)], env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return done


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    root = tmp_path_factory.mktemp("cli")
    with LocalHub(root / "server") as hub:
        yield Shell(hub, root / "home")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_model("llama", seed=1).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    folder = base.parent / "adapter"
    network = tiny_model("llama", seed=2)
    ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="alice/base").save_pretrained(
        folder
    )
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "",
        "train",
        "calibrate",
        "align",
        "push",
        "fetch",
        "inspect",
        "verify",
        "generate",
        "export",
        "search",
        "distill",
    ],
)
def test_help_explains_itself_without_torch(shell: Shell, command: str) -> None:
    """Every command has a help text, and showing it is quick because torch stays out."""
    program = "import sys; from valueadapter.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, *command.split(), "--help"],
        env=shell.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Usage" in done.stdout
    assert done.stdout.rstrip().endswith("False")


def test_push_inspect_fetch_verify(shell: Shell, adapter: Path) -> None:
    """The way of an adapter to the Hub and back; inspecting it downloads no weights."""
    pushed = json.loads(shell("push", adapter, "alice/a", "--message", "First", "--json").stdout)
    seen = len(shell.hub.log)
    facts = json.loads(shell("inspect", "alice/a", "--json").stdout)
    assert facts["commit"] == pushed["commit"]
    assert facts["base_model_name_or_path"] == "alice/base"
    assert facts["bytes"] > 0
    assert not any("safetensors" in request.path and request.method == "GET" for request in shell.hub.log[seen:])
    place = json.loads(shell("fetch", "alice/a", "--json").stdout)["directory"]
    assert (Path(place) / "value_network" / "model.safetensors").exists()
    assert "format version" in shell("verify", "alice/a").stdout


def test_export_then_push(shell: Shell, adapter: Path, tmp_path: Path) -> None:
    """From the Hub to a directory with code in it, and back under the name that the code then has."""
    shell("push", adapter, "alice/plain")
    done = json.loads(
        shell("export", "alice/plain", "--to", "custom_generate", "--output", tmp_path / "e", "--json").stdout
    )
    assert done["code"] == [f"custom_generate/{n}" for n in ("generate.py", "requirements.txt", "value_networks.py")]
    assert "ADAPTER = None" in (tmp_path / "e" / "custom_generate" / "generate.py").read_text()
    shell("push", tmp_path / "e", "alice/alone")
    assert (
        "custom_generate='alice/b'"
        in shell(
            "export", adapter, "--to", "custom_generate", "--output", tmp_path / "e", "--repo-id", "alice/b"
        ).stdout
    )
    shell("verify", tmp_path / "e")
    wrong = " ".join(shell("export", adapter, "--to", "onnx", "--output", tmp_path / "f", code=2).stderr.split())
    assert "'onnx' is not one of 'custom_generate', 'logits_processor', 'vllm'" in wrong


def test_errors_are_one_line_and_the_exit_code_is_one(shell: Shell, tmp_path: Path) -> None:
    """What is wrong and what to do, no traceback; with --debug the traceback."""
    for arguments in (["inspect", "alice/none"], ["verify", tmp_path], ["push", tmp_path / "none", "alice/b"]):
        done = shell(*arguments, code=1)
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1
    lines = tmp_path / "bad.jsonl"
    lines.write_text("{nonsense")
    bad = ["train", "--base", tmp_path, "--data", lines, "--output", tmp_path / "o"]
    assert "Traceback" not in shell(*bad, code=1).stderr
    offline = {**shell.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run([*RUN, "inspect", "alice/x"], env=offline, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "Traceback" in shell("--debug", "verify", tmp_path, code=1).stderr
    assert "Usage" in shell("inspect", code=2).stderr


def test_train_then_generate(shell: Shell, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training from a dataset on the Hub ends with a summary and a published adapter, which then speaks."""
    rows = [{"prompt": f"Q{i % 7}:", "completion": "AB"} for i in range(16)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    api = HfApi(endpoint=shell.hub.endpoint, token="hf_alice")
    api.create_repo("alice/questions", repo_type="dataset")
    api.upload_file(
        path_or_fileobj=data.read_bytes(), path_in_repo="data.jsonl", repo_id="alice/questions", repo_type="dataset"
    )
    arguments = ["train", "--base", base, "--base-name", "alice/base", "--data", "alice/questions", "--eval-data", data]
    arguments += ["--output", tmp_path / "out", "--learning-rate", "0.01", "--epochs", "3", "--push-to", "alice/t"]
    arguments += ["--split", "train[:100%]", "--limit", "15"]
    done = shell(*arguments, "--json")
    summary = json.loads(done.stdout)
    assert "whoever may read 'alice/t' will read the adapter's prefix there" in done.stderr
    assert summary["demonstrations"] == 4  # the others are those that stand in the prefix
    assert summary["loss_after"] < summary["loss_before"]
    assert summary["held_out_total_bits_per_byte_base_and_adapter"] < summary["held_out_total_bits_per_byte_base"]
    assert summary["published"].startswith(shell.hub.endpoint)
    spoken = shell("generate", "--base", base, "--adapter", "alice/t=0.5", "--prompt", "Q1:", "--max-new-tokens", "4")
    assert "alice/t at scale 0.5" in spoken.stderr
    chat = shell("generate", "--base", base, "--prompt", "HI", "--chat", "--max-new-tokens", "4")
    assert "Traceback" not in chat.stderr
    assert "expected --adapter" in shell("generate", "--base", base, "--adapter", "a=b", "--prompt", "x", code=1).stderr
