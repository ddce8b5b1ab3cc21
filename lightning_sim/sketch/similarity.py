"""Similarities of finished sketches: one pair, or all layers of one network with all layers of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sim._checks import check_choice
from lightning_sim._precision import full_precision
from lightning_sim.functional.estimate import standard_error
from lightning_sim.functional.nuclear_norm import nuclear_norm
from lightning_sim.sketch.alignment_errors import Alignments, chance_deviations, fold_error, influences_of
from lightning_sim.sketch.centered_sums import CenteredSums
from lightning_sim.sketch.hsic import STANDARD_ERRORS, fold_noise, hsic_terms, occupied_by, self_problem
from lightning_sim.sketch.kernels import positive_factor

__all__ = ["alignments", "centered_kernel_alignment_matrix", "normalized_bures_similarity"]

_ROUNDING = 1e-3  # outside of the range by less is rounding
_EXTRAPOLATION = 2.0, -0.5, -0.5  # of both folds together and of each, to infinitely many columns


def centered_kernel_alignment_matrix(
    rows: Sequence[CenteredSums], columns: Sequence[CenteredSums], *, estimator: str = "unbiased"
) -> Tensor:
    r"""Linear CKA of every sketch in `rows` with every sketch in `columns`.

    With :math:`K_0, L_0` the Grams of the sketched, centred data without their diagonals, and P the orthogonal
    projection away from the matrices :math:`b v' + v b'` without diagonals, where ``v = S1``,

    .. math:: CKA = \frac{\langle P K_0, P L_0 \rangle}{\|P K_0\| \; \|P L_0\|}

    Without collisions v holds signs, and :math:`\langle P K_0, P L_0 \rangle` is n (n - 3) HSIC_1 of Song et al. 2012.
    Dropping the diagonal removes the bias of HSIC and of the collisions at once: the entries a != b have the
    expectation of the sum over pairs of samples in different buckets. Products always take different folds of the two
    sides, :math:`\|P K_0\|^2 = \langle P K_0^{(1)}, P K_0^{(2)} \rangle`, so that the folds' own noise has no
    expectation either.

    **NaN** is what has no value: a side with a `Sketch.problem`, or with a :math:`\|P K_0\|^2` that is no more than
    rounding or four standard errors of the folds' noise (`Sketch.cka_problem`). Without folds the ratio is in [-1, 1]
    by construction. With them it may leave that range by noise: it is put back to -1 or 1 where four standard errors of
    both sides explain it, and is NaN where they do not.

    Cost: O((A + B) M^2 k + A B M^2) for A rows and B columns; memory O((A + B) M) times a block of rows.

    Args:
        rows: A sketches.
        columns: B sketches, all of the same samples, seed and sizes.
        estimator: "unbiased" ([-1, 1]) or "biased" ([0, 1]; keeps the diagonals, exact for N <= M).

    Returns:
        (A, B), of the sketches' dtype.

    Raises:
        ValueError: when the sketches cannot be compared, are as published, or the estimator is unknown.
    """
    return alignments(rows, columns, estimator=estimator).values


def alignments(
    rows: Sequence[CenteredSums],
    columns: Sequence[CenteredSums],
    *,
    estimator: str = "unbiased",
    pairs: Sequence[tuple[int, int]] = (),
) -> Alignments:
    r"""The values of `centered_kernel_alignment_matrix` with their chance levels, and standard errors of some.

    A standard error has two parts. That of the samples is the infinitesimal jackknife of
    :func:`lightning_sim.functional.estimate`, over buckets where these hold several samples, with the noise of the
    hashes in it. That of the folds, which all samples share and the jackknife does not see, follows from the columns.

    Cost beside the matrix: for every pair one product of two Grams, O(M^2), and O(M c) numbers of the folds' products
    with 64 columns of each; memory one block of a Gram.

    Args:
        rows: A sketches.
        columns: B sketches, all of the same samples, seed and sizes.
        estimator: as for the matrix.
        pairs: (row, column) of the values that get a standard error.

    Returns:
        `Alignments` of tensors of the sketches' dtype.

    Raises:
        ValueError: as the matrix does.
    """
    check_choice(estimator, "estimator", ("unbiased", "biased"))
    if not rows or not columns:
        raise ValueError("`rows` and `columns` must each hold at least one sketch")
    for sketch in (*rows, *columns):
        rows[0].require_comparable(sketch)
    distinct = list({id(sketch): sketch for sketch in (*rows, *columns)}.values())
    position = {id(sketch): index for index, sketch in enumerate(distinct)}
    row_index = [position[id(sketch)] for sketch in rows]
    column_index = [position[id(sketch)] for sketch in columns]
    of = {(i, j): (row_index[i], column_index[j]) for i, j in pairs}
    wanted = dict.fromkeys(pair for i, j in of.values() for pair in ((i, j), (i, i), (j, j)))
    terms = hsic_terms(distinct, row_index, column_index, unbiased=estimator == "unbiased", pairs=wanted)
    own, spread, noise = terms.own.tolist(), terms.spread.tolist(), [0.0] * len(distinct)
    for index, (sketch, diagonal) in enumerate(zip(distinct, terms.diagonals, strict=True)):
        problem = sketch.problem()
        if problem is None and estimator == "unbiased":
            if sketch.known_cka_problem is None:
                error = fold_noise(sketch, own[index], spread[index], diagonal)
                sketch.known_cka_problem = self_problem(sketch, own[index], error, diagonal, terms.dtype), error
            problem, noise[index] = sketch.known_cka_problem
        if problem is not None:
            own[index] = torch.nan
    norms = terms.own.new_tensor(own)
    slack = STANDARD_ERRORS * norms.new_tensor(noise) / norms
    for index, sketch in enumerate(distinct):
        if sketch.is_folded:
            # What both folds have in common, such as the length of a direction that all samples share, does not add up
            # to noise of the Gram; next to 1 its effect is of the second order.
            slack[index] += STANDARD_ERRORS**2 / sketch.num_projections
    values = terms.cross / (norms[row_index][:, None] * norms[column_index][None, :]).sqrt()
    most = 1 + _ROUNDING + slack[row_index][:, None] + slack[column_index][None, :]
    values = torch.where(values.abs() <= most, values.clamp(-1, 1), torch.nan)
    errors, influences, shares = torch.full_like(values, torch.nan), {}, {}
    moved = [sketch.on(terms.own.device) for sketch in distinct] if of else distinct
    for (i, j), (x, y) in of.items():
        if bool(values[i, j].isnan()):
            continue
        influences[i, j] = influences_of(terms, x, y)
        shares[i, j] = terms.row_sums[x, y] / terms.row_sums[x, y].sum()
        folds = fold_error(moved, terms, x, y, float(values[i, j]))
        errors[i, j] = torch.sqrt(standard_error(influences[i, j]).square() + folds**2)
    chance = chance_deviations(terms, rows[0], row_index, column_index)
    units = torch.arange(rows[0].num_buckets, device="cpu") if terms.buckets is None else terms.buckets
    dtype = rows[0].dtype
    return Alignments(values.to(dtype), errors.to(dtype), chance.to(dtype), influences, shares, units)


def normalized_bures_similarity(a: CenteredSums, b: CenteredSums) -> Tensor:
    r"""NBS of two sketches, :math:`\|X'Y\|_* / (\|X\|_F \|Y\|_F)` of the sketched, centred data.

    Where nothing was folded this is the exact value, from the singular values of the c1 x c2 cross-product in float64.
    Folding lowers it by an amount close to proportional to 1 / columns; with two half folds, the value of both
    together minus the mean deficit of each alone removes that term: ``2 NBS([X_1 X_2]) - mean_h NBS(X_h)`` (one of them
    alone leaves up to twice the noise). These are computed in the precision of the sketch.

    Cost: O(M k^2 + k^3).

    Returns:
        Scalar of the sketch's dtype, in [0, 1]; NaN where `Sketch.problem` has something to say about a side.

    Raises:
        ValueError: when the sketches cannot be compared, or are as published.
    """
    a.require_comparable(b)
    if a.problem() is not None or b.problem() is not None:
        return torch.full((), torch.nan, dtype=a.dtype, device=a.device)
    b = b.on(a.device)
    buckets = occupied_by([a, b])
    weights = _EXTRAPOLATION if a.is_folded or b.is_folded else (1.0,)
    dtype = a.dtype if len(weights) > 1 else torch.float64
    with full_precision(a.device):
        cores = zip(*(_cores(sketch, buckets, dtype, len(weights)) for sketch in (a, b)), strict=True)
        values = [
            weight * nuclear_norm(x.T @ y).double() / (norm_x * norm_y)
            for weight, ((x, norm_x), (y, norm_y)) in zip(weights, cores, strict=True)
        ]
    return torch.stack(values).sum().clamp(0, 1).to(a.dtype)


def _cores(
    sketch: CenteredSums, buckets: Tensor | None, dtype: torch.dtype, count: int
) -> list[tuple[Tensor, Tensor]]:
    """Data (M, c <= M) whose Grams are those of the sketch, and their norms; kept where they cost a decomposition."""
    if sketch.kept_cores is not None:
        (before, *how), kept = sketch.kept_cores
        same = before is None and buckets is None
        if before is not None and buckets is not None:
            same = torch.equal(before, buckets)
        if same and how == [dtype, count]:
            return kept
    cores, decomposed = [], sketch.keeps_factors
    for data in _levels(sketch, buckets, dtype):
        norm = torch.linalg.vector_norm(torch.linalg.vector_norm(data, dim=1).double())
        # The cross-product has at most as many singular values as there are rows; a triangle gives them as well.
        wide = data.shape[1] > len(data)
        cores.append((torch.linalg.qr(data.T, mode="r").R.T if wide else data, norm))
        decomposed |= wide
    cores *= count // len(cores)  # without folds they are all the same
    if sketch.keep_cores and decomposed:
        sketch.kept_cores = (buckets, dtype, count), cores
    return cores


def _levels(sketch: CenteredSums, buckets: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """The data of both folds side by side, and of each alone; without folds the data."""
    if sketch.keeps_factors:
        data = positive_factor(sketch.kernel()).to(dtype)[None]
    else:
        data = sketch.centered()[0].to(dtype) / sketch.scale
    data = data if buckets is None else data[:, buckets]
    return [torch.cat(list(data), dim=1), *data] if len(data) > 1 else [data[0]]
