"""The study: keys that stand for settings, results that are kept, scores that equal `evaluate`, a page that stays."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_model
from vocabularies import tokenizer_of

from studies.__main__ import run_all
from studies.cell import Cell, Judge, Reference, command_of, from_settings, key_of, parse, settings
from studies.curves import SCALES, Curve, nats_at_scales
from studies.damping import damp_content, form_tokens
from studies.plan import DEFAULT, FOUR, FULL, QUESTIONS, plan
from studies.results import rows_of
from studies.running import run_cell
from studies.scoring import Examples, curve_of, score_adapter, score_alone
from studies.store import Store
from studies.targets import TARGETS, Target
from studies.tasks import SOURCES, Prefix, Task, prefix_records, prefix_text, training_records
from valueadapter import ConfigError, ValueAdapter, ValueAdapterForCausalLM
from valueadapter.evaluation.metrics import evaluate

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "it", "and", "then", "again"]
RECORDS = tuple(
    {"prompt": f"Say {WORDS[i % 10]} {i}:", "completion": f" {' '.join(WORDS[i % 7 : i % 7 + 1 + i % 3])}"}
    for i in range(60)
)
TASK = Task(RECORDS[:40], RECORDS[40:52], RECORDS[52:])
EXAMPLES = Examples(TASK.held_out, TASK.calibration)
# base, kind of model, vocabulary
BASES = {"same": ("llama", "bytes"), "larger": ("qwen3", "bytes"), "other": ("gemma3", "sentencepiece")}
TINY = Cell(task="words", donor="scratch_small", num_demonstrations=16, held_out=8, calibration=4, prefix_examples=4)
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


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Target]) -> ValueAdapter:
    tokenizer = bases["same"].tokenizer
    network = tiny_model("llama", seed=9, width=len(tokenizer))
    return ValueAdapter.from_networks([network], tokenizer, base_model_name_or_path="alice/base")


@pytest.fixture
def study(bases: dict[str, Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store, and tiny models and demonstrations under the names of TINY."""
    monkeypatch.setitem(SOURCES, "words", lambda: TASK)
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
    for kind in (Cell(), Reference(), Judge()):
        changes = {name: other[type(getattr(kind, name)).__name__] for name in settings(kind)}
        keys = {key_of(change(kind, **{name: value})) for name, value in changes.items()}
        assert len(keys | {key_of(kind)}) == len(changes) + 1


def test_the_quick_cut_is_part_of_the_plan() -> None:
    """Its results are not computed twice, and every question's cells are planned."""
    everything = {key_of(spec) for spec in plan()}
    assert {key_of(spec) for spec in plan(quick=True)} <= everything
    cells = [cell for asked in QUESTIONS for cell in asked.cells]
    assert {key_of(c) for c in cells} <= everything | {key_of(one) for one in (DEFAULT, FOUR, FULL)}
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
@pytest.mark.parametrize("prefix", [None, "Say it: now."])
def test_a_base_scored_from_kept_states_equals_evaluate(
    bases: dict[str, Target], tmp_path: Path, name: str, prefix: str | None
) -> None:
    """The prefix stands before every prompt, split apart from it as here the whole text is; sliding windows and <s>
    included."""
    base, examples = bases[name], dataclasses.replace(EXAMPLES, prefix=prefix)
    for _ in range(2):  # computed, then from disk
        kept = score_alone(base, examples, Store(tmp_path)).at(0.0)["bits_per_byte"]
    whole = [{**record, "prompt": (prefix or "") + record["prompt"]} for record in TASK.held_out]
    score = evaluate(base.load(), base.tokenizer, whole, generate=False, batch_size=1)
    assert kept == pytest.approx(score.bits_per_byte, abs=1e-4)


def test_an_adapter_scored_on_all_bases_equals_evaluate_on_each(
    bases: dict[str, Target], adapter: ValueAdapter, tmp_path: Path
) -> None:
    """At every scale, for both relations of vocabularies."""
    found = score_adapter(adapter, list(bases.values()), EXAMPLES, store=Store(tmp_path), say=silent)
    for name, base in bases.items():
        curve = found[name]
        assert isinstance(curve, Curve)
        model = ValueAdapterForCausalLM.from_pretrained(base.load(), adapter.copy(), tokenizer=base.tokenizer)
        for scale in (0.0, 0.35, 1.0, 1.5):
            model.set_scale("default", scale)
            score = evaluate(model, base.tokenizer, list(TASK.held_out), generate=False)
            assert curve.at(scale)["bits_per_byte"] == pytest.approx(score.bits_per_byte, abs=1e-4)


@pytest.mark.parametrize("name", BASES)
def test_the_way_through_the_wrapper_gives_the_same(
    bases: dict[str, Target], adapter: ValueAdapter, tmp_path: Path, name: str
) -> None:
    """Cascades take it; for an adapter that may take both ways they agree token by token."""
    base = bases[name]
    kept = score_adapter(adapter, [base], EXAMPLES, store=Store(tmp_path), say=silent)[name]
    model = ValueAdapterForCausalLM.from_pretrained(base.load(), adapter.copy(), tokenizer=base.tokenizer, scale=1.0)
    run = curve_of(model, base.tokenizer, EXAMPLES)
    assert isinstance(kept, Curve)
    torch.testing.assert_close(run.nats, kept.nats, atol=2e-2, rtol=1e-3)
    assert torch.equal(run.tokens.kinds, kept.tokens.kinds)


