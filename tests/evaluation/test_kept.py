"""Measurements of a run that was stopped: kept, taken up by the same run, and by no other."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import byte_tokenizer, tiny_model
from typer.testing import CliRunner

from valueadapter import ValueAdapter
from valueadapter.cli import output
from valueadapter.cli.app import app
from valueadapter.evaluation.arms import Options, evaluate_adapter
from valueadapter.evaluation.kept import Kept, default_place
from valueadapter.training.finetuning import FineTuning

RECORDS = [{"prompt": f"{a}B", "completion": f"{a}C"} for a in "DEFGHIJKLM"]


class Stopped(Exception):
    """What a test stops a run with."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, seed in (("donor", 1), ("base", 3)):
        tiny_model("llama", seed=seed).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    network = tiny_model("llama", seed=2)
    made = ValueAdapter.from_networks([network], byte_tokenizer(), base_model_name_or_path=str(tmp_path / "donor"))
    made.save_pretrained(tmp_path / "adapter")
    return tmp_path


def options(place: Path, told: list[str] | None = None, *, stop_at: str = "", **more: Any) -> Options:
    """Everything is measured; what is measured is noted, and a run is stopped where it begins with `stop_at`."""

    def on_progress(what: str, done: int, total: int) -> None:
        if stop_at and stop_at in what:
            raise Stopped
        if told is not None and what not in told:
            told.append(what)

    defaults: dict[str, Any] = {
        "demonstrations": RECORDS[6:],
        "shots": 2,
        "calibration": RECORDS[3:6],
        "finetuning": FineTuning(rank=2, batch_size=4),
        "max_new_tokens": 2,
        "kept": Kept(place / "kept"),
    }
    return Options(on_progress=on_progress, **{**defaults, **more})


def run(place: Path, given: Options, records: list[dict[str, str]] = RECORDS[:3]) -> Any:
    return evaluate_adapter(place / "adapter", [place / "base"], records, options=given).to_dict()


def measured(told: list[str]) -> list[str]:
    return [what for what in told if "kept" not in what]


def test_a_stopped_run_goes_on_where_it_was(place: Path) -> None:
    """With the same results; what was finished is not measured again, fine-tuning included."""
    expected = run(place, options(place, kept=None))
    with pytest.raises(Stopped):
        run(place, options(place, stop_at="base, fine-tuned"))
    told: list[str] = []
    given = options(place, told)
    assert run(place, given) == expected
    assert measured(told) == ["base: fine-tuning", "base, fine-tuned"]
    assert len([what for what in told if "kept from a run" in what]) == 5
    again: list[str] = []
    assert run(place, options(place, again)) == expected
    assert measured(again) == []
    given.kept.forget()
    assert list((place / "kept").iterdir()) == []


def other_weights(place: Path) -> None:
    model = tiny_model("llama", seed=3)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1.0
    model.save_pretrained(place / "base")


def other_settings(place: Path) -> None:
    model = tiny_model("llama", seed=3)
    model.generation_config.eos_token_id = [2, 40]
    model.save_pretrained(place / "base")


