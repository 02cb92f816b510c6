"""The study: keys that stand for settings, results that are kept, arms that equal `evaluate`, weights and gates."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model
from transformers import TrainingArguments
from vocabularies import tokenizer_of

from studies import experts, gates, weight_tables
from studies.__main__ import run_all
from studies.cell import Cell, Experts, Judge, Reference, Stack, command_of, from_settings, key_of, parse, settings
from studies.damping import damp_content, form_tokens
from studies.plan import QUESTIONS, TASKS, less, plan, references
from studies.reference import _collated, _ResponsesOnly, _rows
from studies.results import rows_of
from studies.running import _arms, run_cell, trained
from studies.store import PUBLISHED, Store, write_json
from studies.targets import TARGETS, Target
from studies.tasks import SOURCES, Prefix, Task, examples_of, prefix_records, prefix_text, training_records
from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.artifact.config import RecommendedWeights, Weights
from valueadapter.evaluation.metrics import evaluate
from valueadapter.forward.prefix_tokens import prefix_ids
from valueadapter.training import newton
from valueadapter.training.recipe_settings import DEFAULT_WEIGHTS

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "it", "and", "then", "again"]
RECORDS = tuple(
    {"prompt": f"Say {WORDS[i % 10]} {i}:", "completion": f" {' '.join(WORDS[i % 7 : i % 7 + 1 + i % 3])}"}
    for i in range(60)
)
TASK = Task(RECORDS[:40], RECORDS[40:52], RECORDS[52:])
# base, kind of model, vocabulary
BASES = {"same": ("llama", "bytes"), "larger": ("qwen3", "bytes"), "other": ("gemma3", "sentencepiece")}
TINY = Cell("words", "scratch_small", num_demonstrations=16, held_out=8, calibration=4, prefix_examples=4, answered=2)
TINY_FULL = dataclasses.replace(TINY, lora_rank=None, num_layers=1, prefix_use="both")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    """Tiny bases in folders: two of one vocabulary, one of another that begins texts with <s>."""
    found = {}
    for seed, (name, (kind, vocabulary)) in enumerate(BASES.items(), 1):
        folder, tokenizer = tmp_path_factory.mktemp(name), tokenizer_of(vocabulary)
        tiny_model(kind, seed=seed, width=len(tokenizer)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        found[name] = Target(name, name, lambda folder=folder: folder)  # type: ignore[misc]  # bound now
    return found


@pytest.fixture
def study(bases: dict[str, Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store, and tiny models and demonstrations under the names of TINY."""
    monkeypatch.setitem(SOURCES, "words", lambda: TASK)
    monkeypatch.setitem(TASKS, "words", 16)
    for name, base in (("scratch_small", "same"), ("scratch_large", "larger")):
        monkeypatch.setitem(TARGETS, name, dataclasses.replace(bases[base], name=name))
    return Store(tmp_path)


def silent(_: str) -> None:
    """Says nothing."""


# -- keys and commands -------------------------------------------------------------------------------------------------
def test_every_cell_has_a_key_of_its_own_that_its_command_gives_back() -> None:
    """What stands beside a row computes that row and no other."""
    specs = plan()
    assert len({key_of(spec) for spec in specs}) == len(specs)
    for spec in specs:
        words, values = command_of(spec).split()[4:], json.loads(json.dumps(settings(spec)))
        kind: Any = type(spec)
        assert (parse(kind, words), from_settings(kind, values)) == (spec, spec)


def test_a_key_stands_for_every_setting() -> None:
    """It stays from run to run, and any other value, a new default too, is another cell."""
    assert key_of(Cell()) == key_of(from_settings(Cell, dict(reversed(settings(Cell()).items()))))
    change: Any = dataclasses.replace
    other = {"str": "x", "int": 99, "float": 0.5, "tuple": ("x",), "bool": False, "NoneType": 3}
    for kind in (Cell(), Reference(), Judge(), Experts(), Stack()):
        changes = {name: other[type(getattr(kind, name)).__name__] for name in settings(kind)}
        keys = {key_of(change(kind, **{name: value})) for name, value in changes.items()}
        assert len(keys | {key_of(kind)}) == len(changes) + 1


