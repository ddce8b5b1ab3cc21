"""The leading directions of wide features, whose coordinates a sketch holds beside folds of what is left of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sim._precision import full_precision
from lightning_sim.sketch.folding import fold_into

__all__ = ["SAMPLES", "LeadingDirections", "leading_directions"]

SAMPLES = 128  # that directions are found from
_MOST = 16
_LEAST_SHARE = 1e-3  # of the first direction's length, and of the features', below which one may be rounding


class LeadingDirections:
    r"""Directions of features, in which these are told from each other without the noise of folds.

    With orthonormal directions D (r, p),

    .. math:: \langle x, y \rangle = \langle D x, D y \rangle + \langle x - D'D x, y - D'D y \rangle

    The second product alone is estimated by folds, so that the sum is right on average whatever the directions are, and
    its noise is that of what they leave. The folds of the rest are those of the features less those of D, by
    coordinates: features are read once more, and nothing as large as they are is made.

    Args:
        directions: (r, p) of about orthonormal rows. They are kept in bfloat16, which is as good as any precision: D
            are those, exactly orthonormal.
        num_projections: k of the sketch: both folds have k / 2 columns, of which the last r are the coordinates.
        seed: of the sketch.
    """

    def __init__(self, directions: Tensor, num_projections: int, seed: int) -> None:
        self._rows, self._dtype, self._seed = directions.bfloat16(), directions.dtype, seed
        self._columns = num_projections // 2 - len(directions)
        rows = self._rows.to(self._dtype)
        triangle = torch.linalg.cholesky((rows @ rows.T).cpu().double())
        self._turn = torch.linalg.inv(triangle).to(rows.dtype).to(rows.device)  # that makes the rows orthonormal
        self._folds = self._turn @ fold_into(rows, self._columns, (0, 1), seed, self._dtype)

    def __len__(self) -> int:
        return len(self._rows)

    def sketched(self, features: Tensor) -> Tensor:
        """Features (b, p) as (2, b, k / 2)."""
        with full_precision(features.device):
            coordinates = features.to(self._dtype) @ self._rows.to(self._dtype).T @ self._turn.T
            folds = fold_into(features, self._columns, (0, 1), self._seed, self._dtype)
            folds -= coordinates @ self._folds
            return torch.cat([folds, coordinates.expand(2, -1, -1)], dim=2)


def leading_directions(
    features: Tensor, num_projections: int, seed: int, dtype: torch.dtype
) -> LeadingDirections | None:
    """Those of some samples (b, p), by their singular values; None where they differ by little more than rounding."""
    x = features.to(dtype)
    largest = float(torch.maximum(x.amax(), -x.amin()))
    if not 0 < largest < math.inf:
        return None
    if not 1e-10 < largest < 1e10:  # whose squares float32 may not hold
        x = x / largest
    with full_precision(x.device):
        # Of the Gram matrix, and not of the samples themselves, of which it would take copies.
        gram = (x @ x.T).cpu().double()
        centered = gram - gram.mean(0)
        centered -= centered.mean(1, keepdim=True)
        squares, turn = torch.linalg.eigh(centered)
        if not squares[-1] > _LEAST_SHARE**2 * gram.trace():
            return None
        found = slice(-min(_MOST, num_projections // 4, int((squares > _LEAST_SHARE**2 * squares[-1]).sum())), None)
        weights = (turn[:, found] / squares[found].sqrt()).T
        weights -= weights.mean(1, keepdim=True)
        return LeadingDirections(weights.to(dtype).to(x.device) @ x, num_projections, seed)