def other_template(place: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(place / "base")


def other_network(place: Path) -> None:
    network = tiny_model("llama", seed=2)
    with torch.no_grad():
        network.lm_head.weight[0] += 1.0
    how = {"base_model_name_or_path": str(place / "donor")}
    ValueAdapter.from_networks([network], byte_tokenizer(), **how).save_pretrained(place / "adapter")


def other_scale(place: Path) -> None:
    loaded = ValueAdapter.from_pretrained(place / "adapter").with_config(scale=0.5)
    loaded.save_pretrained(place / "adapter")


def other_prefix(place: Path) -> None:
    loaded = ValueAdapter.from_pretrained(place / "adapter").with_config(base_prefix="Q: ")
    loaded.save_pretrained(place / "adapter")


CHANGES: dict[str, tuple[Callable[[Path], None] | None, dict[str, Any], set[str]]] = {
    "weights": (other_weights, {}, {"base alone", "base + adapter", "base, fine-tuned", "base: the weights"}),
    "stop tokens": (other_settings, {}, {"base alone", "base + adapter", "base, fine-tuned"}),
    "chat template": (other_template, {}, {"base alone", "base + adapter", "base, fine-tuned"}),
    "network": (other_network, {}, {"small tuned model alone", "base + adapter", "base: the weights"}),
    "scale": (other_scale, {}, {"base + adapter"}),
    "prefix": (other_prefix, {}, {"small tuned model alone", "base + adapter", "base: the weights"}),
    "length of answers": (None, {"max_new_tokens": 3}, {"base alone", "base + adapter", "base, fine-tuned"}),
    "shots": (None, {"shots": 1}, {"base, 1 demonstrations"}),
    "order of drawing": (None, {"seed": 5}, {"base, 2 demonstrations"}),
    "calibration": (None, {"calibration": RECORDS[3:5]}, {"base: the weights"}),
    "demonstrations": (None, {"demonstrations": RECORDS[7:]}, {"base, fine-tuned", "base, 2 demonstrations"}),
    "fine-tuning": (None, {"finetuning": FineTuning(rank=3, batch_size=4)}, {"base, fine-tuned"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_is_measured_anew(place: Path, change: str) -> None:
    """One thing at a time of all that a result depends on; the report is that of a run that knows of no other."""
    do, more, expected = CHANGES[change]
    if "base, fine-tuned" not in expected:
        more = {"finetuning": None, **more}
    run(place, options(place, **({"finetuning": None} if more.get("finetuning", 1) is None else {})))
    if do is not None:
        do(place)
    told: list[str] = []
    found = run(place, options(place, told, **more))
    assert expected <= set(measured(told))
    assert found == run(place, options(place, kept=None, **more))


def test_other_records_are_measured_anew(place: Path) -> None:
    """Also where only their order or one letter is another."""
    run(place, options(place, finetuning=None))
    for records in (RECORDS[:3][::-1], [{**RECORDS[0], "completion": "DD"}, *RECORDS[1:3]]):
        told: list[str] = []
        found = run(place, options(place, told, finetuning=None), records)
        assert found == run(place, options(place, kept=None, finetuning=None), records)
        assert "base alone" in measured(told)


def test_what_is_not_whole_is_measured_anew(place: Path) -> None:
    """A file cut off, one of another key; and with `again` all of them. No directory to write to stops nothing."""
    expected = run(place, options(place))
    for path in (place / "kept").iterdir():
        path.write_text(path.read_text()[:-9])
    told: list[str] = []
    assert run(place, options(place, told)) == expected
    assert "base alone" in measured(told)
    one, other, *_ = (place / "kept").iterdir()
    one.write_text(other.read_text())
    assert run(place, options(place)) == expected
    told = []
    assert run(place, options(place, told, kept=Kept(place / "kept", again=True))) == expected
    assert len(measured(told)) >= 6
    (place / "file").write_text("")
    assert run(place, options(place, kept=Kept(place / "file" / "kept"))) == expected


def words(place: Path) -> list[str]:
    (place / "held_out.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS[:3]))
    chosen = ["--base", str(place / "base"), "--data", str(place / "held_out.jsonl")]
    return ["evaluate", str(place / "adapter"), *chosen, "--max-new-tokens", "2", "--json"]


def test_the_command_goes_on_after_it_was_killed(place: Path) -> None:
    """Killed without a warning in the middle of an arm; the next run measures what is left, and leaves nothing."""
    environment = {**os.environ, "HF_HOME": str(place / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    slow = (
        "import time\nfrom valueadapter.evaluation import metrics\nasked = metrics.answers\n"
        "metrics.answers = lambda *a, **k: (time.sleep(3), asked(*a, **k))[1]\n"
        "from valueadapter.cli import main\nmain()"
    )
    running = subprocess.Popen([sys.executable, "-c", slow, *words(place)], env=environment, stderr=subprocess.DEVNULL)
    kept, begun = place / "home" / "valueadapter" / "evaluations", time.monotonic()
    while len(list(kept.glob("*.json"))) < 1 and time.monotonic() - begun < 120:
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert len(list(kept.glob("*.json"))) in (1, 2)
    command = [sys.executable, "-m", "valueadapter", *words(place)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "small tuned model alone (kept from a run that was stopped): 3 of 3" in done.stderr
    assert "base + adapter: 3 of 3" in done.stderr
    assert json.loads(done.stdout)["arms"][0]["adapted_bits_per_byte"] > 0
    assert list(kept.glob("*.json")) == []


def test_an_interrupted_command_says_what_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the second arm."""
    told: list[str] = []
    monkeypatch.setattr(output, "note", told.append)
    real = output._lines

    def lines() -> Callable[[str, int, int], None]:
        tell = real()

        def advance(what: str, done: int, total: int) -> None:
            if what == "base alone":
                raise KeyboardInterrupt
            tell(what, done, total)

        return advance

    monkeypatch.setattr(output, "_lines", lines)
    assert CliRunner().invoke(app, words(place)).exit_code != 0
    assert len(told) == 1
    assert told[0].startswith("stopped: 1 finished measurements are kept in ")
    assert str(default_place()) in told[0]
    monkeypatch.undo()
    assert CliRunner().invoke(app, words(place), catch_exceptions=False).exit_code == 0
    assert list(default_place().glob("*.json")) == []


def test_a_score_comes_back_as_it_was(place: Path) -> None:
    """Every total, prediction and answer."""
    fresh = evaluate_adapter(place / "adapter", [place / "base"], RECORDS[:3], options=options(place))
    again = evaluate_adapter(place / "adapter", [place / "base"], RECORDS[:3], options=options(place))
    for one, other in zip(fresh.results, again.results, strict=True):
        assert dataclasses.asdict(one) == dataclasses.asdict(other)