def test_the_quick_cut_is_part_of_the_plan() -> None:
    """Its results are not computed twice, and every question's cells are planned."""
    everything = {key_of(spec) for spec in plan()}
    assert {key_of(spec) for spec in plan(quick=True)} <= everything
    cells = [cell for asked in QUESTIONS for cell in asked.cells]
    said = {key_of(one) for spec in plan() if isinstance(spec, Cell) for one in less(spec)}
    assert {key_of(cell) for cell in cells} <= said
    assert isinstance(plan()[0], Cell), "an adapter is trained before references are"


# -- results on disk ---------------------------------------------------------------------------------------------------
def test_a_finished_cell_is_not_run_again_and_an_interrupted_one_is(tmp_path: Path) -> None:
    """What is on disk is whole, or not there."""
    store, runs = Store(tmp_path), []

    def work() -> dict[str, Any]:
        runs.append(1)
        if len(runs) == 1:
            raise KeyboardInterrupt
        return {"bits": 1.5}

    with pytest.raises(KeyboardInterrupt):
        store.compute(Cell(), work)
    assert store.get(Cell()) is None
    first = store.compute(Cell(), work)
    assert store.compute(Cell(), work) == first == store.get(Cell())
    assert len(runs) == 2
    assert not list(tmp_path.rglob("*.partial"))


def test_a_cell_at_work_elsewhere_is_left_to_it(tmp_path: Path) -> None:
    """Two processes share a list without doing anything twice."""
    store = Store(tmp_path)
    seen: list[object] = []

    def work() -> dict[str, Any]:
        seen.append(store.compute(Cell(), lambda: {"second": 1}, wait=False))
        return {"first": 1}

    assert "first" in (store.compute(Cell(), work) or {})
    assert seen == [None]


# -- scores ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", BASES)
def test_arms_are_the_wrapper_at_their_weights(bases: dict[str, Target], study: Store, name: str) -> None:
    """Behind the prefix and with the separator as an end, what a cell says of an arm is what `evaluate` says."""
    base, cell = bases[name], dataclasses.replace(TINY, donor="same")
    networks = [tiny_model("llama", seed=9, width=len(bases["same"].tokenizer)), bases["same"].load()]
    how = {"base_model_name_or_path": "same", "coefficients": [0.5, -0.2], "reads_prefix": [False, True]}
    adapter = ValueAdapter.from_networks(networks, bases["same"].tokenizer, base_weight=0.8, **how)  # type: ignore[arg-type]  # as keywords
    own = Weights(0.9, (0.7, -0.6))
    record = RecommendedWeights(
        adapter.config.vocabulary.byte_fingerprint, "same", own, "words", 0, for_vocabulary=False
    )
    adapter = adapter.with_config(weights=(record,))
    loaded = (
        own if name == "same" else Weights(0.8, (0.5, -0.2))
    )  # what is recorded for the training base is for it alone
    arms = _arms(cell, adapter, base, examples_of(cell, TASK), study)
    prefix = "".join(f"{record['prompt']}{record['completion']}\n\n" for record in TASK.train[:4])
    adapter = adapter.with_config(base_prefix=prefix, stop_strings=("\n\n",))
    model = ValueAdapterForCausalLM.from_pretrained(base.load(), adapter, tokenizer=base.tokenizer)
    fitted = Weights(arms["weights"]["base"], tuple(arms["weights"]["networks"]), arms["weights"]["end"])
    for arm, weights in (("default", loaded), ("fitted", fitted)):
        model.set_weights("default", weights)
        score = evaluate(model, base.tokenizer, list(TASK.held_out[:8]), generate=False, stop_strings=("\n\n",))
        for metric in ("bits_per_byte", "total_bits_per_byte"):
            assert arms[arm][metric] == pytest.approx(score.value(metric), abs=1e-4)
    whole = [{**record, "prompt": prefix + record["prompt"]} for record in TASK.held_out[:8]]
    score = evaluate(base.load(), base.tokenizer, whole, generate=False, batch_size=1, stop_strings=("\n\n",))
    assert arms["fewshot"]["total_bits_per_byte"] == pytest.approx(score.value("total_bits_per_byte"), abs=1e-4)


def test_a_refusal_names_no_path(bases: dict[str, Target], study: Store) -> None:
    """Results are published, and a folder of one machine says nothing on another."""
    same, other = bases["same"], bases["other"]
    how = {"base_model_name_or_path": "alice/base", "connection": "cascade"}
    network = tiny_model("llama", seed=9, width=len(same.tokenizer))
    cascade = ValueAdapter.from_networks([network], same.tokenizer, **how)  # type: ignore[arg-type]  # as keywords
    arms = _arms(TINY_FULL, cascade, other, examples_of(TINY_FULL, TASK), study)
    assert "'other' and this adapter" in arms["refusal"]
    assert str(other.folder) not in arms["refusal"]
    assert {"alone", "fewshot"} <= set(arms)


