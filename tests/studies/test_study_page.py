"""The page of the study: tables from results alone, each with its place, and text by hand that stays."""

from __future__ import annotations

import dataclasses
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from studies import tables
from studies.__main__ import run_all
from studies.cell import key_of
from studies.plan import DEFAULT, EARLIER, FOUR, JUDGES, plan, reading, references
from studies.report import filled, makers, write_report
from studies.results import Estimate, rows_of
from studies.store import Store
from valueadapter import ConfigError

WHO, WAYS = ("base", "adapted"), ("greedy", "sampled", "best", "any")


@pytest.fixture
def study(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_writing_the_report_twice_changes_nothing(study: Store) -> None:
    """Tables come from results alone, and what is written by hand stays."""
    page = study.root / "transfer.md"
    page.write_text("By hand.\n\n" + "".join(f"<!-- study: {n} -->\n<!-- /study -->\n" for n in [*makers(), "plot"]))
    write_report(study, study.root)
    first = page.read_text()
    write_report(study, study.root)
    assert page.read_text() == first
    assert first.startswith("By hand.\n")


def test_finished_cells_stand_in_the_tables_with_their_commands(study: Store) -> None:
    """A made-up result of the default cell appears in its row."""
    for cell, bits in (
        (DEFAULT, 0.5),
        (dataclasses.replace(FOUR, targets="all"), 0.5),
        (dataclasses.replace(FOUR, epochs=2), 0.25),
    ):
        study.compute(cell, lambda bits=bits: _made_up(bits))  # type: ignore[misc]  # bound now
    for how in references([DEFAULT]):
        study.compute(how, lambda: {"held_out": _made_up(0.4)["targets"]["gemma"]["fitted"], "calibration": 0.4})
    study.compute(JUDGES[0], lambda: {"right": {f"{who} {way}": [1.0, 0.5] for who, way in product(WHO, WAYS)}})
    text = makers()["repetition"](study)
    assert "`python -m studies cell --prefix-examples 4`" in text
    assert makers()["judge"](study).count("75%") == 8
    assert makers()["stopping"](study).count("| 2 |") == 3
    assert "**0.250**" in text
    # (2 - 0.51) / (2 - 0.4) of the way
    assert "| 90% | 93% (93%-93%) | reached | 94% (94%-94%) |" in makers()["goals"](study)
    assert "| 95% | 93% (93%-93%) | missed | 94% (94%-94%) |" in makers()["goals"](study)
    assert "**better by 0.500 (+0.500 to +0.500)**" in makers()["versus"](study)
    assert "0.70 +0.60 -0.30" in makers()["scales"](study)
    assert "100%, 50%" in makers()["ends"](study)
    assert "0.200" in makers()["text"](study)
    table, _, commands = makers()["prefix"](study).partition("\n<details")
    assert (table.count("\n"), commands.count("* LoRA")) == (3, 1)


@pytest.mark.parametrize(
    ("low", "value", "high", "verdict"),
    [(0.9, 0.96, 1.0, "within chance of it"), (0.96, 0.97, 1.0, "reached"), (0.8, 0.9, 0.94, "missed")],
)
def test_a_verdict_is_as_wide_as_its_interval(
    study: Store, low: float, value: float, high: float, verdict: str
) -> None:
    """And there is none while a reference is missing."""
    study.compute(DEFAULT, lambda: _made_up(0.5))
    first, *others = references([DEFAULT])
    for how in others:
        study.compute(how, lambda: {"held_out": _made_up(0.4)["targets"]["gemma"]["fitted"], "calibration": 0.4})
    (own, *_) = rows_of(study, DEFAULT)
    assert tables._verdict(dataclasses.replace(own, complete=True), Estimate(value, low, high), 0.95) == verdict
    missing = [row.target for row in rows_of(study, DEFAULT) if not row.complete]
    assert missing == [first.target]
    assert makers()["goals"](study).count("references are missing") == 1


def test_page_and_tables_belong_together() -> None:
    """A table without a place, or a place without a table, is an error."""
    with pytest.raises(ConfigError, match="differ in goals"):
        filled("", {"goals": ""})
    text = (Path(__file__).parents[2] / "docs" / "transfer.md").read_text()
    assert filled(text, dict.fromkeys([*makers(), "plot"], ""))


def test_published_results_stand_in_the_report_and_are_not_run_again(tmp_path: Path) -> None:
    """Unless they are asked for; what was computed here goes before them, and one cell's own command computes."""
    first, second = (Store(tmp_path / name, tmp_path / "results.json") for name in ("first", "second"))
    first.compute(DEFAULT, lambda: _made_up(0.5))
    first.publish()
    run_all([DEFAULT], second)
    assert second.get(DEFAULT) is None
    assert [row.bits("fitted") for row in rows_of(second, DEFAULT)] == [0.5] * 3
    second.compute(DEFAULT, lambda: _made_up(0.25))
    assert [row.bits("fitted") for row in rows_of(second, DEFAULT)] == [0.25] * 3
    second.publish()
    (row, *_) = rows = rows_of(Store(tmp_path / "none", tmp_path / "results.json"), DEFAULT)
    assert [one.bits("fitted") for one in rows] == [0.25] * 3
    assert row.better(row.result["fitted"], row.result["alone"]).low > 0, "intervals can be had of what is published"


def test_what_was_the_default_stands_in_until_the_default_is_finished(tmp_path: Path) -> None:
    """And says so; a cell with answers also answers for the one without, and not the other way."""
    store = Store(tmp_path)
    store.compute(dataclasses.replace(DEFAULT, prefix_use=EARLIER), lambda: _made_up(0.5))
    assert f"<br>LoRA, prefix use {EARLIER} |" in tables.tasks(store)
    store.compute(dataclasses.replace(DEFAULT, answered=0), lambda: _made_up(0.4))
    assert f"<br>LoRA, prefix use {EARLIER} |" in tables.tasks(store), "its ends are not known"
    store.compute(DEFAULT, lambda: _made_up(0.25))
    assert EARLIER not in tables.tasks(store)
    (row, *_) = rows_of(store, dataclasses.replace(DEFAULT, answered=0))
    assert row.bits("fitted") == 0.25
    keys = {key_of(spec) for spec in plan()}
    assert key_of(reading("gsm8k", "all", 0)) not in keys, "the default cell answers for it"
    assert key_of(reading("gsm8k", "all", 1)) in keys


def _made_up(bits: float) -> dict[str, Any]:
    def arm(total: float) -> dict[str, Any]:
        each = [round(total * (8 + place), 3) for place in range(3)]
        ways = {"ends": 1.0, "exact_match": 0.5, "first": 1.0, "last": 0.1}
        return {"bits_per_byte": total / 2, "total_bits_per_byte": total, "examples": each, **ways}

    one = {"alone": arm(2.0), "fewshot": arm(1.0), "default": arm(bits + 0.01), "fitted": arm(bits)}
    more = {"believed": True, "calibration": bits, "curve": {f"{step / 4:g}": bits for step in range(7)}}
    weights = {"base": 0.7, "networks": [0.6, -0.3], "end": 0.0}
    relations = {
        "smollm2_derived": "the training base",
        "smollm2": "another size (derived)",
        "gemma": "another vocabulary",
    }
    targets = {name: {**one, **more, "weights": weights, "relation": it} for name, it in relations.items()}
    targets["smollm2_derived"]["small"] = arm(bits)
    return {"sizes": [8, 9, 10], "targets": targets}