def test_a_refusal_names_no_path(bases: dict[str, Target], tmp_path: Path) -> None:
    """Results are published, and a folder of one machine says nothing on another."""
    same, other = bases["same"], bases["other"]
    how = {"base_model_name_or_path": "alice/base", "connection": "cascade"}
    network = tiny_model("llama", seed=9, width=len(same.tokenizer))
    cascade = ValueAdapter.from_networks([network], same.tokenizer, **how)  # type: ignore[arg-type]  # as keywords
    refusal = score_adapter(cascade, [other], EXAMPLES, store=Store(tmp_path), say=silent)["other"]
    assert isinstance(refusal, str)
    assert "'other' and this adapter" in refusal
    assert str(other.folder) not in refusal


def test_weighted_networks_are_summed(bases: dict[str, Target], tmp_path: Path) -> None:
    """+1 the base, -1 the base adds nothing at any scale; +1 alone doubles it."""
    base = bases["same"]
    twins = [base.load(), base.load()]
    how = {"base_model_name_or_path": "alice/base", "coefficients": [1.0, -1.0]}
    adapter = ValueAdapter.from_networks(twins, base.tokenizer, **how)  # type: ignore[arg-type]  # as keywords
    curve = score_adapter(adapter, [base], EXAMPLES, store=Store(tmp_path), say=silent)["same"]
    assert isinstance(curve, Curve)
    torch.testing.assert_close(curve.nats, curve.nats[:, :1].expand_as(curve.nats), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("spread", [1.0, 30.0, 300.0])
def test_nats_at_scales_equal_cross_entropy(spread: float) -> None:
    """Also where value logits are so large that a product of exponentials leaves fp32."""
    generator = torch.Generator().manual_seed(0)
    base, value = (spread * torch.randn(7, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(50, (7,), generator=generator)
    nats = nats_at_scales(base.float(), value.float(), labels)
    for column, scale in enumerate(SCALES):
        exact = torch.nn.functional.cross_entropy(base + scale * value, labels, reduction="none")
        torch.testing.assert_close(nats[:, column].double(), exact, atol=1e-3 * spread, rtol=1e-4)


def test_an_architecture_that_does_more_than_its_head_is_refused() -> None:
    """Hidden states stand for logits only where the head is all that follows."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from studies.states import compute_hidden
    from valueadapter import UnsupportedModeError

    tokenizer = tokenizer_of("bytes")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=len(tokenizer), num_key_value_heads=1, head_dim=8, **shape)
    capped = Gemma2ForCausalLM(dataclasses.replace(config, final_logit_softcapping=0.5)).eval()
    with pytest.raises(UnsupportedModeError, match="more to its logits than its head"):
        compute_hidden(capped, tokenizer, list(TASK.held_out), None)


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
@pytest.mark.parametrize("cell", [TINY, dataclasses.replace(TINY, content_weight=0.5), TINY_FULL])
def test_a_cell_trains_scores_and_leaves_no_weights(study: Store, cell: Cell) -> None:
    """Every arm is there for every base, chosen scales among the kept ones, and the run's folder is gone."""
    result = study.compute(cell, lambda: run_cell(cell, study, silent))
    assert result is not None
    assert set(result["targets"]) == {"scratch_small", "scratch_large"}
    for arms in result["targets"].values():
        assert {"alone", "fewshot", "scale", "scales", "curve", "examples"} <= set(arms)
        assert f"{result['donor_scale']:g}" in arms["scales"]
        assert len(arms["examples"]) == 8
    assert result["training"]["demonstrations"] == 16
    assert list((study.root / "runs").iterdir()) == []
    (donor, other) = rows_of(study, cell)
    assert donor.small == donor.at(donor.own_scale)
    assert other.small == donor.small


@pytest.mark.parametrize("name", BASES)
def test_a_network_behind_the_prefix_is_scored_as_the_wrapper_does(
    bases: dict[str, Target], tmp_path: Path, name: str
) -> None:
    """The network that is subtracted reads the prefix, in the base's tokens or its own."""
    donor, base = bases["same"], bases[name]
    networks = [tiny_model("llama", seed=9, width=len(donor.tokenizer)), donor.load()]
    adapter = ValueAdapter.from_networks(
        networks,
        donor.tokenizer,
        base_model_name_or_path="alice/base",
        coefficients=[1.0, -1.0],
        reads_prefix=[False, True],
        base_prefix="Say it: now.",
    )
    examples = dataclasses.replace(EXAMPLES, prefix="Say it: now.")
    curve = score_adapter(adapter, [base], examples, store=Store(tmp_path), say=silent)[name]
    assert isinstance(curve, Curve)
    model = ValueAdapterForCausalLM.from_pretrained(base.load(), adapter.copy(), tokenizer=base.tokenizer, scale=0.5)
    score = evaluate(model, base.tokenizer, list(TASK.held_out), generate=False)
    assert curve.at(0.5)["bits_per_byte"] == pytest.approx(score.bits_per_byte, abs=1e-4)


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
    """At scale 1 on the training base, expert - base + base is the expert; the reference says the same."""
    cell = dataclasses.replace(TINY, network="expert_minus_base", epochs=3, prefix_examples=0)
    how = Reference("words", "scratch_small", num_demonstrations=16, epochs=3, held_out=8, calibration=4)
    run_all([cell, how], study)
    (donor, _) = rows_of(study, cell)
    assert donor.fine_tuned is not None
    assert donor.at(1.0) == pytest.approx(donor.fine_tuned["bits_per_byte"], abs=1e-3)
    assert donor.gain(donor.at(1.0)) == pytest.approx(1.0, abs=1e-2)
