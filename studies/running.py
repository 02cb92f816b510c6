"""Runs one cell: trains the adapter as users do, and measures every arm on the cell's bases.

Knows which setting goes to which part of the library.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from studies.cell import Cell, Reference, key_of
from studies.damping import damp_content
from studies.reference import fine_tuned
from studies.scoring import Examples, behind, measured
from studies.store import Result, Store, write_json
from studies.targets import TARGETS, Target, relation, targets_of
from studies.tasks import Prefix, examples_of, load_task, prefix_records, prefix_text, training_records
from valueadapter import ValueAdapter, ValueAdapterForCausalLM, calibrate
from valueadapter.artifact.config import Weights
from valueadapter.demonstrations.responses import response_bytes
from valueadapter.errors import AlignmentError, IncompatibleBaseError, UnsupportedModeError
from valueadapter.model import prefix_memory
from valueadapter.training.recipe import run
from valueadapter.training.recipe_settings import Recipe

FEWSHOT = 4
"""Examples in the prompt of the few-shot arm where the cell's own prefix has none."""
Say = Callable[[str], object]
NAME = "default"


def run_cell(cell: Cell, store: Store, say: Say) -> Result:
    """Trains and scores.

    Returns:
        `training`, the recipe's summary; `sizes`, UTF-8 bytes of each held-out response; `targets`, for each base what
        `_arms` says.
    """
    if cell.prefix_use == "all_by_the_body":
        with _read_by_the_body():
            return _run_cell(cell, store, say)
    return _run_cell(cell, store, say)


def _run_cell(cell: Cell, store: Store, say: Say) -> Result:
    targets = targets_of(cell.donor, cell.targets)
    for target in targets:
        _ = target.folder  # what is missing shows before anything is trained
    adapter, summary = trained(cell, store, say)
    examples = examples_of(cell, load_task(cell.task))
    sizes = [response_bytes([record]) for record in examples.held_out]
    found: Result = {"training": summary, "sizes": sizes, "targets": {}}
    for target in targets:
        say(f"  scoring on {target.name}")
        found["targets"][target.name] = _arms(cell, adapter, target, examples, store)
    return found


def _arms(cell: Cell, adapter: ValueAdapter, target: Target, examples: Examples, store: Store) -> Result:
    """Every arm on one base.

    Returns:
        `relation`; the arms `alone`, `fewshot`, `default` (base + adapter as loaded, nothing calibrated) and `fitted`,
        on the training base also `small` (the small tuned model), each as `measured` says; the fitted `weights`,
        whether cross-validation believed them (`believed`), and what the calibration examples cost with them
        (`calibration`) and along the scale (`curve`). Or the `refusal` in place of the adapter's arms.
    """
    task, prefix = load_task(cell.task), Prefix(cell.prefix_examples, cell.prefix_policy)
    shown = prefix if cell.prefix_examples else Prefix(FEWSHOT)
    base = target.load()
    arms: Result = {"relation": relation(cell.donor, target.name, cell.other_bases)}
    for name, text in (("alone", None), ("fewshot", prefix_text(prefix_records(task, shown)))):
        arms[name] = _without_adapter(base, target, text, examples, store)
    try:
        model = attached(cell, adapter, target, base, examples)
        return arms | _with_adapter(cell, model, target, examples)
    except (AlignmentError, IncompatibleBaseError, UnsupportedModeError) as error:
        # a path of this machine says nothing to others
        return arms | {"refusal": str(error).replace(str(target.folder), target.name)}


def attached(
    cell: Cell, adapter: ValueAdapter, target: Target, base: Any, examples: Examples
) -> ValueAdapterForCausalLM:
    """A base with the adapter as it is loaded there by someone who gives no option."""
    text = prefix_text(prefix_records(load_task(cell.task), Prefix(cell.prefix_examples, cell.prefix_policy)))
    model = ValueAdapterForCausalLM(base, tokenizer=target.tokenizer)
    model.add_adapter(adapter.with_config(base_prefix=text, stop_strings=examples.stop_strings), NAME)
    own = adapter.config.weights if target.name == cell.donor else ()  # it lies in a folder of another name
    model.set_weights(NAME, own[0].weights if own else adapter.config.default_weights)
    model.eval()
    return model


def _without_adapter(base: Any, target: Target, prefix: str | None, examples: Examples, store: Store) -> Result:
    """A base alone or behind examples, which is the same in many cells."""
    model = ValueAdapterForCausalLM(base, tokenizer=target.tokenizer)
    with behind(model, prefix):
        what = [target.fingerprint, prefix, dataclasses.asdict(examples)]
        return store.kept("bases", what, lambda: measured(model, target.tokenizer, examples))


def _with_adapter(cell: Cell, model: ValueAdapterForCausalLM, target: Target, examples: Examples) -> Result:
    arms: Result = {}
    trained = model.weights[NAME]
    arms["default"] = measured(model, target.tokenizer, examples)
    found = calibrate(model, examples.calibration)
    model.set_weights(NAME, found.weights[NAME])
    same = found.weights[NAME] == trained
    arms["fitted"] = arms["default"] if same else measured(model, target.tokenizer, examples)
    if target.name == cell.donor:
        arms["small"] = measured(_small(model, trained), target.tokenizer, examples)
    return arms | {
        "weights": dataclasses.asdict(found.weights[NAME]),
        "believed": found.fitted,
        "calibration": round(found.bits_per_byte, 5),
        "curve": {f"{scale:g}": round(bits, 5) for scale, bits in found.curve.items()},
    }


