"""HSIC of sketches with each other and with themselves, and what of the latter is nothing but rounding or noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sim._precision import full_precision
from lightning_sim.sketch.centered_sums import CenteredSums
from lightning_sim.sketch.grams import ROWS_PER_BLOCK, Gram, gram_dtype

__all__ = ["STANDARD_ERRORS", "HsicTerms", "fold_noise", "hsic_terms", "occupied_by", "projected_grams", "self_problem"]

STANDARD_ERRORS = 4  # of its noise: a self-term below so many is taken for none


@dataclass(frozen=True)
class HsicTerms:
    """In float64, of A rows, B columns and D sketches.

    Attributes:
        cross: (A, B), HSIC of rows with columns, up to the factor that all have in common.
        own: (D,), of every sketch with itself.
        spread: (D,), standard error of `own` by the difference of the folds, 0 where nothing was folded or the error is
            known before.
        diagonals: (D, M), of the Grams.
        dtype: in which the Grams were computed.
        row_sums: pair of sketches -> (M,), the part of every bucket in their HSIC; for the pairs that were asked for.
        norms: (D, 2), squared norms of the Grams by the one and the other fold; of folds known with `pairs` only.
        parts: (folds, D, M), what the projection subtracted with v.
        buckets: of which they are, all if None.
    """

    cross: Tensor
    own: Tensor
    spread: Tensor
    diagonals: Tensor
    dtype: torch.dtype
    row_sums: dict[tuple[int, int], Tensor]
    norms: Tensor
    parts: Tensor
    buckets: Tensor | None


def hsic_terms(
    sketches: Sequence[CenteredSums],
    row_index: list[int],
    column_index: list[int],
    *,
    unbiased: bool,
    pairs: Iterable[tuple[int, int]] = (),
) -> HsicTerms:
    """The terms of all rows with all columns, from Grams that are computed block by block; row sums of the `pairs`."""
    device = sketches[0].device
    sketches = [sketch.on(device) for sketch in sketches]
    buckets = occupied_by(sketches)
    ones = sketches[0].ones() if buckets is None else sketches[0].ones()[buckets]
    ones = ones.to(gram_dtype(len(ones), ones.dtype))
    count = len(sketches)
    cross = torch.zeros(len(row_index), len(column_index), dtype=torch.float64, device=device)
    own, spread = (torch.zeros(count, dtype=torch.float64, device=device) for _ in range(2))
    norms = torch.zeros(count, 2, dtype=torch.float64, device=device)
    row_sums = {pair: torch.zeros_like(ones) for pair in pairs}
    with full_precision(device):
        columns = max(sketch.sums()[0].shape[-1] for sketch in sketches)
        room = torch.empty(len(ones) * columns, dtype=ones.dtype, device=device)
        grams = [sketch.grams(room, buckets) for sketch in sketches]
        both = any(first is not second for first, second in grams)
        sides = [[pair[side] for pair in grams] for side in range(1 + both)]
        unknown = [i for i, sketch in enumerate(sketches) if sketch.is_folded and sketch.known_cka_problem is None]
        diagonals = [torch.stack([gram.diagonal() for gram in side]) for side in sides]
        projections = [_Projection(side, part, ones) for side, part in zip(sides, diagonals, strict=True)]
        # Used by all blocks: to get as much memory anew for each would take longer than to fill it.
        size = count * min(ROWS_PER_BLOCK, len(ones)) * len(ones)
        buffers = [torch.empty(size, dtype=ones.dtype, device=device) for _ in sides]
        products = torch.empty(size // count if row_sums else 0, dtype=ones.dtype, device=device)
        for start in range(0, len(ones), ROWS_PER_BLOCK):
            block = range(start, min(start + ROWS_PER_BLOCK, len(ones)))
            written = [
                _upper_blocks(side, block, projection if unbiased else None, len(ones), buffer)
                for side, projection, buffer in zip(sides, projections, buffers, strict=True)
            ]
            first, second = written[0], written[-1]
            cross += (_taken(first, row_index) @ _taken(second, column_index).T).double()
            if both:
                cross += (_taken(second, row_index) @ _taken(first, column_index).T).double()
            own += torch.stack([torch.dot(a, b) for a, b in zip(first, second, strict=True)]).double()
            for (i, j), total in row_sums.items():
                product = torch.mul(first[i], second[j], out=products[: first.shape[1]])
                if both:
                    product.addcmul_(second[i], first[j]).div_(2)
                _add_row_sums(total, product.view(len(block), -1), block)
            if both and row_sums:
                norms += torch.stack([torch.linalg.vector_norm(side, dim=1) for side in (first, second)], 1).square()
            for index in unknown if unbiased else ():
                # Of normal noise, of which the folds differ by that of both, e^4 is a twelfth of the fourth power.
                squares = (first[index] - second[index]).square_()
                spread[index] += torch.dot(squares, squares).double() / 12
    if both:
        cross /= 2
    else:
        norms += own[:, None]
    diagonal, parts = (diagonals[0] + diagonals[-1]) / 2, torch.stack([side.parts for side in projections])
    row_sums = {pair: total.double() for pair, total in row_sums.items()}
    return HsicTerms(cross, own, spread.sqrt(), diagonal, ones.dtype, row_sums, norms, parts, buckets)


def projected_grams(sketch: CenteredSums) -> tuple[list[Tensor], Tensor]:
    """The whole Grams (M, M) by the one and the other fold, as they enter HSIC_1; and the buckets' signs (M,)."""
    buckets = occupied_by([sketch])
    ones = sketch.ones() if buckets is None else sketch.ones()[buckets]
    ones = ones.to(gram_dtype(len(ones), ones.dtype))
    found = []
    with full_precision(sketch.device):
        room = torch.empty(len(ones) * sketch.sums()[0].shape[-1], dtype=ones.dtype, device=ones.device)
        for gram in dict.fromkeys(sketch.grams(room, buckets)):
            whole = torch.empty(1, len(ones), len(ones), dtype=ones.dtype, device=ones.device)
            for start in range(0, len(ones), ROWS_PER_BLOCK):
                rows = range(start, min(start + ROWS_PER_BLOCK, len(ones)))
                here, beyond = slice(rows.start, rows.stop), slice(rows.start, None)
                gram.write_block(here, beyond, block := torch.empty_like(whole[0, here, beyond]))
                whole[0, here, beyond], whole[0, beyond, here] = block, block.T
            _Projection([gram], gram.diagonal()[None], ones).subtract(whole, range(len(ones)))
            found.append(whole[0])
    return found, torch.where(ones < 0, -1, 1)


