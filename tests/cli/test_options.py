"""What options take, and what commands say beside their results: what comes next, progress, other libraries' lines."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
from test_hostile_texts import Screen
from tiny import byte_tokenizer, tiny_model
from typer.testing import CliRunner, Result
from vocabularies import tokenizer_of

from valueadapter import ConfigError, ValueAdapter
from valueadapter.artifact import file_names
from valueadapter.artifact.config import Connection, Initialisation
from valueadapter.artifact.config.parts import PenaltyKind
from valueadapter.cli import choices, other_libraries, output
from valueadapter.cli.app import app
from valueadapter.cli.models import check_device
from valueadapter.compat import installed
from valueadapter.training.recipe_settings import NetworkKind

COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that brings a chat template, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    for part in (tiny_model("llama", seed=1), byte_tokenizer()):
        part.save_pretrained(folder / "base")
    network = tiny_model("llama", seed=2)
    ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path="alice/base").save_pretrained(
        folder / "adapter"
    )
    return folder


def invoke(*words: object, code: int = 0, **how: Any) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False, **how)
    assert result.exit_code == code, result.output
    return result


def generate(place: Path, *more: object, **how: Any) -> Result:
    return invoke("generate", "--base", place / "base", "--max-new-tokens", 4, *more, **how)


def test_choices_are_the_librarys() -> None:
    """A word that the library learns is one that the command line offers."""
    kinds: dict[Any, Any] = {
        choices.Network: NetworkKind,
        choices.Start: Initialisation,
        choices.Connection: Connection,
        choices.Penalty: PenaltyKind,
    }
    for mine, theirs in kinds.items():
        assert [*mine] == [*get_args(theirs)]
    assert [*choices.Target] == [*file_names.CODE_FOLDERS, "vllm"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_its_short_help(command: str) -> None:
    """As `-h`, the same as `--help`."""
    assert invoke(*command.split(), "-h").output == invoke(*command.split(), "--help").output


def test_a_wrong_choice_is_wrong_usage_that_names_them() -> None:
    """And `--help` shows them before."""
    for words, known in (
        (["train", "--network", "x"], "'lora', 'full'"),
        (["train", "--penalty", "x"], "'none', 'l1', 'l2', 'entropy'"),
        (["generate", "--dtype", "x"], "'auto', 'float32', 'bfloat16', 'float16'"),
        (["export", "a", "--to", "x"], "'custom_generate', 'logits_processor', 'vllm'"),
    ):
        shown = invoke(*words, code=2).output.replace("│", " ")
        assert known.replace(" ", "") in "".join(shown.split())
    assert "zero_head" in invoke("train", "-h").output


def test_a_device_that_is_not_there_is_named(place: Path) -> None:
    """Before a model is loaded, with those that are."""
    check_device("cpu")
    for wrong in ("cuda:99", "tpu", "disk"):
        with pytest.raises(ConfigError, match=f"must be one of cpu.*got '{wrong}'"):
            check_device(wrong)
    with pytest.raises(ConfigError, match="takes a kind of device"):
        invoke("train", "--base", "x", "--data", "x", "--output", "x", "--device", "cuda:1")
    assert generate(place, "--prompt", "A", "--device", "cpu").stdout


def test_several_prompts_are_answered_as_each_alone(place: Path) -> None:
    """Drawn by the same seed; in a pipe an answer after the other and nothing else, as JSON with prompt and end."""
    how = ["--temperature", 1, "--seed", 3, "--top-p", 0.9]
    alone = [generate(place, "--prompt", text, *how).stdout for text in ("A", "BC")]
    asked = ["--prompt", "A", "--prompt", "BC", *how]
    assert generate(place, *asked).stdout == "".join(alone)
    told = json.loads(generate(place, *asked, "--json").stdout)
    assert [one["prompt"] for one in told] == ["A", "BC"]
    assert [f"{one['text']}\n" for one in told] == alone
    assert generate(place, "--prompt", "-", "--prompt", "BC", *how, input="A").stdout == "".join(alone)


def test_it_is_told_whether_an_answer_ended(place: Path) -> None:
    """By a token or a text; not where the tokens ran out."""
    (cut,) = json.loads(generate(place, "--prompt", "A", "--json").stdout)
    (ended,) = json.loads(generate(place, "--prompt", "A", "--stop", cut["text"][1], "--json").stdout)
    assert (cut["ended"], ended) == (False, {"prompt": "A", "text": cut["text"][0], "ended": True})


def test_options_that_say_nothing_together_are_refused(place: Path) -> None:
    """Before a model is loaded."""
    for more, message in (
        (["--top-p", 0.5], "draws nothing"),
        (["--top-p", 0, "--temperature", 1], "above 0 and up to 1"),
        (["--system", "x"], "give --chat as well"),
        (["--prompt", ""], "prompt is empty"),
        (["--prompt", "-", "--prompt", "-"], "is read once"),
    ):
        with pytest.raises(ConfigError, match=message):
            invoke("generate", "--base", "/none", "--prompt", "A", *more)
    with pytest.raises(ConfigError, match="the answer is traced"):
        invoke("trace", *["--base", "x", "--adapter", "x", "--prompt", "x", "--chat", "--max-new-tokens", 0])


def test_a_system_message_stands_before_the_prompt(place: Path) -> None:
    """Of `generate` and of `trace`, which traces the answer to a chat."""
    plain = generate(place, "--prompt", "[s]B</s>[u]A</s>[a]").stdout
    assert generate(place, "--prompt", "A", "--chat", "--system", "B").stdout == plain
    words = ["trace", "--base", place / "base", "--adapter", place / "adapter", "--prompt", "A", "--chat"]
    told = json.loads(invoke(*words, "--system", "B", "--max-new-tokens", 2, "--json").stdout)
    assert (told["prompt"], len(told["steps"]) > 0) == ("[s]B[u]A[a]", True)


def test_a_pipe_gets_whole_values_and_no_frames(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each value or row, however narrow the window; and no word on what comes next."""
    screen = Screen(monkeypatch, terminal=False)
    for console in (output.out, output.err):
        monkeypatch.setattr(console, "_width", 20)
    long = "/a/" + "long " * 40 + "/path"
    output.facts({"directory": long, "networks": ["one", "two"]}, as_json=False)
    output.next_step("valueadapter push")
    assert screen.take() == f"directory\t{long}\nnetworks\tone\nnetworks\ttwo\n"
    words = ["trace", "--base", place / "base", "--adapter", place / "adapter", "--prompt", "AB", "--max-new-tokens", 2]
    invoke(*words)
    shown = screen.take()
    assert not set(shown) & set("┃│━…")
    assert len({line.count("\t") for line in shown.splitlines() if "\t" in line}) == 1


