"""Names, texts and answers from outside are text: no command crashes on them, loses them, or obeys them."""

from __future__ import annotations

import html
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny import byte_tokenizer, tiny_model
from typer.testing import CliRunner

from valueadapter import ValueAdapter
from valueadapter.artifact.config import RecommendedWeights, Weights
from valueadapter.cli import app as application
from valueadapter.cli import output
from valueadapter.cli.app import app
from valueadapter.cli.described import described
from valueadapter.evaluation.trace import Choice, Push, Step, Trace
from valueadapter.evaluation.visible import visible, visible_json

MARKUP = ("[INST] hi [/INST]", "x[b]y", "[red]x[/]", "[/]", "[link=http://a]b[/link]", ":smile:", "$x_1$ $", "\\[b]")
"""What rich, matplotlib or Markdown would take for theirs."""
STEERING = ("\x1b[31mred\x1b[0m", "\x1b]8;;http://a\x07b", "a\rb", "\x9b2J", "\u202egnp", "\u2066x", "a\u2028b", "\0")
"""What a terminal or a reader would obey."""
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
TEXTS = (*MARKUP, *STEERING, "\ud800", "ok\nverified  yes", "<script>&", "a|b", "\U000e0041")
NAMES = ("[INST]x[/INST]", "[bold]", ":smile:", "$a_b$", "\x1b[31mred", "\u202egnp")
"""Names of folders and files, which hold no slash but that of `[/INST]`."""


def squeezed(text: str) -> str:
    """Without the breaks and spaces that fit a table to its width."""
    return re.sub(r"\s+", "", text)


def assert_shown(shown: str, text: str) -> None:
    """All of it is there, and nothing that steers."""
    assert squeezed(visible(text)) in squeezed(shown), (text, shown)
    assert not FORBIDDEN.search(shown)


@pytest.mark.parametrize("text", TEXTS)
def test_visible_text_steers_nothing_and_loses_nothing(text: str) -> None:
    """What can be seen stays; the rest is spelled out, so that a person sees that it is there."""
    assert not FORBIDDEN.search(visible(text))
    assert "\\" in text or visible(text).encode("ascii").decode("unicode_escape") == text
    assert visible(visible(text)) == visible(text)
    assert json.loads(visible_json(json.dumps(text, ensure_ascii=False))) == text


def test_scripts_and_emoji_stay() -> None:
    """Joiners are part of words and signs; private-use characters are boxes, not orders."""
    for text in ("naïve 東京 مرحبا क्‍ष", "👩\u200d💻🇫🇷", "\ue000\ue001", "a\u00a0b é"):
        assert visible(text) == text
    assert visible("a\nb\tc", keep="\n\t") == "a\nb\tc"
    assert visible("a\nb\tc") == "a\\nb\\tc"