def _add_row_sums(total: Tensor, product: Tensor, rows: range) -> None:
    """Of a symmetric matrix (M, M), from rows of it from the diagonal on, what is beyond the diagonal block twice."""
    # Sums of whole rows and columns: those of the part beyond the block would take longer.
    total[rows.start : rows.stop].add_(product.sum(1), alpha=0.5).add_(product[:, : len(rows)].sum(1), alpha=0.5)
    total[rows.stop :].add_(product.sum(0)[len(rows) :], alpha=0.5)


class _Projection:
    r"""Takes out of Grams without diagonals what tells no pair of buckets from others.

    HSIC_1 of kernels with zero diagonals :math:`K_0, L_0` is, up to 1 / (n (n - 3)), the inner product of both after
    the orthogonal projection away from all :math:`b 1' + 1 b'` without diagonal (Szekely & Rizzo 2014). Over buckets,
    the vector of ones is v = S1. Subtracted before anything is multiplied, and not from sums of squares, it leaves
    errors next to the norm of the Gram, not to its square: a representation of which one sample differs, or all are
    equally far apart, has nothing left, and that is told from little. It is never negative, and no ratio of
    projections exceeds 1.

    The normal equations of b are diagonal but for one product, :math:`K_0 v = b (v'v - 2 v^2) + v (v'b)`.
    """

    def __init__(self, grams: Sequence[Gram], diagonals: Tensor, ones: Tensor) -> None:
        v = ones.double()
        sums = torch.stack([gram.sums(ones) for gram in grams]) - diagonals * v  # K0 v
        squares = v.square()
        total = squares.sum().clamp_min(1)
        weights = total - 2 * squares
        # Zero where a bucket outweighs all others, in sketches of few buckets: b is not unique there, and any will do.
        weights = torch.where(weights.abs() < 1e-8 * total, 1e-8 * total, weights)
        both = 1 + (squares / weights).sum()
        both = torch.where(both.abs() < 1e-8, 1e-8, both)
        inner = (sums * v / weights).sum(1, keepdim=True) / both
        self.ones, self.parts = ones, ((sums - inner * v) / weights).to(ones.dtype)  # v and b (D, M)

    def subtract(self, blocks: Tensor, rows: range) -> None:
        """From rows of the Grams (D, rows, M - start), from the diagonal on."""
        here, beyond = slice(rows.start, rows.stop), slice(rows.start, None)
        blocks.addcmul_(self.parts[:, here, None], self.ones[beyond], value=-1)
        blocks.addcmul_(self.ones[here, None], self.parts[:, None, beyond], value=-1)
        blocks.diagonal(dim1=1, dim2=2).zero_()


