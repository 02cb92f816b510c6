"""Runs whatever the plan holds: a cell, a reference, a judge, a look at weights, a stack."""

from __future__ import annotations

from studies.cell import AnySpec, Cell, Experts, Reference, Stack
from studies.gates import run_experts
from studies.judging import run_judge
from studies.reference import run_reference
from studies.running import Say, run_cell
from studies.stacks import run_stack
from studies.store import Result, Store


def run_spec(spec: AnySpec, store: Store, say: Say) -> Result:
    """What it comes to; JSON values."""
    if isinstance(spec, Cell):
        return run_cell(spec, store, say)
    if isinstance(spec, Reference):
        return run_reference(spec)
    if isinstance(spec, Experts):
        return run_experts(spec, store, say)
    return run_stack(spec, store, say) if isinstance(spec, Stack) else run_judge(spec, store, say)