def test_a_person_is_told_what_comes_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line at the end, with what the command was given; not beside JSON."""
    screen = Screen(monkeypatch, terminal=True)
    adapter = place / "adapter"
    invoke("verify", adapter)
    assert screen.take().splitlines()[-1] == f"next: valueadapter push {adapter} USER/NAME"
    invoke("inspect", adapter, "--base", place / "base")
    assert f"next: valueadapter generate --base {place / 'base'} --adapter {adapter}" in screen.take()
    invoke("inspect", adapter, "--json")
    assert "next:" not in screen.take()


def test_what_takes_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar for a person while it lasts; for a log a line where nobody has spoken for a while, and ever fewer."""
    monkeypatch.setattr(output, "AT_FIRST", 0.05)
    monkeypatch.setattr(output, "EVERY", 0.05)
    log = Screen(monkeypatch, terminal=False)
    with output.working("reading"):
        time.sleep(0.9)
    lines = log.take().splitlines()
    assert lines[0] == "reading …"
    assert 2 <= len(lines) <= 6
    with output.working("quick"):
        pass
    assert log.take() == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(output.err, "is_interactive", True)
    person = Screen(monkeypatch, terminal=True)
    with output.working("reading"), output.working("more"):
        assert output.bars.drawn
        time.sleep(0.3)
    assert not output.bars.drawn
    shown = person.take()
    assert "reading" in shown
    empty = 0 if installed("rich") >= (15, 0) else 1  # the line that rich 14 leaves where bars were
    assert re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", shown).strip(" \r").count("\n") <= shown.count("\x1b[1A") + empty


def test_bars_of_other_libraries_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the Hub's client and transformers, in a pipe too, once they take long; afterwards they are theirs again."""
    from huggingface_hub.utils import tqdm
    from transformers.utils import logging as of_transformers

    before = tqdm.display
    monkeypatch.setattr(other_libraries, "SOON", 0.0)
    of_hub = sys.modules["huggingface_hub.utils.tqdm"]
    monkeypatch.setattr(of_hub, "are_progress_bars_disabled", lambda name=None: False)
    log, theirs = Screen(monkeypatch, terminal=False), io.StringIO()
    with other_libraries.bars_as_ours():
        for bar in (
            tqdm(total=2_000_000, desc="model.safetensors", unit="B", unit_scale=True, file=theirs),
            of_transformers.tqdm(total=7, desc="Loading weights", file=theirs),
        ):
            bar.update(1)
            bar.close()
    assert log.take().splitlines() == ["model.safetensors: 0.0 of 2.0 MB", "Loading weights: 0 of 7"]
    assert theirs.getvalue() == ""
    assert tqdm.display is before


def test_lines_of_other_libraries_are_left_out_but_for_debugging(caplog: pytest.LogCaptureFixture) -> None:
    """Those that are listed, and no others of the same logger."""
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    with other_libraries.quiet():
        logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community")
        logger.warning("something else")
    assert [record.message for record in caplog.records] == ["something else"]
    logger.warning("Failed to load CPU gemm_4bit_forward")
    assert len(caplog.records) == 2


def test_what_cannot_be_attached_is_not_suggested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an adapter does not go with a base, what comes next is to look for another, not a command that fails."""
    network, own = tiny_model("llama", seed=2), byte_tokenizer()
    for connection in get_args(Connection):
        adapter = ValueAdapter.from_networks(
            [network], own, base_model_name_or_path="alice/base", connection=connection
        )
        adapter.save_pretrained(tmp_path / connection)
    theirs = tokenizer_of("bytes")
    theirs.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": len(theirs)}))
    said: list[str] = []
    monkeypatch.setattr(output, "next_step", said.append)
    for connection in get_args(Connection):
        invoke("inspect", tmp_path / connection, "--base", tmp_path / "base")
    search = f"valueadapter search --base {tmp_path / 'base'}"
    generate = f"valueadapter generate --base {tmp_path / 'base'} --adapter {tmp_path / 'residual'} --prompt PROMPT"
    assert said == [generate if one == "residual" else search for one in get_args(Connection)]