def self_problem(sketch: CenteredSums, own: float, noise: float, diagonal: Tensor, dtype: torch.dtype) -> str | None:
    """Why the self-term of a sketch is no more than rounding, or than its noise by the folds, in words, or None."""
    size = abs(own)  # folds' noise can make it negative
    if not size > _most_rounding(sketch, diagonal, dtype) ** 2 and not size > _rounding(sketch, diagonal, dtype) ** 2:
        return (
            "tells no samples from others, which leaves no unbiased CKA: all, or all but one, are alike or equally far "
            "apart, up to rounding"
        )
    if not own > STANDARD_ERRORS * noise:
        return (
            f"varies too evenly for its folds into {sketch.num_projections} columns, in whose noise its similarities "
            "are lost; use more `num_projections`"
        )
    return None


def fold_noise(sketch: CenteredSums, own: float, spread: float, diagonal: Tensor) -> float:
    r"""Standard error of the self-term by the folds, 0 where nothing was folded.

    With :math:`N_1, N_2` the noise of two folds, of mean zero, what remains of
    :math:`\langle K + N_1, K + N_2 \rangle` where K is zero has the variance :math:`2 \sum_{a \ne b} e_{ab}^4`, with
    :math:`e_{ab}^2` that of an entry. It is estimated twice, and the larger is taken. The folds' difference knows of
    data with many zeros, whose noise gathers in a few entries. And :math:`K_{aa} K_{bb} / c`, of random signs over c
    columns, knows where the difference of one or two entries is small by chance.
    """
    if not sketch.is_folded:
        return 0.0
    columns = sketch.num_projections // 2
    if not own > STANDARD_ERRORS * _pairs(diagonal) / columns:
        diagonal = _squared_distances(sketch)
    return max(spread, _pairs(diagonal) / columns)


def _pairs(distances: Tensor) -> float:
    """The root of 2 sum d_a^2 d_b^2 over a != b."""
    squares = distances.square()
    return float((2 * (squares.sum().square() - squares.square().sum())).clamp_min(0).sqrt())


def _squared_distances(sketch: CenteredSums) -> Tensor:
    """Of every bucket to the middle of the bulk, (M,): to the mean, an outlier would make all others outliers."""
    data, ones = sketch.centered(torch.float64)
    data, ones = data / sketch.scale, ones.double()
    distances = data.square().sum(2)
    for _ in range(4):
        weights = 1 / (distances + distances.mean() * torch.finfo(torch.float64).eps)
        total = (weights * ones.square()).sum(1, keepdim=True)
        middle = ((weights * ones)[..., None] * data).sum(1) / torch.where(total > 0, total, 1.0)
        distances = (data - ones[:, None] * middle[:, None]).square().sum(2)
    return distances.mean(0)


