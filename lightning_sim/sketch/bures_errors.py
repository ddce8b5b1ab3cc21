"""Standard errors and chance levels of the NBS of sketches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_sim.functional.chance import Null, null_of, permuted
from lightning_sim.functional.estimate import Estimate, bures_parts, polar_directions, standard_error
from lightning_sim.functional.normalized_bures_similarity import normalized_bures_similarity as bures_of_rows
from lightning_sim.sketch.alignment_errors import column_variance
from lightning_sim.sketch.centered_sums import CenteredSums
from lightning_sim.sketch.hsic import occupied_by
from lightning_sim.sketch.kernels import positive_factor
from lightning_sim.sketch.similarity import normalized_bures_similarity

__all__ = ["bures_estimate", "bures_null"]


def bures_estimate(a: CenteredSums, b: CenteredSums) -> Estimate:
    """NBS with its standard error by samples, or by buckets that hold several, and by folds.

    Its influences need singular vectors where the value needs singular values alone: O(M k^2 + k^3) again, measured
    two to three times as long as the value, so that it is no part of every measurement.
    """
    value = normalized_bures_similarity(a, b)
    if bool(value.isnan()):
        return Estimate(value, torch.full_like(value, torch.nan))
    x, y = _rows(a, b)
    samples, *columns = _influences(x, y)
    variance = 0.0
    if a.is_folded or b.is_folded:
        # The value is twice that of both folds together less the mean of each alone.
        sides = zip(*(z.chunk(2, 1) if side.is_folded else (z, z) for side, z in ((a, x), (b, y))), strict=True)
        halves = [_influences(*pair) for pair in sides]
        samples = 2 * samples - (halves[0][0] + halves[1][0]) / 2
        for index, side in enumerate((a, b)):
            if side.is_folded:
                both = zip(columns[index].chunk(2), halves, strict=True)
                parts = (2 * whole - half[1 + index] / 2 for whole, half in both)
                variance += column_variance(side, *(part[: len(part) - side.num_directions] for part in parts))
    return Estimate(value, torch.sqrt(standard_error(samples).square() + variance).to(value.dtype))


def _influences(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """On NBS of the rows, of the columns of x, and of those of y."""
    u, v = polar_directions(x, y)
    # A column adds to the kernel, of which NBS takes a root.
    of_x, of_y = (bures_parts(z * image, z, z, dim=0) / 2 for z, image in ((x, y @ (v @ u.T)), (y, x @ (u @ v.T))))
    return bures_parts((x @ u) * (y @ v), x, y, dim=1), of_x, of_y


def bures_null(a: CenteredSums, b: CenteredSums, permutations: int) -> Null:
    """NBS beside its values for random pairings of the samples, or of buckets that hold several."""
    value = float(normalized_bures_similarity(a, b))
    if math.isnan(value):
        return null_of(value, math.nan, math.nan)
    x, y = _rows(a, b)

    def of(y: Tensor) -> Tensor:
        whole = bures_of_rows(x, y)
        if not (a.is_folded or b.is_folded):
            return whole
        halves = zip(*(z.chunk(2, 1) if side.is_folded else (z, z) for side, z in ((a, x), (b, y))), strict=True)
        return (2 * whole - sum(bures_of_rows(*pair) for pair in halves) / 2).clamp(0, 1)

    values = [of(y[order.to(y.device)]) for order in permuted(len(y), permutations)]
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
