"""Runs one cell: trains the adapter as users do, scores it on the cell's bases, and forgets its weights.

Knows which setting goes to which part of the library.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from studies.cell import AnySpec, Cell, Judge, Reference, key_of
from studies.curves import SCALES, Curve
from studies.damping import damp_content
from studies.judging import run_judge
from studies.reference import fine_tuned, run_reference
from studies.scoring import Examples, Say, score_adapter, score_alone
from studies.store import Result, Store
from studies.targets import TARGETS, Target, relation, targets_of
from studies.tasks import Prefix, Task, load_task, prefix_records, prefix_text, training_records
from valueadapter import ValueAdapter
from valueadapter.training.recipe import Recipe, run

FEWSHOT = 4
"""Examples in the prompt of the few-shot arm where the cell's own prefix has none."""
SHOWN = (0.25, 0.5, 0.75, 1.0)
"""Scales whose held-out results are kept besides the chosen ones."""


def run_spec(spec: AnySpec, store: Store, say: Say) -> Result:
    """What a cell, reference or judge comes to; JSON values."""
    if isinstance(spec, Judge):
        return run_judge(spec, store, say)
    return run_cell(spec, store, say) if isinstance(spec, Cell) else run_reference(spec)


def run_cell(cell: Cell, store: Store, say: Say) -> Result:
    """Trains and scores.

    Returns:
        `training`, the recipe's summary; `donor_scale`, calibrated on the training base; `targets`, for each base the
        arms (`alone`, `fewshot`, `scales`: held-out results by scale), its own calibrated `scale` and the
        calibration's `curve`; or the `refusal`.
    """
    task = load_task(cell.task)
    targets = targets_of(cell.donor, cell.targets)
    for target in targets:
        _ = target.folder  # what is missing shows before anything is trained
    prefix = Prefix(cell.prefix_examples, cell.prefix_policy)
    examples = _examples(cell, task, prefix)
    begun = time.monotonic()
    adapter, summary = _adapter(cell, task, prefix, store, say)
    summary["seconds"] = round(time.monotonic() - begun, 1)
    curves = score_adapter(adapter, targets, examples, store=store, say=say)
    shots = _examples(cell, task, prefix if cell.prefix_examples else Prefix(FEWSHOT))
    found: Result = {"training": summary, "targets": {}}
    own = curves[cell.donor]
    found["donor_scale"] = own.best() if isinstance(own, Curve) else None
    for target in targets:
        arms: Result = {"relation": relation(cell.donor, target.name, cell.other_bases)}
        arms["alone"] = score_alone(target, dataclasses.replace(examples, prefix=None), store).at(0.0)
        arms["fewshot"] = score_alone(target, shots, store).at(0.0)
        arms |= _arms(curves[target.name], found["donor_scale"])
        found["targets"][target.name] = arms
    return found


def _examples(cell: Cell, task: Task, prefix: Prefix) -> Examples:
    text = prefix_text(prefix_records(task, prefix))
    return Examples(task.held_out[: cell.held_out], task.calibration[: cell.calibration], text)


def _arms(curve: Curve | str, donor_scale: float | None) -> Result:
    """Held-out results at the scales that were chosen without them, and at a few fixed ones."""
    if isinstance(curve, str):
        return {"refusal": curve}
    best = curve.best()
    wanted = sorted({*SHOWN, best, *([] if donor_scale is None else [donor_scale])})
    calibration = curve.bits_per_byte(held_out=False)
    return {
        "scale": best,
        "scales": {f"{scale:g}": curve.at(scale) for scale in wanted},
        "curve": {f"{scale:g}": round(bits, 5) for scale, bits in zip(SCALES, calibration, strict=True)},
        "examples": curve.per_example(best),
    }


def _adapter(cell: Cell, task: Task, prefix: Prefix, store: Store, say: Say) -> tuple[ValueAdapter, Result]:
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
        shutil.rmtree(place, ignore_errors=True)  # a network is half a gigabyte, and its results are what is kept
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
        base_prefix_examples=0,
        arguments=arguments,
    )
