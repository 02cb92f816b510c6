"""The commands that speak of a base: `inspect --base` and `align`, on directories and on a Hub on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapters_on_hub import contents
from huggingface_hub import HfApi
from test_app import Shell
from tiny import tiny_model
from vocabularies import tokenizer_of

from testkit.local_hub import LocalHub
from valueadapter import ValueAdapter
from valueadapter.artifact import verification


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    root = tmp_path_factory.mktemp("cli")
    with LocalHub(root / "server") as hub:
        yield Shell(hub, root / "home")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small files of bases, by vocabulary; the weights are none, so that opening them would fail."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in ("bytes", "coarse bytes", "unigram"):
        tokenizer_of(kind).save_pretrained(folder / kind)
        (folder / kind / "config.json").write_text(json.dumps({"vocab_size": len(tokenizer_of(kind))}))
        (folder / kind / "model.safetensors").write_bytes(b"x" * 2_000_000)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path]) -> Path:
    folder = bases["bytes"].parent / "adapter"
    tokenizer = tokenizer_of("bytes")
    network = tiny_model("llama", seed=2, width=len(tokenizer))
    ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base").save_pretrained(folder)
    return folder


@pytest.fixture
def api(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return HfApi(endpoint=shell.hub.endpoint, token="hf_alice")


def test_inspect_says_how_it_goes_with_a_base(shell: Shell, adapter: Path, bases: dict[str, Path]) -> None:
    """As rows for people and as one key for programs; nothing of it without --base."""
    base = bases["coarse bytes"]
    rows = shell("inspect", adapter, "--base", base).stdout
    for words in (
        "verdict",
        "static map",
        "same bytes",
        "predict the same thing",
        "3 control tokens",
        "2.0 MB",
        "cost",
    ):
        assert words in rows
    assert "`valueadapter align` puts it in the artifact" in rows
    plain = json.loads(shell("inspect", adapter, "--json").stdout)
    facts = json.loads(shell("inspect", adapter, "--base", base, "--json").stdout)
    verdict = facts.pop("compatibility")
    assert facts == plain
    assert (verdict["relation"], verdict["map_in_artifact"], verdict["base_bytes"]) == ("static", False, 2_000_000)
    assert verdict["network_bytes"] == (adapter / "value_network" / "model.safetensors").stat().st_size
    assert verdict["special_without_counterpart"] == ["<pad>", "<s>", "<|turn|>"]
    assert "identity: ids pass through" in shell("inspect", adapter, "--base", bases["bytes"]).stdout


def test_inspect_of_hub_ids_downloads_no_weights(
    shell: Shell, api: HfApi, adapter: Path, bases: dict[str, Path]
) -> None:
    """Neither the adapter's nor the base's, whose size is told all the same; a revision of the base is honoured."""
    shell("push", adapter, "alice/looked-at")
    api.create_repo("alice/base")
    first = api.upload_folder(repo_id="alice/base", folder_path=bases["coarse bytes"]).oid
    api.upload_folder(repo_id="alice/base", folder_path=bases["bytes"])
    seen = len(shell.hub.log)
    asked = ["inspect", "alice/looked-at", "--base", "alice/base", "--json"]
    now = json.loads(shell(*asked).stdout)["compatibility"]
    then = json.loads(shell(*asked, "--base-revision", first).stdout)["compatibility"]
    assert (now["relation"], then["relation"]) == ("identity", "static")
    assert (now["base_bytes"], now["network_bytes"] > 0) == (2_000_000, True)
    assert not any("safetensors" in request.path and request.method == "GET" for request in shell.hub.log[seen:])
    api.create_repo("alice/data", repo_type="dataset")
    assert "is a dataset or a space" in shell("inspect", "alice/looked-at", "--base", "alice/data", code=1).stderr


def test_inspect_uses_a_base_in_the_cache_without_the_hub(
    shell: Shell, api: HfApi, adapter: Path, bases: dict[str, Path]
) -> None:
    """Without waiting for a server that does not answer; only the size of the base is then unknown."""
    api.create_repo("alice/cached")
    api.upload_folder(repo_id="alice/cached", folder_path=bases["unigram"])
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        api.hf_hub_download("alice/cached", name, cache_dir=Path(shell.environment["HF_HOME"], "hub"))
    cut_off = {**shell.environment, "HF_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "valueadapter", "inspect", adapter, "--base", "alice/cached", "--json"]
    done = subprocess.run(command, env=cut_off, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["compatibility"]["base_bytes"] is None
    assert "Retrying" not in done.stderr


def test_align_writes_the_adapter_with_the_map(
    shell: Shell, adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    """One file more, the others unchanged; a second map joins the first; inspecting sees them."""
    target = tmp_path / "aligned"
    said = json.loads(shell("align", adapter, "--base", bases["coarse bytes"], "--output", target, "--json").stdout)
    assert (said["relation"], said["directory"]) == ("static", str(target))
    before, after = contents(adapter), contents(target)
    assert {name: data for name, data in after.items() if name != said["file"]} == before
    assert said["file"] in after
    again = shell("align", target, "--base", bases["unigram"], "--output", target).stdout
    assert "predict the same thing" in again
    assert len(verification.read_alignments(target)) == 2
    assert "in the artifact" in shell("inspect", target, "--base", bases["coarse bytes"]).stdout
    assert len(ValueAdapter.from_pretrained(target).alignments) == 2


def test_align_pushes_one_commit(shell: Shell, api: HfApi, adapter: Path, bases: dict[str, Path]) -> None:
    """The map arrives beside what was there, on the branch that was named."""
    shell("push", adapter, "alice/aligned")
    before = set(api.list_repo_files("alice/aligned"))
    commits = len(api.list_repo_commits("alice/aligned"))
    said = json.loads(shell("align", "alice/aligned", "--base", bases["coarse bytes"], "--push", "--json").stdout)
    assert set(api.list_repo_files("alice/aligned")) == {*before, said["file"]}
    last, *rest = api.list_repo_commits("alice/aligned")
    assert (len(rest), last.commit_id) == (commits, said["commit"])
    assert last.title == "Add the vocabulary map for coarse bytes"
    assert said["file"] in json.loads(shell("inspect", "alice/aligned", "--json").stdout)["files"]
    api.create_branch("alice/aligned", branch="more")
    shell("align", "alice/aligned", "--base", bases["unigram"], "--push", "--revision", "more")
    names = [name for name in api.list_repo_files("alice/aligned", revision="more") if "alignments" in name]
    assert len(names) == 2
    assert len(api.list_repo_commits("alice/aligned")) == commits + 1


def test_align_writes_nothing_where_no_map_is_needed(
    shell: Shell, adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    """The same vocabulary: said so, with exit code 0."""
    asked = ["align", adapter, "--base", bases["bytes"], "--output", tmp_path / "none"]
    assert "none is needed; nothing was written" in shell(*asked).stdout
    assert json.loads(shell(*asked, "--json").stdout)["file"] is None
    assert list(tmp_path.iterdir()) == []


def test_align_keeps_what_a_person_wrote_in_the_target(
    shell: Shell, adapter: Path, bases: dict[str, Path], tmp_path: Path
) -> None:
    """A hand-written card and a licence stay; hidden files of the source do not travel."""
    ValueAdapter.from_pretrained(adapter).save_pretrained(tmp_path / "mine")
    (tmp_path / "mine" / ".git").mkdir()
    target = tmp_path / "target"
    ValueAdapter.from_pretrained(adapter).save_pretrained(target)
    (target / "README.md").write_text("# By hand\n")
    (target / "LICENSE").write_text("free\n")
    shell("align", tmp_path / "mine", "--base", bases["unigram"], "--output", target)
    assert (target / "README.md").read_text() == "# By hand\n"
    assert (target / "LICENSE").read_text() == "free\n"
    assert not (target / ".git").exists()


def test_errors_say_what_to_do(shell: Shell, adapter: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    """One line, exit code 1, nothing written."""
    base, full = bases["unigram"], tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").write_text("years of work")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text('{"vocab_size": 9}')
    commit = "0123456789" * 4
    for arguments, words in (
        (["align", adapter, "--base", base], "--output DIR or --push; got neither"),
        (["align", adapter, "--base", base, "--push", "--output", tmp_path / "o"], "got both"),
        (["align", adapter, "--base", base, "--push"], "is a directory; use --output"),
        (["align", "alice/a", "--base", base, "--push", "--revision", commit], "needs a branch"),
        (["align", adapter, "--base", base, "--output", full], "holds something else (thesis.tex)"),
        (["align", base, "--base", base, "--output", tmp_path / "o"], "is a plain model, not a value adapter"),
        (["align", adapter, "--base", adapter, "--output", tmp_path / "o"], "model_type 'value_adapter'"),
        (["inspect", adapter, "--base", tmp_path / "bare"], "tokenizer of base model"),
        (["inspect", adapter, "--base", "./no/where"], "neither a directory here nor"),
        (["inspect", adapter, "--base", "alice/nowhere"], "there is no model repository 'alice/nowhere'"),
    ):
        done = shell(*arguments, code=1)
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.strip().splitlines()) == 1
        assert words in done.stderr
    assert not (tmp_path / "o").exists()
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


def test_a_damaged_adapter_is_not_copied(shell: Shell, adapter: Path, bases: dict[str, Path], tmp_path: Path) -> None:
    """Verification comes first."""
    ValueAdapter.from_pretrained(adapter).save_pretrained(tmp_path / "broken")
    weights = tmp_path / "broken" / "value_network" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"abcd")
    asked = ["align", tmp_path / "broken", "--base", bases["unigram"], "--output", tmp_path / "o"]
    assert "has changed since it was saved" in shell(*asked, code=1).stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "command", ["inspect ADAPTER --base BASE", "align ADAPTER --base BASE --output OUT", "align -h"]
)
def test_neither_needs_torch(shell: Shell, adapter: Path, bases: dict[str, Path], tmp_path: Path, command: str) -> None:
    """They answer at once, on machines without it too."""
    places = {"ADAPTER": adapter, "BASE": bases["coarse bytes"], "OUT": tmp_path / "out", "-h": "--help"}
    arguments = [str(places.get(word, word)) for word in command.split()]
    program = "import sys\nfrom valueadapter.cli import main\ntry: main()\nfinally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=shell.environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.rstrip().endswith("False")
