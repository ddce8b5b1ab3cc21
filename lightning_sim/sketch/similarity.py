"""Similarities of finished sketches: one pair, or all layers of one network with all layers of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_sim.sketch.grams import ROWS_PER_BLOCK, Gram, gram_dtype
from lightning_sim.sketch.kernels import positive_factor
from lightning_sim.sketch.sketch import Sketch

__all__ = ["centered_kernel_alignment_matrix", "normalized_bures_similarity"]


def centered_kernel_alignment_matrix(
    rows: Sequence[Sketch], columns: Sequence[Sketch], *, estimator: str = "unbiased"
) -> Tensor:
    r"""Linear CKA of every sketch in `rows` with every sketch in `columns`.

    With :math:`K_0, L_0` the Grams of the sketched, centred data without their diagonals, ``v = S1`` and n samples,

    .. math:: HSIC = \sum K_0 \circ L_0 + \frac{(v'K_0v)(v'L_0v)}{(n-1)(n-2)} - \frac{2}{n-2} (K_0v)'(L_0v)

    up to the common factor 1 / (n (n - 3)). Dropping the diagonal removes the bias of HSIC and of the collisions at
    once: the entries a != b have the expectation of the sum over pairs of samples in different buckets. Products
    always take different folds of the two sides, so that the folds' own noise has no expectation either.

    Cost: O((A + B) M^2 k + A B M^2) for A rows and B columns; memory O((A + B) M) times a block of rows.

    Args:
        rows: A sketches.
        columns: B sketches, all of the same samples, seed and sizes.
        estimator: "unbiased" (about [-1 / n, 1]) or "biased" ([0, 1]; keeps the diagonals, exact for N <= M).

    Returns:
        (A, B), of the sketches' dtype, NaN where `Sketch.problem` has something to say about a side, or where noise
        leaves no positive variance.

    Raises:
        ValueError: when the sketches cannot be compared, or the estimator is unknown.
    """
    if estimator not in ("unbiased", "biased"):
        raise ValueError(f'`estimator` must be "unbiased" or "biased", got {estimator!r}')
    for sketch in (*rows, *columns):
        rows[0].require_comparable(sketch)
    distinct = list({id(sketch): sketch for sketch in (*rows, *columns)}.values())
    position = {id(sketch): index for index, sketch in enumerate(distinct)}
    row_index = [position[id(sketch)] for sketch in rows]
    column_index = [position[id(sketch)] for sketch in columns]
    usable = torch.tensor([sketch.problem() is None for sketch in distinct], device=rows[0].device)
    cross, norms = _hsic_terms(distinct, row_index, column_index, unbiased=estimator == "unbiased")
    norms = torch.where(usable, norms.clamp_min(0), 0)
    denominator = (norms[row_index][:, None] * norms[column_index][None, :]).sqrt()
    values = torch.where(denominator > 0, cross / denominator, torch.nan)
    return values.to(rows[0].dtype)


def normalized_bures_similarity(a: Sketch, b: Sketch) -> Tensor:
    r"""NBS of two sketches, :math:`\|X'Y\|_* / (\|X\|_F \|Y\|_F)` of the sketched, centred data.

    The nuclear norm is the sum of the singular values of the c1 x c2 cross-product, in float64. Folding lowers it by
    an amount close to proportional to 1 / columns; with two half folds, the value of both together minus the mean
    deficit of each alone removes that term: ``2 NBS([X_1 X_2]) - mean_h NBS(X_h)``. Where nothing was folded this is
    the exact value.

    Cost: O(M k^2 + k^3).

    Returns:
        Scalar of the sketch's dtype, in [0, 1]; NaN where `Sketch.problem` has something to say about a side.

    Raises:
        ValueError: when the sketches cannot be compared.
    """
    a.require_comparable(b)
    if a.problem() is not None or b.problem() is not None:
        return torch.full((), torch.nan, dtype=a.dtype, device=a.device)
    b = b.on(a.device)
    buckets = _occupied([a, b])
    x, y = _data(a), _data(b)
    if buckets is not None:
        x, y = x[:, buckets], y[:, buckets]
    num_folds = max(len(x), len(y))
    value = _bures_ratio(torch.cat(list(x), dim=1), torch.cat(list(y), dim=1))
    if num_folds > 1:
        halves = [_bures_ratio(x[index % len(x)], y[index % len(y)]) for index in range(num_folds)]
        value = (2 * value - torch.stack(halves).mean()).clamp(0, 1)
    return value.to(a.dtype)


def _data(sketch: Sketch) -> Tensor:
    """(folds, M, c) in float64 whose Grams are those of the sketch."""
    if sketch.keeps_factors:
        return positive_factor(sketch.kernel())[None]
    return sketch.centered()[0].double()


def _bures_ratio(x: Tensor, y: Tensor) -> Tensor:
    """NBS of centred data (M, c1) and (M, c2)."""
    # X'Y has at most as many singular values as there are rows; triangular factors give them from a smaller core.
    x, y = (torch.linalg.qr(z.T, mode="r").R.T if z.shape[1] > z.shape[0] else z for z in (x, y))
    ratio: Tensor = torch.linalg.svdvals(x.T @ y).sum() / (torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y))
    return ratio


def _hsic_terms(
    sketches: Sequence[Sketch], row_index: list[int], column_index: list[int], *, unbiased: bool
) -> tuple[Tensor, Tensor]:
    """HSIC of rows with columns (A, B), and of every sketch with itself (D,), in float64."""
    device, n = sketches[0].device, sketches[0].count
    sketches = [sketch.on(device) for sketch in sketches]
    buckets = _occupied(sketches)
    ones = sketches[0].ones() if buckets is None else sketches[0].ones()[buckets]
    ones = ones.to(gram_dtype(len(ones), ones.dtype))
    grams = [sketch.grams(buckets) for sketch in sketches]
    both = any(first is not second for first, second in grams)
    cross = torch.zeros(len(row_index), len(column_index), dtype=torch.float64, device=device)
    norms = torch.zeros(len(sketches), dtype=torch.float64, device=device)
    sums_first = torch.zeros(len(sketches), len(ones), dtype=torch.float64, device=device)  # K0 v
    sums_second = torch.zeros_like(sums_first)
    # Used by all blocks: to get as much memory anew for each would take longer than to fill it.
    buffers = [
        torch.empty(len(sketches) * min(ROWS_PER_BLOCK, len(ones)) * len(ones), dtype=ones.dtype, device=device)
        for _ in range(1 + both)
    ]
    with _full_precision(device):
        for start in range(0, len(ones), ROWS_PER_BLOCK):
            block = range(start, min(start + ROWS_PER_BLOCK, len(ones)))
            first = _upper_blocks([pair[0] for pair in grams], block, unbiased, ones, sums_first, buffers[0])
            second = first
            if both:
                second = _upper_blocks([pair[1] for pair in grams], block, unbiased, ones, sums_second, buffers[1])
            cross += (_taken(first, row_index) @ _taken(second, column_index).T).double()
            if both:
                cross += (_taken(second, row_index) @ _taken(first, column_index).T).double()
            norms += torch.stack([torch.dot(a, b) for a, b in zip(first, second, strict=True)]).double()
    if both:
        cross /= 2
    else:
        sums_second = sums_first
    if unbiased:
        cross += (
            _mean_corrections(sums_first[row_index], sums_second[column_index], ones, n)
            + _mean_corrections(sums_second[row_index], sums_first[column_index], ones, n)
        ) / 2
        norms += _mean_corrections(sums_first, sums_second, ones, n).diagonal()
    return cross, norms


def _upper_blocks(
    grams: Sequence[Gram], rows: range, drop_diagonal: bool, ones: Tensor, sums: Tensor, buffer: Tensor
) -> Tensor:
    """Rows of the Grams from the diagonal on, (D, entries), so scaled that products of them count both triangles.

    Adds what they contribute to the products K0 v of the whole Grams, (D, M).
    """
    size, columns = len(rows), len(ones) - rows.start
    blocks = buffer[: len(grams) * size * columns].view(len(grams), size, columns)
    for gram, block in zip(grams, blocks, strict=True):
        gram.write_block(slice(rows.start, rows.stop), slice(rows.start, None), block)
    if drop_diagonal:
        blocks.diagonal(dim1=1, dim2=2).zero_()
    sums[:, rows.start : rows.stop] += blocks @ ones[rows.start :]
    beyond = blocks[:, :, size:]
    sums[:, rows.stop :] += ones[rows.start : rows.stop] @ beyond
    beyond *= 2**0.5
    return blocks.flatten(1)


def _taken(values: Tensor, index: list[int]) -> Tensor:
    """These rows of the values, without a copy where they lie together."""
    together = index == list(range(index[0], index[0] + len(index)))
    return values[index[0] : index[0] + len(index)] if together else values[index]


def _occupied(sketches: Sequence[Sketch]) -> Tensor | None:
    """The buckets that hold samples; in a small probe most hold none."""
    if sketches[0].count >= sketches[0].num_buckets:
        return None
    return torch.stack([sketch.occupied() for sketch in sketches]).any(0).nonzero()[:, 0]


def _mean_corrections(left: Tensor, right: Tensor, ones: Tensor, n: int) -> Tensor:
    ones = ones.double()
    return torch.outer(left @ ones, right @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * left @ right.T


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    previous = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 keeps 10 bits, too few for a difference of Grams
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(previous)