def _small(model: ValueAdapterForCausalLM, trained: Weights) -> Any:
    """The small tuned model, as training left it: of a pair the first network, which reads what it was trained to read;
    else the training base with it."""
    alone = Weights(0.0, (1.0, *(0.0 for _ in trained.networks[1:])))
    model.set_weights(NAME, alone if len(trained.networks) > 1 else trained)
    return model


@contextmanager
def _read_by_the_body() -> Iterator[None]:
    """Within the block, the network that is added goes on from what the one that is subtracted made of the prefix."""
    original = prefix_memory.network_prefixes

    def by_the_body(*arguments: Any) -> Any:
        added, subtracted = original(*arguments)
        if added is not None and subtracted is not None:
            added._read = subtracted._read
        return added, subtracted

    prefix_memory.network_prefixes = by_the_body
    try:
        yield
    finally:
        prefix_memory.network_prefixes = original


# -- training ----------------------------------------------------------------------------------------------------------
def trained(cell: Cell, store: Store, say: Say) -> tuple[ValueAdapter, Result]:
    """The cell's adapter and the summary of its training; one whose answers are looked at is kept for other looks."""
    place = store.root / "adapters" / key_of(dataclasses.replace(cell, targets="core"))
    summary_file = place / "summary.json"
    with store.locked(f"adapters-{place.name}"):
        if summary_file.exists():
            return ValueAdapter.from_pretrained(place / "adapter"), json.loads(summary_file.read_text("utf-8"))
        begun = time.monotonic()
        adapter, summary = _trained(cell, store, say)
        summary["seconds"] = round(time.monotonic() - begun, 1)
        if cell.answered:
            adapter.save_pretrained(place / "adapter")
            write_json(summary_file, summary)
    return adapter, summary


def _trained(cell: Cell, store: Store, say: Say) -> tuple[ValueAdapter, Result]:
    task, prefix = load_task(cell.task), Prefix(cell.prefix_examples, cell.prefix_policy)
    records = training_records(task, prefix, cell.num_demonstrations)
    donor = TARGETS[cell.donor]
    if cell.network == "expert_minus_base":
        return _expert_minus_base(cell, donor, records, say), {}
    place = store.root / "runs" / key_of(cell)
    try:
        text = prefix_text(prefix_records(task, prefix))
        summary = run(recipe_of(cell, records, text, place, store.root / "training"), overwrite=True, say=say)
        adapter = ValueAdapter.from_pretrained(str(summary.pop("adapter")))
    finally:
        shutil.rmtree(place, ignore_errors=True)  # a network is half a gigabyte
    if cell.content_weight != 1:
        damp_content(adapter, records, cell.content_weight)
    networks = adapter.networks
    summary["parameters"] = sum(p.numel() for network in networks for p in network.parameters())
    return adapter, summary


def _expert_minus_base(cell: Cell, donor: Target, records: list[Any], say: Say) -> ValueAdapter:
    """+1 the donor fine-tuned directly, -1 the donor: proxy-tuning (Liu et al. 2024, arXiv 2401.08565)."""
    say(f"  fine-tuning {donor.name} directly")
    how = Reference(
        task=cell.task, target=cell.donor, num_demonstrations=len(records), epochs=cell.epochs, seed=cell.seed
    )
    expert = fine_tuned(donor.load(), donor.tokenizer, records, how)
    networks = [expert, donor.load()]
    return ValueAdapter.from_networks(
        networks,
        donor.tokenizer,
        base_model_name_or_path=donor.name,
        coefficients=[1.0, -1.0],
        reads_prefix=[False, cell.prefix_use == "subtracted"],
    )


def recipe_of(cell: Cell, records: list[Any], prefix: str | None, place: Path, states: Path) -> Recipe:
    """The recipe that trains a cell's adapter, with the base's hidden states kept in `states` where they serve."""
    arguments = {
        "num_train_epochs": cell.epochs,
        "learning_rate": cell.learning_rate,
        "per_device_train_batch_size": cell.batch_size,
        "label_smoothing_factor": cell.label_smoothing,
        "penalty": cell.penalty,
        "penalty_coefficient": cell.penalty_coefficient,
        "centred": cell.centred,
        "seed": cell.seed,
        "cache_base": cell.connection == "residual",
        "cache_base_dir": str(states),
        "save_strategy": "no",
        "use_cpu": True,
    }
    return Recipe(
        base=str(TARGETS[cell.donor].folder),
        base_name=TARGETS[cell.donor].name,
        data=records,
        data_name=cell.task,
        output_dir=place,
        network="full" if cell.lora_rank is None else "lora",
        lora_rank=cell.lora_rank or Recipe.lora_rank,
        num_layers=cell.num_layers,
        initialisation=cell.initialisation,  # type: ignore[arg-type]  # checked by the recipe
        connection=cell.connection,  # type: ignore[arg-type]  # checked by the recipe
        dropout=cell.dropout or None,
        other_bases=tuple(str(TARGETS[name].folder) for name in cell.other_bases),
        base_prefix=prefix if cell.prefix_use != "scoring" else None,
        lora_reads_prefix=cell.lora_rank is None or cell.prefix_use in ("all", "all_by_the_body"),
        base_prefix_examples=0,
        arguments=arguments,
    )
