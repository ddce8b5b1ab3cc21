"""Sums of the HSIC_1 terms of batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sim._centering import undefined
from lightning_sim._checks import check_pair
from lightning_sim.functional._rounding import rows_of
from lightning_sim.functional.centered_kernel_alignment import alignment
from lightning_sim.functional.hsic import Estimator, HsicTerms, linear_hsic_terms
from lightning_sim.metrics._pair_metric import State

__all__ = ["MinibatchTerms"]


@dataclass(frozen=True)
class MinibatchTerms:
    """Five numbers, summed over batches: HSIC_1 of the pair and of each side, and the rounding of the latter two."""

    def zeros(self) -> State:
        """The sums over no batches."""
        return {"hsic_terms": torch.zeros(5, dtype=torch.float64), "batches": torch.zeros((), dtype=torch.int64)}

    def updated(self, state: State, x: Tensor, y: Tensor, sample_ids: Tensor | None = None) -> State:
        """The state with a batch added, unless it is too small for HSIC_1."""
        x, y = check_pair(x, y, minimum_rows=0)
        if len(x) < 4:
            return state
        terms = linear_hsic_terms(rows_of(x.detach()), rows_of(y.detach()), "unbiased")
        return {"hsic_terms": state["hsic_terms"] + torch.stack(terms), "batches": state["batches"] + 1}

    def announced(self, state: State, part: int, num_parts: int) -> Tensor:
        """Nothing: these sums add as they are."""
        return torch.zeros_like(state["batches"])

    def aligned(self, state: State, announced: Tensor, part: int) -> State:
        """The state as it is."""
        return state

    def cka(self, state: State, estimator: Estimator) -> Tensor:
        """Centred kernel alignment; NaN with a warning where it is undefined."""
        if int(state["batches"]) == 0:
            return undefined("no batch had the 4 samples that the estimator needs", state["hsic_terms"])
        return alignment(HsicTerms(*state["hsic_terms"]), ("x", "y"))