@pytest.mark.parametrize("name", BASES)
def test_a_reference_behind_a_prefix_reads_it_as_text(bases: dict[str, Target], name: str) -> None:
    """Its loss is that of rows in which the prefix stands as ordinary text."""
    base, prefix = bases[name], "Say it: now.\n\n"
    before = list(prefix_ids(prefix, base.tokenizer))
    cut = _rows(RECORDS[:4], base.tokenizer, before)
    texts = [base.tokenizer(prefix + record["prompt"])["input_ids"] for record in RECORDS[:4]]
    whole = [{"input_ids": before + row["input_ids"], "labels": [-100] * len(before) + row["labels"]} for row in cut]
    assert [row["input_ids"][: len(text)] for row, text in zip(whole, texts, strict=True)] == texts
    losses = []
    for some, each in ((whole, []), (cut, before)):
        trainer = _ResponsesOnly(each, model=base.load(), args=TrainingArguments(use_cpu=True, report_to=[]))
        losses.append(float(trainer.compute_loss(trainer.model, _collated(some))))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_a_stack_is_measured_alone_and_together(study: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the questions of both tasks; without adapters it is the base, and each alone leaves the other out."""
    monkeypatch.setattr("studies.stacks.DEFAULT", TINY)
    for task in ("words", "others"):
        monkeypatch.setitem(SOURCES, task, lambda: TASK)
        monkeypatch.setitem(TASKS, task, 16)
    spec = Stack(("words", "others"), "scratch_large")
    run_all([spec], study)
    result = study.get(spec)
    assert result is not None
    assert {name: set(weights) for name, weights in result["weights"].items()} == {
        "none": set(),
        "words": {"words"},
        "others": {"others"},
        "both": {"words", "others"},
    }
    base = TARGETS["scratch_large"]
    score = evaluate(base.load(), base.tokenizer, list(TASK.held_out), generate=False, stop_strings=("\n\n",))
    assert result["arms"]["none"]["others"]["bits_per_byte"] == pytest.approx(score.bits_per_byte, abs=1e-4)
    assert result["arms"]["words"] == result["arms"]["others"], "the same adapter under two names"
    assert weight_tables.stacks(study).count("\n") == 4


# -- what weights are worth --------------------------------------------------------------------------------------------
def test_the_table_of_a_grid_is_the_loss_that_is_fitted() -> None:
    """Under every weights, the end's in closed form; tokens that end an answer, that are raised, and others."""
    generator = torch.Generator().manual_seed(0)
    logits = [3 * torch.randn(6, 50, generator=generator) for _ in range(3)]
    labels, is_end = torch.tensor([1, 7, 7, 3, 9, 4]), torch.tensor([False, True, False, False, True, False])
    some = newton.tokens_of(logits, labels, is_end, torch.zeros(6, dtype=torch.long))
    ends, raised = torch.tensor([7, 9]), torch.tensor([7])
    problem = newton.Problem(lambda: [some], torch.zeros(1, dtype=torch.long), ends, raised)
    nats, _ = experts._of(some, ends, raised)
    for row, (base, tuned, plain) in enumerate(experts.GRID):
        for column, end in enumerate(experts.ENDS):
            expected = newton.nats(some, torch.tensor([base, tuned, -plain, end]), problem)
            torch.testing.assert_close(nats[:, row, column], expected, atol=1e-4, rtol=1e-5)


def _made_up_look(seed: int) -> experts.Look:
    """Tokens at which the sign of one feature says which of two weights is good; the others are bad everywhere."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(200, 10, generator=generator)
    nats = torch.full((200, len(experts.GRID), len(experts.ENDS)), 5.0)
    for row, sign in ((3, 1), (70, -1)):
        nats[:, row] = torch.where(sign * features[:, 6] > 0, 1.0, 3.0)[:, None]
    return experts.Look(nats, features, torch.zeros(200, dtype=torch.long), torch.tensor([100]))


def test_a_gate_learns_what_a_feature_says_and_carries_it_over() -> None:
    """It takes the good weights on tokens that it has not seen; one that does not see the feature takes one of both."""
    seen, other = _made_up_look(0), _made_up_look(1)
    assert gates.fitted(seen, (6,)).nats(other).mean() < 1.1
    assert gates.fitted(seen, (0, 1, 2)).nats(other).mean() > 1.5
    assert other.bits_per_byte(other.nats[:, :, 0].amin(1)) == pytest.approx(200 / math.log(2) / 100)


def first_choice(store: Store) -> list[str]:
    """The first triple's column in the table of weights, from top to bottom."""
    lines = weight_tables.default_weights(store).splitlines()
    return [line.split(" | ")[1].strip(" |") for line in (lines[0], *lines[2:])]


def test_the_least_worst_regret_is_found(tmp_path: Path) -> None:
    """Weights that are never best may be the ones that are nowhere bad; the training base has no say."""
    store = Store(tmp_path)
    for target, good, bad, fair in (("smollm2", 3, 70, 1.2), ("gemma", 70, 3, 1.2), ("smollm2_derived", 5, 7, 1.8)):
        grid = [[2.0] * len(experts.ENDS) for _ in experts.GRID]
        grid[good][0], grid[bad][0], grid[9][0], grid[9][1] = 1.0, 1.9, fair, 1.1
        triples = [row / 100 for row in range(len(grid))]
        more = {"triples": triples, "held_out": {"way": 1.0}, "examples": [7, 8]}
        store.compute(Experts(target=target), lambda grid=grid, more=more: {"grid": grid, **more})  # type: ignore[misc]  # bound now
    first = first_choice(store)
    base, tuned, plain = experts.GRID[9]
    assert first[:2] == [f"{base:g} {tuned:+g} {-plain:+g}", "0.200"]
    assert first[-3:] == ["0.100", "1.000", "1.000"], "what weights of the end would make of it"
    gemma, smollm2 = weight_tables.without_the_base(store).splitlines()[2:]
    # without gemma smollm2's best is chosen, row 3 of the grid, and the other way about; the default is row 9
    assert gemma.split(" | ")[1:3] == ["7", "8"]
    assert [row.split(" | ")[4] for row in (gemma, smollm2)] == ["0.090"] * 2
    assert gemma.endswith("| 0.030 |")
    assert smollm2.endswith("| 0.700 |")


def test_the_default_weights_are_those_of_the_published_choice() -> None:
    """The recipe records what the page says."""
    base, tuned, plain = map(float, first_choice(Store(Path("none"), PUBLISHED))[0].split())
    assert Weights(base, (tuned, plain)) == DEFAULT_WEIGHTS["lora"]


def test_results_of_an_older_recipe_are_not_taken(study: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither here nor published; nor is one whose settings are no longer settings."""
    store = Store(study.root, study.root / "results.json")
    store.compute(Reference(), lambda: {"held_out": {}, "calibration": 1.0})
    store.publish()
    assert len(store.all()) == 1
    monkeypatch.setattr("studies.cell.RECIPE_VERSION", 99)
    assert store.all() == {}
    assert Store(study.root / "none", store.published).all() == {}
    monkeypatch.undo()
    write_json(study.root / "cells" / f"{'0' * 16}.json", {"kind": "cell", "settings": {"gone": 1}})
    assert len(store.all()) == 1


# -- prefixes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", ["first", "next", "short"])
def test_examples_of_a_prefix_are_neither_scored_nor_trained_on(policy: Any) -> None:
    """Nobody is graded on what stands in the prompt."""
    shown = [record["prompt"] for record in prefix_records(TASK, Prefix(4, policy))]
    assert len(set(shown)) == 4
    for part in (TASK.held_out, TASK.calibration, training_records(TASK, Prefix(4, policy), 36)):
        assert not {record["prompt"] for record in part} & set(shown)
    with pytest.raises(ConfigError, match="has 36 demonstrations besides the prefix; got 37"):
        training_records(TASK, Prefix(4, policy), 37)


def test_a_prefix_without_examples_is_none() -> None:
    """So that a base without one is the plain base."""
    assert prefix_text([]) is None
    assert prefix_text([RECORDS[0]]) == "Say the 0: the\n\n"


# -- a whole cell ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cell", [TINY, dataclasses.replace(TINY, content_weight=0.5, answered=0), TINY_FULL])
def test_a_cell_trains_scores_and_leaves_no_weights(study: Store, cell: Cell) -> None:
    """Every arm is there for every base, and the run's folder is gone."""
    result = study.compute(cell, lambda: run_cell(cell, study, silent))
    assert result is not None
    assert set(result["targets"]) == {"scratch_small", "scratch_large"}
    for arms in result["targets"].values():
        assert {"alone", "fewshot", "default", "fitted", "weights", "believed", "calibration", "curve"} <= set(arms)
        assert len(arms["fitted"]["examples"]) == len(result["sizes"]) == 8
        assert ("ends" in arms["fitted"]) == bool(cell.answered)
    assert result["training"]["demonstrations"] <= 16
    assert list((study.root / "runs").iterdir()) == []
    (donor, other) = rows_of(study, cell)
    assert donor.donor["small"] == other.donor["small"]
    assert "small" not in other.result
    found = donor.better(donor.result["default"], donor.result["alone"])
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(donor.bits("alone") - donor.bits("default"))


def test_an_adapter_that_is_looked_at_again_is_not_trained_again(study: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring it on more bases, or looking at weights, takes the one that was kept."""
    first, _ = trained(TINY, study, silent)
    monkeypatch.setattr("studies.running.run", lambda *_, **__: pytest.fail("trained again"))
    again, _ = trained(dataclasses.replace(TINY, targets="all"), study, silent)
    for one, other in zip(first.networks, again.networks, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_content_is_damped_and_form_is_not(bases: dict[str, Target], weight: float) -> None:
    """Centred value logits times the weight, but for tokens that responses share; the embeddings stay."""
    network = tiny_model("llama", seed=9, width=len(bases["same"].tokenizer))
    network.tie_weights()
    adapter = ValueAdapter.from_networks([network], bases["same"].tokenizer, base_model_name_or_path="alice/base")
    ids = torch.tensor([[5, 6, 7]])
    before = network(ids).logits
    embeddings = network.get_input_embeddings().weight.clone()
    damp_content(adapter, TASK.train, weight)
    form = form_tokens(adapter, TASK.train)
    assert adapter.tokenizer.eos_token_id in form
    assert 0 < len(form) < len(adapter.tokenizer) / 2
    expected = before - before.mean(-1, keepdim=True)
    content = [token for token in range(expected.shape[-1]) if token not in form]
    expected[..., content] *= weight
    torch.testing.assert_close(network(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(network.get_input_embeddings().weight, embeddings)


def test_a_run_goes_on_where_it_stopped(study: Store) -> None:
    """Cells that are finished keep their results; the others are run."""
    other = dataclasses.replace(TINY, epochs=2)
    run_all([TINY], study)
    before = study.path(TINY).read_bytes()
    run_all([TINY, other], study)
    assert study.path(TINY).read_bytes() == before
    assert study.get(other) is not None


def test_fine_tuning_the_donor_and_subtracting_it_is_the_fine_tuned_donor(study: Store) -> None:
    """The small tuned model of expert - base is the expert; the reference says the same."""
    cell = dataclasses.replace(TINY, network="expert_minus_base", epochs=2, prefix_examples=0)
    (*_, how, behind) = references([cell], ["scratch_small"])
    other = dataclasses.replace(how, learning_rate=1.0, num_demonstrations=4, prefix_examples=3)
    run_all([cell, how, behind, other], study)
    (donor, _) = rows_of(study, cell)
    assert donor.tuned is not None
    assert donor.result["small"]["total_bits_per_byte"] == pytest.approx(donor.tuned["total_bits_per_byte"], abs=1e-3)
    assert donor.tuned_behind == (study.get(behind) or {})["held_out"], "no reference of other settings"
    assert not donor.complete, "those of one pass are missing"
    loaded = donor.result["default"]["total_bits_per_byte"]
    assert loaded == pytest.approx(donor.result["small"]["total_bits_per_byte"], abs=1e-3), "at +1 and -1, as it loads"
    found = donor.share("default")
    assert found is not None
    alone, bound = donor.result["alone"], donor.bound or {}
    picks = np.random.default_rng(0).integers(0, 8, size=(2000, 8))  # the same for every arm
    sums = [np.array(arm["examples"])[picks].sum(1) for arm in (alone, donor.result["default"], bound)]
    gained = sums[0] != sums[2]
    shares = ((sums[0] - sums[1])[gained]) / (sums[0] - sums[2])[gained]
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(shares, (0.025, 0.975))))
