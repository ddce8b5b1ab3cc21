"""The leading directions of wide features, whose coordinates a sketch holds beside folds of what is left of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sim._precision import full_precision
from lightning_sim.sketch.folding import fold_into

__all__ = ["SAMPLES", "LeadingDirections", "leading_directions"]

SAMPLES = 128  # of the first batch, that directions are found from at most
_MOST = 16
_LEAST_SHARE = 1e-2  # of the first direction's length, below which one is of no use
_LEAST_SPREAD = 1e-3  # of the features' length, below which it may be rounding


class LeadingDirections:
    r"""Directions of features, in which these are told from each other without the noise of folds.

    With orthonormal directions D (r, p),

    .. math:: \langle x, y \rangle = \langle D x, D y \rangle + \langle x - D'D x, y - D'D y \rangle

    The second product alone is estimated by folds, so that the sum is right on average whatever the directions are, and
    its noise is that of what they leave. The folds of the rest are those of the features less those of D, by
    coordinates, for which the features are read once more.

    Args:
        rows: (r, p) in bfloat16, orthonormal but for its rounding: D are those, exactly orthonormal.
        num_projections: k of the sketch: both folds have k / 2 columns, of which the last are the coordinates.
        seed: of the sketch.
        dtype: of the folds.
    """

    def __init__(self, rows: Tensor, num_projections: int, seed: int, dtype: torch.dtype) -> None:
        self.rows, self._seed, self._dtype = rows, seed, dtype
        wide = rows.to(dtype)
        with full_precision(rows.device):
            triangle = torch.linalg.cholesky((wide @ wide.T).cpu().double())
            self._turn = torch.linalg.inv(triangle).to(dtype).to(rows.device)
            self._columns = num_projections // 2 - len(self)
            self._folds = self._turn @ fold_into(wide, self._columns, (0, 1), seed, dtype)

    def __len__(self) -> int:
        return len(self.rows)

    def sketched(self, features: Tensor) -> Tensor:
        """Features (b, p) as (2, b, k / 2)."""
        if features.shape[1] != self.rows.shape[1]:
            raise ValueError(
                f"`features` must keep their width: {self.rows.shape[1]} in the first batch, now {features.shape[1]}"
            )
        with full_precision(features.device):
            coordinates = features.to(self._dtype) @ self.rows.to(self._dtype).T @ self._turn.T
            folds = fold_into(features, self._columns, (0, 1), self._seed, self._dtype)
            folds -= coordinates @ self._folds
            return torch.cat([folds, coordinates.expand(2, -1, -1)], dim=2)


def leading_directions(
    features: Tensor, num_projections: int, seed: int, dtype: torch.dtype
) -> LeadingDirections | None:
    """Those of some samples (b, p), by their singular values; None where they differ by little more than rounding."""
    x = features.to(dtype)
    largest = float(torch.maximum(x.amax(), -x.amin()))
    most = min(_MOST, num_projections // 4)
    if not most or not 0 < largest < math.inf:
        return None
    if not 1e-10 < largest < 1e10:  # whose squares float32 may not hold
        x = x / largest
    size = torch.linalg.vector_norm(x)
    x = x - x.mean(0)
    with full_precision(x.device):
        squares, turn = torch.linalg.eigh((x @ x.T).cpu().double())
        if not squares[-1] > (_LEAST_SPREAD * float(size)) ** 2:
            return None
        found = slice(-min(most, int((squares > _LEAST_SHARE**2 * squares[-1]).sum())), None)
        weights = (turn[:, found] / squares[found].sqrt()).T.to(dtype).to(x.device)
        return LeadingDirections((weights @ x).bfloat16(), num_projections, seed, dtype)
