"""Standard errors and chance levels of the CKA of sketches, from what its terms are summed from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_sim._precision import full_precision
from lightning_sim.functional.chance import Null, alignment_skewness, kernel_cubes, null_of
from lightning_sim.functional.estimate import alignment_influences
from lightning_sim.sketch.centered_sums import CenteredSums
from lightning_sim.sketch.hsic import HsicTerms, projected_grams
from lightning_sim.sketch.kernels import positive_factor

__all__ = ["Alignments", "alignment_null", "chance_deviations", "column_variance", "fold_error", "influences_of"]

_COLUMNS = 64  # of each fold, whose influences stand for those of all


class Alignments(NamedTuple):
    """CKA of every row with every column, and what is known of its uncertainty.

    Attributes:
        values: (A, B).
        standard_errors: (A, B), NaN beside the pairs that were asked for; see
            `lightning_sim.functional.Estimate`.
        chance_deviations: (A, B), standard deviations of unbiased values around 0 for unrelated representations;
            of folded layers known if pairs were asked for.
        influences: (row, column) -> (units,), of samples, or of buckets that hold several, on the value of a pair that
            was asked for, without the folds. The standard error of a change on the same probe is that of the difference
            of its influences: ``lightning_sim.functional.estimate.standard_error(now - before)``.
        shares: (row, column) -> (units,), the part of each of them in the numerator, of sum 1.
        units: (units,), the bucket of each: the sample's id modulo `num_buckets`.
    """

    values: Tensor
    standard_errors: Tensor
    chance_deviations: Tensor
    influences: Mapping[tuple[int, int], Tensor]
    shares: Mapping[tuple[int, int], Tensor]
    units: Tensor


def influences_of(terms: HsicTerms, i: int, j: int) -> Tensor:
    """Of buckets on the CKA of the sketches i and j, (M,)."""
    return alignment_influences(terms.row_sums[i, j], terms.row_sums[i, i], terms.row_sums[j, j])


def chance_deviations(terms: HsicTerms, sketch: CenteredSums, rows: list[int], columns: list[int]) -> Tensor:
    """Of unbiased CKA over random pairings of the samples, (A, B)."""
    n = len(terms.diagonals[0])
    pairs = n * (n - 3) if sketch.count == n else n * (n - 1)  # a bucket of several samples has a sign as well
    # A numerator of two folds is the mean of two products, of Grams whose norms are inflated by the folds' noise.
    norms = torch.where(terms.norms > 0, terms.norms, torch.nan)
    (k1, k2), (l1, l2) = norms[rows].T[..., None], norms[columns].T[:, None]
    own = terms.own[rows][:, None] * terms.own[columns]
    inflated: Tensor = (k1 * l2 + k2 * l1 + 2 * own) / (4 * own)
    return (inflated * 2 / pairs).sqrt()


def fold_error(sketches: Sequence[CenteredSums], terms: HsicTerms, i: int, j: int, value: float) -> float:
    r"""Standard deviation of the CKA of the sketches i and j by their folds, 0 where nothing was folded.

    The signs of the columns that are folded into one are drawn for both folds apart, so what the columns c of the two
    folds add to log CKA, :math:`w_c = x_c' P L_0 x_c / (2 T_{xy}) - x_c' P K_0 x_c / (2 T_{xx})` with the Grams of the
    respective other fold, has the same expectation and independent noise: its variance is
    :math:`\sum_c (w_c^{(1)} - w_c^{(2)})^2`. Tensor sketches shuffle columns in each fold anew: there it is the
    variance over columns, in which also the differences of the expectations are.
    """
    folded = {side for side in (i, j) if sketches[side].is_folded}
    data = {side: _data(sketches[side], terms) for side in (i, j)} if folded else {}
    variance = 0.0
    for side in folded:
        other = j if side == i else i
        x, y = data[side], data[other]
        folds = x.shape[2] - sketches[side].num_directions  # coordinates are the same in both
        columns = slice(None, folds, max(1, folds // _COLUMNS))
        scale = math.sqrt(float(terms.own[i] * terms.own[j]))
        parts = []
        for fold in range(2):
            x_c, rest = x[fold][:, columns], 1 - fold
            across = _quadratic(x_c, y[rest % len(y)], terms, sketches, other, rest)
            own = _quadratic(x_c, x[rest], terms, sketches, side, rest)
            parts.append(across.double() / (2 * scale) - value * own.double() / (2 * float(terms.own[side])))
        variance += column_variance(sketches[side], *parts) * folds / len(parts[0])
    return math.sqrt(variance)


def column_variance(sketch: CenteredSums, first: Tensor, second: Tensor) -> float:
    """Of the sum of the influences of the columns of both folds, by the folds' signs."""
    if sketch.gradient_width:
        return float(first.var() + second.var()) * len(first)
    return float((first - second).square().sum())


def _data(sketch: CenteredSums, terms: HsicTerms) -> Tensor:
    """(folds, M, c), in the scale of the Grams."""
    if sketch.keeps_factors:
        kernel = sketch.kernel() / sketch.product().scale
        kernel = kernel if terms.buckets is None else kernel[terms.buckets][:, terms.buckets]
        return positive_factor(kernel)[None].to(terms.dtype)
    data = sketch.centered(terms.dtype)[0] / sketch.scale
    return data if terms.buckets is None else data[:, terms.buckets]


def _quadratic(
    x: Tensor, y: Tensor, terms: HsicTerms, sketches: Sequence[CenteredSums], index: int, fold: int
) -> Tensor:
    """x_c' P L0 x_c of columns x (M, c), with the Gram L of y (M, d), (c,)."""
    ones = sketches[index].ones() if terms.buckets is None else sketches[index].ones()[terms.buckets]
    v, b = ones.to(x.dtype), terms.parts[fold % len(terms.parts), index].to(x.dtype)
    with full_precision(x.device):
        whole = (x.T @ y).square().sum(1) - 2 * (x.T @ b) * (x.T @ v)
        diagonal: Tensor = x.square().T @ (y.square().sum(1) - 2 * b * v)
        return whole - diagonal


def alignment_null(x: CenteredSums, y: CenteredSums, value: float, deviation: float) -> Null:
    """Of unbiased CKA, with the skewness of the mean of both folds' Grams."""
    cubes = []
    for sketch in (x, y):
        grams, signs = projected_grams(sketch)
        cubes.append(kernel_cubes((grams[0] + grams[-1]) / 2 * signs * signs[:, None]))
    return null_of(value, 0.0, deviation, alignment_skewness(cubes[0], cubes[1], len(grams[0])))