class Screen:
    """A terminal's, or a pipe's, output and error streams."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        for console, file in ((output.out, self.out), (output.err, self.err)):
            monkeypatch.setattr(console, "_file", file)
            monkeypatch.setattr(console, "_force_terminal", terminal)
            monkeypatch.setattr(console, "_color_system", None)
            monkeypatch.setattr(console, "_width", 400)

    def take(self) -> str:
        """What was printed since this was last asked."""
        text = self.out.getvalue() + self.err.getvalue()
        for file in (self.out, self.err):
            file.seek(0)
            file.truncate()
        return text


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return Screen(monkeypatch, terminal=False)


@pytest.mark.parametrize("text", TEXTS)
def test_every_way_to_print_shows_text_as_text(screen: Screen, text: str) -> None:
    """Facts and their names, lists and maps of them, cells, lines, errors; as JSON it is the text itself."""
    ways: list[Callable[[], object]] = [
        lambda: output.facts({"name": text}, as_json=False),
        lambda: output.facts({f"on {text}": "value"}, as_json=False),
        lambda: output.facts({"names": [text], "map": {text: text}}, as_json=False),
        lambda: output.out.print(output.cell(text)),
    ]
    for show in ways:
        show()
        assert_shown(screen.take(), text)
    for line in (output.say, output.note):  # of our own making, and perhaps several
        line(f"wrote {text}")
        assert_shown(screen.take().replace("\n", "\\n"), text)
    output.error(f"there is no '{text}' here")
    shown = screen.take()
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert_shown(shown, " ".join(text.split()))
    output.facts({"name": text, text: [text]}, as_json=True)
    shown = screen.take()
    assert not FORBIDDEN.search(shown)
    assert json.loads(shown) == {"name": text, text: [text]}


def test_a_value_cannot_look_like_another_row(screen: Screen) -> None:
    """A line end within a name is spelled out."""
    output.facts({"base_model": "a/b\nverified     yes"}, as_json=False)
    assert len(screen.out.getvalue().splitlines()) == 1


def hostile_trace(text: str) -> Trace:
    choice = Choice(text, 0.5)
    return Trace(text, (Step(text, 0.5, 0.5, choice, choice, {text: Push(1.0, text, 1.0)}, 0.1),), {text: 0.5})


@pytest.mark.parametrize("text", TEXTS)
def test_a_trace_shows_every_text(text: str, tmp_path: Path) -> None:
    """In a table that anyone prints by a console of his own, and on a page that takes it for no tag."""
    found = hostile_trace(text)
    console = Console(width=300, file=io.StringIO(), record=True)
    console.print(found.table())
    shown = console.export_text()
    for part in ("tokens after", "at 0.5"):
        assert part in shown
    signs = visible(text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·"))
    assert squeezed(shown).count(squeezed(signs)) >= 4
    assert squeezed(visible(f"{text} at 0.5")) in squeezed(shown)
    assert not FORBIDDEN.search(shown)
    found.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_bytes().decode("utf-8")
    assert html.escape(visible(text, keep="\n\t")).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page
    assert "<script" not in page
    assert not FORBIDDEN.search(page)


# -- the commands ------------------------------------------------------------------------------------------------------
@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, seed in (("base", 1), ("donor", 3)):
        tiny_model("llama", seed=seed).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    network = tiny_model("llama", seed=2)
    adapter = ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path=str(tmp_path / "donor"))
    adapter.save_pretrained(tmp_path / "adapter")
    rows = [{"prompt": f"{a}B", "completion": f"{a}C"} for a in "DEFGHIJK"]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def invoke(*words: str | Path) -> Any:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize("name", NAMES)
def test_every_command_with_hostile_names(place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of bases, adapters and results, and names of data."""
    for console in (output.out, output.err):
        monkeypatch.setattr(console, "_width", 500)
    base = place / name
    base.parent.mkdir(parents=True, exist_ok=True)
    (place / "base").rename(base)
    mine = place / "adapters" / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    (place / "adapter").rename(mine)
    data, last = place / "data.jsonl", name.split("/")[-1]
    told = invoke("inspect", mine, "--base", base).output
    assert_shown(told, str(mine))
    assert_shown(told, str(base))
    assert_shown(invoke("verify", mine).output, str(mine))
    told = invoke("calibrate", mine, "--base", base, "--data", data, "--limit", "2", "--output", place / "c" / name)
    assert_shown(told.output, f"with {base}")
    assert_shown(told.output, str(place / "c" / name))
    words = ["evaluate", mine, "--base", base, "--data", data, "--data-name", name, "--limit", "2", "--no-generate"]
    told = invoke(*words, "--donor", place / "donor").output
    assert_shown(told, last)
    assert_shown(told, f"2 examples of {name}")
    words = ["--base", base, "--adapter", mine, "--max-new-tokens", "2", "--prompt", "[INST]x[b]y[/INST]"]
    assert_shown(invoke("generate", *words).stderr, str(mine))
    told = invoke("trace", *words, "--html", place / "page.html")
    assert_shown(told.output, "[INST]x[b]y[/INST]")
    assert_shown(told.stderr, str(mine))
    assert json.loads(invoke("trace", *words, "--json").stdout)["prompt"] == "[INST]x[b]y[/INST]"


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning")
def test_training_says_hostile_paths(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of it, and the summary."""
    monkeypatch.setattr(output.err, "_width", 500)
    base, out = place / "[INST]b[/INST] [bold]", place / "[INST]o[/INST] [bold]"
    base.parent.mkdir(parents=True)
    (place / "base").rename(base)
    words = ["train", "--base", base, "--data", place / "data.jsonl", "--output", out, "--base-name", "acme/base"]
    told = invoke(*words, "--base-prefix-examples", "0", "--epochs", "1", "--network", "full", "--layers", "1")
    assert_shown(told.stderr.split("frozen")[0].split("\r")[-1], f"base model {base}")
    assert_shown(told.stdout.split("adapter", 1)[1], str(out))


def test_configurations_steer_no_terminal(place: Path, screen: Screen) -> None:
    """What a config.json says of bases and data, shown by `inspect` and `verify`."""
    loaded = ValueAdapter.from_pretrained(place / "adapter")
    evil = "a/\x1b[2J[bold]\u202e"
    record = RecommendedWeights("0" * 64, evil, Weights(1.0, (1.0,)), "[/INST]\x1b[31m", 3, 1.0, 0.5)
    config = loaded.config
    told = described(type(config)(**{**vars(config), "weights": (record,)}))
    output.facts({**told, "base_model": evil}, as_json=False)
    assert_shown(screen.out.getvalue(), evil)
    assert_shown(screen.out.getvalue(), "[/INST]\x1b[31m")


@pytest.mark.parametrize("value", ["[/INST]", "[bold]x", "\x1b[31mred"])
def test_wrong_usage_repeats_what_was_typed(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By typer, which has rich of its own; and errors of ours."""
    for words in (
        ["inspect", "x", f"--{value}"],
        ["generate", "--base", "x", "--prompt", "x", "--seed", value],
        [value],
    ):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2
        assert "Traceback" not in result.output
        assert not FORBIDDEN.search(result.output)
    screen = Screen(monkeypatch, terminal=False)
    monkeypatch.setattr(sys, "argv", ["valueadapter", "verify", f"/nowhere/{value}"])
    with pytest.raises(SystemExit):
        application.main()
    assert not FORBIDDEN.search(screen.err.getvalue())
    assert screen.err.getvalue().startswith("error: ")


@pytest.mark.parametrize("terminal", [True, False])
def test_generated_text_steers_no_terminal_and_stays_bare_in_a_pipe(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line ends and tabs are text in both."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    output.said("a\x1b[31m\tb\nc\r\u202e")
    shown = capsys.readouterr().out
    assert shown == ("a\\x1b[31m\tb\nc\\r\\u202e" if terminal else "a\x1b[31m\tb\nc\r\u202e")


def test_what_a_model_says_goes_through_that(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` prints nothing past it, and all that `generate` says."""
    told: list[str] = []
    monkeypatch.setattr(output, "said", told.append)
    words = ["--base", place / "base", "--max-new-tokens", "5", "--prompt", "ABC"]
    assert invoke("generate", *words).stdout == ""
    monkeypatch.undo()
    assert "".join(told) == invoke("generate", *words).stdout
    assert told[-1].endswith("\n")


def test_progress_of_hostile_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """As bars and as lines."""
    for terminal in (True, False):
        screen = Screen(monkeypatch, terminal=terminal)
        with output.progress() as tell:
            for text in (*MARKUP, *STEERING[:3]):
                tell(text, 0, 2)
                tell(text, 2, 2)
        lines = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", screen.err.getvalue()).replace("\r", "\n")
        for text in MARKUP:
            assert text in lines
        assert "\\x1b[31mred" in lines