def _most_rounding(sketch: CenteredSums, diagonal: Tensor, dtype: torch.dtype) -> float:
    """An upper bound of `_rounding` that takes no pass over the sketch."""
    entries, subtracted = _errors(sketch, dtype)
    return (2 * entries * sketch.raw_share + subtracted) * float(diagonal.sum())


def _rounding(sketch: CenteredSums, diagonal: Tensor, dtype: torch.dtype) -> float:
    r"""What rounding may leave of a projected Gram that should be zero, as its Frobenius norm.

    Entries of the sketched data Z, centred to X, carry errors relative to themselves of some eps, the precision of the
    state: they were rounded when the network computed them, when they were summed, and when products of them are.
    Entries of the Gram off the diagonal then have errors of the variance

    .. math:: eps^2 \sum_k (Z_{ak}^2 X_{bk}^2 + X_{ak}^2 Z_{bk}^2)

    Errors that samples share, such as those of the means, are projected away. And what the projection takes out, of the
    norm of the diagonal over the root of n, was computed in the precision of the Gram.
    """
    entries, subtracted = _errors(sketch, dtype)
    subtracted *= float(torch.linalg.vector_norm(diagonal)) / math.sqrt(sketch.count)
    if sketch.keeps_factors:
        product = sketch.product()
        norms, before = product.diagonal(), product.uncentered_diagonal / product.scale
        products = before.sum() * norms.sum() - (before * norms).sum()
        return 2 * entries * float(products.clamp_min(0).sqrt()) + subtracted
    raw, squares = ((z.double() / sketch.scale).square() for z in (sketch.uncentered()[0], sketch.centered()[0]))
    if sketch.is_folded:  # columns were folded into each of them, and may have cancelled; their errors do not
        raw = raw.mean(2, keepdim=True)
    products = (raw.sum(1) * squares.sum(1)).sum() - (raw * squares).sum()
    return entries * float((2 * products.clamp_min(0) / len(squares)).sqrt()) + subtracted


def _errors(sketch: CenteredSums, dtype: torch.dtype) -> tuple[float, float]:
    """Relative errors of entries, several standard errors of them, and of what is subtracted in the projection."""
    # The errors of sums grow as a random walk does, with the columns and samples that are added up.
    columns = sketch.width * (sketch.gradient_width or 1)
    summed = max(1.0, columns / sketch.num_projections) * max(1.0, sketch.count / sketch.num_buckets)
    length = min(columns, sketch.num_projections)
    return 3 * math.sqrt(summed) * torch.finfo(sketch.dtype).eps, 8 * (2 + math.sqrt(length)) * torch.finfo(dtype).eps


def _upper_blocks(
    grams: Sequence[Gram], rows: range, projection: _Projection | None, size: int, buffer: Tensor
) -> Tensor:
    """Rows of the Grams from the diagonal on, (D, entries), so scaled that products of them count both triangles."""
    height, width = len(rows), size - rows.start
    blocks = buffer[: len(grams) * height * width].view(len(grams), height, width)
    for gram, block in zip(grams, blocks, strict=True):
        gram.write_block(slice(rows.start, rows.stop), slice(rows.start, None), block)
    if projection is not None:
        projection.subtract(blocks, rows)
    blocks[:, :, height:] *= 2**0.5
    return blocks.flatten(1)


def _taken(values: Tensor, index: list[int]) -> Tensor:
    """These rows of the values, without a copy where they lie together."""
    together = index == list(range(index[0], index[0] + len(index)))
    return values[index[0] : index[0] + len(index)] if together else values[index]


def occupied_by(sketches: Sequence[CenteredSums]) -> Tensor | None:
    """The buckets that hold samples; in a small probe most hold none."""
    if sketches[0].count >= sketches[0].num_buckets:
        return None
    return torch.stack([sketch.occupied() for sketch in sketches]).any(0).nonzero()[:, 0]
