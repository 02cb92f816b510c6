"""Weights that a small gate chooses at every token, beside fixed ones and the best by hindsight; knows no models.

A gate (cf. DLLG, arXiv 2606.04378) is a softmax over a few weights of the grid, linear in standardised features. It is
fitted on the training base's calibration examples alone and carried to other bases as it is, where it takes its
likeliest weights; or, to tell what the features are worth, on the base's own calibration examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from studies.cell import Experts
from studies.experts import ENDS, GRID, Look, look
from studies.plan import DEFAULT, of_task
from studies.running import Say
from studies.store import Result, Store
from valueadapter.training.recipe_settings import DEFAULT_WEIGHTS

FEATURES: dict[str, tuple[int, ...]] = {
    "entropies": (0, 1, 2),
    "agreement": (7, 8, 9),
    "the tuned model's gain": (6,),
    "all": tuple(range(10)),
}
"""What a gate sees -> columns of `Look.features`."""
CANDIDATES = 6
"""Weights that a gate chooses among."""
_RIDGE = 0.02


@dataclass(frozen=True)
class Gate:
    """Which weights for which features."""

    columns: tuple[int, ...]
    centre: torch.Tensor
    spread: torch.Tensor
    matrix: torch.Tensor
    """(1 + features, candidates)"""
    candidates: torch.Tensor
    """(candidates,) rows of `GRID`."""

    def inputs(self, features: torch.Tensor) -> torch.Tensor:
        """(tokens, 1 + features)"""
        scaled = (features[:, self.columns] - self.centre) / self.spread
        return torch.cat([torch.ones(len(scaled), 1), scaled], dim=1)

    def nats(self, seen: Look) -> torch.Tensor:
        """(tokens,) under the weights that it takes."""
        rows = self.candidates[(self.inputs(seen.features) @ self.matrix).argmax(-1)]
        return seen.nats[torch.arange(len(rows)), rows, 0]


def fitted(seen: Look, columns: Sequence[int]) -> Gate:
    """The gate whose weights cost least on these tokens in the mean, with a ridge."""
    nats = seen.nats[:, :, 0]
    candidates = _candidates(nats)
    some = seen.features[:, list(columns)]
    nothing = torch.zeros(1 + len(columns), CANDIDATES)
    gate = Gate(tuple(columns), some.mean(0), some.std(0).clamp_min(1e-3), nothing, candidates)
    inputs, costs = gate.inputs(seen.features), nats[:, candidates]
    matrix = nothing.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([matrix], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = ((inputs @ matrix).softmax(-1) * costs).sum(-1).mean() + _RIDGE * (matrix**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch
    return Gate(gate.columns, gate.centre, gate.spread, matrix.detach(), candidates)


def _candidates(nats: torch.Tensor) -> torch.Tensor:
    """The rows of the grid that together leave least, chosen one after the other."""
    least, chosen = torch.full((len(nats), 1), torch.inf), []
    for _ in range(CANDIDATES):
        chosen.append(int(torch.minimum(nats, least).sum(0).argmin()))
        least = torch.minimum(least, nats[:, chosen[-1]][:, None])
    return torch.tensor(chosen)


def run_experts(spec: Experts, store: Store, say: Say) -> Result:
    """What weights are worth on one base.

    Returns:
        `grid`, calibration bits per byte of each weights of `GRID` (rows) and of the end (`ENDS`, columns); `triples`,
        held-out bits per byte of each weights of `GRID` without one of the end; `held_out`, way to choose weights ->
        held-out bits per byte; `examples`, how many to calibrate, and how many held out. Ends are counted.
    """
    cell = replace(of_task(spec.task, DEFAULT), prefix_use=spec.prefix_use)
    calibration, held_out = (look(cell, spec.target, store, say, held_out=which) for which in (False, True))
    donor = look(cell, cell.donor, store, say, held_out=False)
    grid = [[round(calibration.bits_per_byte(column), 5) for column in rows.T] for rows in calibration.nats.unbind(1)]
    own = DEFAULT_WEIGHTS["lora"]
    default = GRID.index((own.base, own.networks[0], -own.networks[1])), ENDS.index(own.end)
    best = divmod(int(torch.tensor(grid).argmin()), len(ENDS))
    ways = {
        "default weights": held_out.nats[:, *default],
        "the best of the grid on the calibration examples": held_out.nats[:, *best],
        "the best of the grid for each token, by hindsight": held_out.nats[:, :, 0].amin(1),
    }
    for name, columns in FEATURES.items():
        ways[f"a gate on {name}, fitted on the training base"] = fitted(donor, columns).nats(held_out)
    ways["a gate on all, fitted on this base"] = fitted(calibration, FEATURES["all"]).nats(held_out)
    return {
        "grid": grid,
        "triples": [round(held_out.bits_per_byte(nats), 5) for nats in held_out.nats[:, :, 0].T],
        "held_out": {name: round(held_out.bits_per_byte(nats), 5) for name, nats in ways.items()},
        "examples": [len(calibration.sizes), len(held_out.sizes)],
    }
