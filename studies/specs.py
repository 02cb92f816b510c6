"""Runs whatever the plan holds: a cell, a reference, a judge, a look at weights."""

from __future__ import annotations

from studies.cell import AnySpec, Cell, Experts, Reference
from studies.gates import run_experts
from studies.judging import run_judge
from studies.reference import run_reference
from studies.running import Say, run_cell
from studies.store import Result, Store


def run_spec(spec: AnySpec, store: Store, say: Say) -> Result:
    """What it comes to; JSON values."""
    if isinstance(spec, Cell):
        return run_cell(spec, store, say)
    if isinstance(spec, Reference):
        return run_reference(spec)
    return run_experts(spec, store, say) if isinstance(spec, Experts) else run_judge(spec, store, say)
