"""Sums of the HSIC_1 terms of batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sim._centering import undefined
from lightning_sim._checks import check_pair
from lightning_sim.functional._rounding import rows_of
from lightning_sim.functional.centered_kernel_alignment import alignment
from lightning_sim.functional.estimate import Estimate
from lightning_sim.functional.hsic import Estimator, HsicTerms, linear_hsic_terms
from lightning_sim.metrics._pair_metric import State

__all__ = ["MinibatchTerms"]


@dataclass(frozen=True)
class MinibatchTerms:
    """HSIC_1 of the pair and of each side, the rounding of the latter two, products of all three: sums over batches."""

    def zeros(self) -> State:
        """The sums over no batches."""
        return {
            "hsic_terms": torch.zeros(5, dtype=torch.float64),
            "products": torch.zeros(3, 3, dtype=torch.float64),
            "batches": torch.zeros((), dtype=torch.int64),
        }

    def updated(self, state: State, x: Tensor, y: Tensor, sample_ids: Tensor | None = None) -> State:
        """The state with a batch added, unless it is too small for HSIC_1."""
        x, y = check_pair(x, y, minimum_rows=0)
        if len(x) < 4:
            return state
        terms = torch.stack(linear_hsic_terms(rows_of(x.detach()), rows_of(y.detach()), "unbiased"))
        return {
            "hsic_terms": state["hsic_terms"] + terms,
            "products": state["products"] + torch.outer(terms[:3], terms[:3]),
            "batches": state["batches"] + 1,
        }

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

    def cka_estimate(self, state: State, estimator: Estimator) -> Estimate:
        """The same with its standard error, for which the batches are the samples."""
        value = self.cka(state, estimator)
        _, self_x, self_y = state["hsic_terms"][:3]
        # The influence of a batch is linear in its terms.
        weights = torch.stack([2 / (self_x * self_y).sqrt(), -value / self_x, -value / self_y]) / 2
        count = state["batches"]
        variance = (weights @ state["products"] @ weights).clamp_min(0) * count / (count - 1)
        return Estimate(value, torch.where(count > 1, variance.sqrt(), torch.nan))
