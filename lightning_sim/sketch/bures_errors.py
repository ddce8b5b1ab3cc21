"""Standard errors and chance levels of the NBS of sketches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sim.functional.chance import Null, null_of, permuted
from lightning_sim.functional.estimate import Estimate, bures_parts, polar_directions, standard_error
from lightning_sim.functional.normalized_bures_similarity import normalized_bures_similarity as bures_of_rows
from lightning_sim.sketch.centered_sums import CenteredSums
from lightning_sim.sketch.hsic import occupied_by
from lightning_sim.sketch.kernels import positive_factor
from lightning_sim.sketch.similarity import normalized_bures_similarity

__all__ = ["bures_estimate", "bures_null"]


def bures_estimate(a: CenteredSums, b: CenteredSums) -> Estimate:
    """NBS with its standard error by samples, or by buckets that hold several, and by folds.

    Its influences need the singular vectors where the value needs the values alone: O(M k^2 + k^3) again.
    """
    value = normalized_bures_similarity(a, b)
    if bool(value.isnan()):
        return Estimate(value, torch.full_like(value, torch.nan))
    x, y = _rows(a, b)
    u, v = polar_directions(x, y)
    variance = standard_error(bures_parts((x @ u) * (y @ v), x, y, dim=1)).square()
    for sketch, z, image in ((a, x, y @ (v @ u.T)), (b, y, x @ (u @ v.T))):
        if sketch.is_folded:
            # A column adds to the kernel, of which NBS takes a root. The folds' columns differ by their noise.
            first, second = (bures_parts(z * image, z, z, dim=0) / 2).chunk(2)
            variance = variance + (first - second).square().sum()
    return Estimate(value, variance.sqrt().to(value.dtype))


def bures_null(a: CenteredSums, b: CenteredSums, permutations: int) -> Null:
    """NBS beside its values for random pairings of the samples, or of buckets that hold several."""
    value = float(normalized_bures_similarity(a, b))
    if math.isnan(value):
        return null_of(value, math.nan, math.nan)
    x, y = _rows(a, b)
    values = [bures_of_rows(x, y[order.to(y.device)]) for order in permuted(len(y), permutations)]
    moments = torch.stack(values).to("cpu", torch.float64)
    return null_of(value, float(moments.mean()), float(moments.std()))


def _rows(a: CenteredSums, b: CenteredSums) -> tuple[Tensor, Tensor]:
    """Centred data (M, c) of the buckets that hold samples, in float64, folds side by side."""
    b = b.on(a.device)
    buckets = occupied_by([a, b])
    found = []
    for sketch in (a, b):
        rows = positive_factor(sketch.kernel()) if sketch.keeps_factors else torch.cat(list(sketch.centered()[0]), 1)
        rows = (
            rows.double() / sketch.scale * torch.where(sketch.ones() < 0, -1, 1)[:, None]
        )  # of one sample without sign
        found.append(rows if buckets is None else rows[buckets])
    return found[0], found[1]
