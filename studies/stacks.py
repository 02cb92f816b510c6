"""Two adapters of different tasks on one base, each alone and both together, on the questions of both tasks."""

from __future__ import annotations

import dataclasses

from studies.cell import Stack
from studies.plan import DEFAULT, of_task
from studies.running import Say, trained
from studies.scoring import measured
from studies.store import Result, Store
from studies.targets import TARGETS
from studies.tasks import examples_of, load_task
from valueadapter import ValueAdapterForCausalLM, calibrate
from valueadapter.demonstrations.responses import response_bytes

NONE, TOGETHER = "none", "both"


def run_stack(spec: Stack, store: Store, say: Say) -> Result:
    """Fits each adapter alone, and both together, on the calibration examples of both tasks.

    No base prefix is read, so that what differs is the adapters alone.

    Returns:
        `sizes`, task -> UTF-8 bytes of each held-out response; `arms`, which adapters -> task -> as `measured` says;
        `weights`, which adapters -> adapter -> weights.
    """
    target = TARGETS[spec.target]
    model = ValueAdapterForCausalLM(target.load(), tokenizer=target.tokenizer)
    cells = {task: dataclasses.replace(of_task(task, DEFAULT), prefix_use=spec.prefix_use) for task in spec.tasks}
    examples = {
        task: dataclasses.replace(examples_of(cell, load_task(task)), answered=0) for task, cell in cells.items()
    }
    for task, cell in cells.items():
        adapter = trained(cell, store, say)[0]
        model.add_adapter(
            adapter.with_config(base_prefix=None, weights=(), stop_strings=examples[task].stop_strings), task
        )
    model.eval()
    others = [record for one in examples.values() for record in one.calibration]
    found: Result = {"arms": {}, "weights": {}}
    found["sizes"] = {task: [response_bytes([record]) for record in one.held_out] for task, one in examples.items()}
    for name, acting in {NONE: (), **{task: (task,) for task in spec.tasks}, TOGETHER: spec.tasks}.items():
        say(f"  {name}")
        model.set_adapter(acting)
        weights = calibrate(model, others, adapter_name=acting).weights if acting else {}
        for one, fitted in weights.items():
            model.set_weights(one, fitted)
        found["weights"][name] = {one: dataclasses.asdict(fitted) for one, fitted in weights.items()}
        found["arms"][name] = {task: measured(model, target.tokenizer, one) for task, one in examples.items()}
    return found
