"""The linear maps that carry one representation into another: least squares, rotations, low rank and sparse ones."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer, check_number
from lightning_sim._centering import center_columns, for_sums, undefined, widen
from lightning_sim._checks import check_choice, check_flag, check_pair

__all__ = ["LinearMap", "MapOptions", "StitchingKind", "map_of_gram", "stitching_gram", "stitching_map"]

StitchingKind = Literal["least_squares", "orthogonal", "reduced_rank", "lasso"]

_MOST_STEPS = 10_000


class LinearMap(NamedTuple):
    """``x @ weight + bias``, and how much of the other representation it explains.

    Args:
        weight: (p1, p2).
        bias: (p2,), zero where the map has none.
        r2: share of the variance of `y` that it explains, on the samples it was fitted on.
    """

    weight: Tensor
    bias: Tensor
    r2: Tensor


class MapOptions(NamedTuple):
    """What of the maps of :func:`stitching_map` is asked for; `checked` before it is used."""

    kind: StitchingKind = "least_squares"
    rank: int | None = None
    alpha: float | None = None
    ridge: float = 0.0
    bias: bool = True

    def checked(self) -> MapOptions:
        """These, where they fit together.

        Raises:
            ValueError: for an unknown kind, and for options that are missing or of another kind.
        """
        check_choice(self.kind, "kind", get_args(StitchingKind))
        for name, value, its_kind in (("rank", self.rank, "reduced_rank"), ("alpha", self.alpha, "lasso")):
            if (value is not None) != (self.kind == its_kind):
                expected = f"of kind={its_kind!r}, which needs it"
                raise ValueError(f"`{name}` is {expected}, got {name}={value!r} with kind={self.kind!r}")
        if self.rank is not None:
            check_integer(self.rank, "rank", least=1)
        for name, number in (("alpha", self.alpha), ("ridge", self.ridge)):
            if number is not None and check_number(number, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {number}")
        if self.ridge and self.kind not in ("least_squares", "reduced_rank"):
            raise ValueError(
                f"`ridge` is of least squares and reduced rank, got ridge={self.ridge} with kind={self.kind!r}"
            )
        check_flag(self.bias, "bias")
        return self


def stitching_map(
    x: Tensor,
    y: Tensor,
    *,
    kind: StitchingKind = "least_squares",
    rank: int | None = None,
    alpha: float | None = None,
    ridge: float = 0.0,
    bias: bool = True,
) -> LinearMap:
    r"""The linear map of a kind that brings one representation closest to another (direct matching).

    $min_{M, b} \|x M + b - y\|_F$, by `kind`:

    - ``"least_squares"``: over all M, $M = (C_{xx} + \rho I)^+ C_{xy}$, the smallest where several are as close;
    - ``"orthogonal"``: $M = U V^T$ with $C_{xy} = U S V^T$, the rotation (or projection, or embedding, of different
      widths) that Procrustes finds;
    - ``"reduced_rank"``: over M of rank k, the least-squares map projected on the k directions of y that it explains
      most of, $M V_k V_k^T$ with $x M = U S V^T$; cutting off the singular values of M itself is another map, never
      better;
    - ``"lasso"``: of least $\|x M + b - y\|_F^2 / (2 n) + \alpha \sum |M_{ij}|$, as scikit-learn has it. The paper does
      not square the norm, which gives the same maps for other alpha.

    Shapes: `x` (n, p1), `y` (n, p2) -> weight (p1, p2), bias (p2,), R2 (). R2 is $1 - \|x M + b - y\|^2 / \|y -
    \bar y\|^2$ on these samples, at most 1, and below 0 for a map that is worse than the mean of y. With fewer than
    about 10 p1 samples it says little of others: fit on one half and score on the other.

    Convention: the map acts on rows from the right. Columns are centred and the bias is that of the means, for all
    kinds; ``bias=False`` centres nothing. Positions of a convolution and tokens are rows like samples.

    Cost: O(n p^2 + p^3), p = p1 + p2, in float64 where the device has it. For more samples than fit into memory take
    `lightning_sim.metrics.StitchingMap`.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        kind: of map.
        rank: k of ``"reduced_rank"``.
        alpha: of ``"lasso"``.
        ridge: for ``"least_squares"`` and ``"reduced_rank"``, $\rho$ in units of the mean squared singular value of x:
            as if x carried noise with that share of its variance. Helps where samples are few.
        bias: whether the map has one.

    Returns:
        The map, in the wider of float32 and the dtypes of `x` and `y`, not differentiable. R2 is NaN with a warning
        where y has no variance.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 2; for an
            unknown kind, and for options that are missing or of another kind.

    References:
        Csiszarik et al. 2021, "Similarity and matching of neural network representations", sections 4.2 and 6;
        Schoenemann 1966, "A generalized solution of the orthogonal Procrustes problem".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import stitching_map
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> weight, bias, r2 = stitching_map(x, x @ torch.tensor([[2.0], [3.0]]) + 5)
        >>> print(weight.T.numpy().round(4), bias.numpy().round(4), f"{r2:.4f}")
        [[2. 3.]] [5.] 1.0000
    """
    x, y = check_pair(x, y)
    options = MapOptions(kind, rank, alpha, ridge, bias).checked()
    centred, given = [center_columns(side.detach()) for side in (x, y)], [widen(side.detach()) for side in (x, y)]
    a, b = centred if bias else given
    # Rounding of the entries as they were given, which centring leaves.
    entries = 16 * torch.finfo(x.dtype).eps * (1 + (x.shape[1] / len(x)) ** 0.5)
    least = entries * torch.linalg.vector_norm(given[0], dim=0).amax()
    variance = centred[1].square().sum()
    # A triangle with the same products takes the place of the samples.
    root = torch.linalg.qr(torch.cat([a, b], 1)).R if len(a) > a.shape[1] + b.shape[1] else torch.cat([a, b], 1)
    sides = root[:, : x.shape[1]], root[:, x.shape[1] :]
    weight, residual = _solved(*sides, len(x), least, options)
    means = [side.mean(0) for side in given]
    return _as_map(weight, means if bias else None, residual, variance, x.dtype)


def stitching_gram(x: Tensor, y: Tensor) -> Tensor:
    """``[1 x y]' [1 x y]`` (1 + p1 + p2, 1 + p1 + p2) in float64: all that the maps need, and a sum over samples.

    Products are taken around the means of these samples, in the precision of the inputs. What is lost of the sum is eps
    of float64 times the squared ratio of mean and standard deviation, 1e-10 for a ratio of 1000.
    """
    z = torch.cat([x.T, y.T]).T  # sums over samples run along memory
    with torch.autocast(z.device.type, enabled=False):
        around = z.sum(0) / max(len(z), 1)
        centred = z - around
        left, products = (for_sums(part) for part in (centred.sum(0), centred.T @ centred))
        ones = torch.cat([products.new_ones(1), for_sums(around)])
        left = torch.cat([left.new_zeros(1), left])
        gram = len(z) * torch.outer(ones, ones) + torch.outer(ones, left) + torch.outer(left, ones)
        gram[1:, 1:] += products
    return gram


def map_of_gram(gram: Tensor, width: int, options: MapOptions) -> LinearMap:
    """The map of :func:`stitching_map` from sums of :func:`stitching_gram`, in float64; `width` is p1.

    Directions of x whose standard deviation is below about 1e-7 of the strongest one's count as absent.
    """
    options.checked()
    n, sums, products = gram[0, 0], gram[0, 1:], gram[1:, 1:]
    means = sums / n.clamp_min(1)
    covariance = products - n * torch.outer(means, means)
    # Rounding that is left of constants is no variance.
    eps = torch.finfo(gram.dtype).eps
    varies = covariance.diagonal() > 8 * eps * products.diagonal()
    covariance = covariance * torch.outer(varies, varies)
    root = _root(covariance if options.bias else products)
    sides = root[:, :width], root[:, width:]
    least = (len(sums) * eps * products.diagonal()[:width].amax()).sqrt()
    weight, residual = _solved(*sides, n.item(), least, options)
    variance = covariance.diagonal()[width:].sum()
    return _as_map(weight, [means[:width], means[width:]] if options.bias else None, residual, variance, gram.dtype)


def _root(products: Tensor) -> Tensor:
    """A matrix R with R' R = products, as accurate in small columns as in large ones."""
    scale = products.diagonal().clamp_min(0).sqrt()
    unit = torch.where(scale > 0, scale, 1).reciprocal() * (scale > 0)
    eigenvalues, directions = torch.linalg.eigh(unit[:, None] * products * unit)
    root: Tensor = eigenvalues.clamp_min(0).sqrt()[:, None] * directions.T * scale
    return root


def _solved(a: Tensor, b: Tensor, n: float, least: Tensor, options: MapOptions) -> tuple[Tensor, Tensor]:
    """The weight (p1, p2), and its squared residual, of the samples or of what has their products.

    Directions of a with a singular value of at most `least` are rounding.
    """
    if options.kind == "orthogonal":
        u, _, vh = torch.linalg.svd(a.T @ b, full_matrices=False)
        weight = u @ vh
    elif options.kind == "lasso":
        weight = _lasso(a.T @ a / n, a.T @ b / n, float(options.alpha or 0))
    else:
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
        there = s > least
        shrunk = there * s / (torch.where(there, s.square(), 1) + options.ridge * s.square().sum() / a.shape[1])
        weight = vh.T @ (shrunk[:, None] * (u.T @ b))
        if options.rank is not None:
            top = torch.linalg.svd(a @ weight, full_matrices=False).Vh[: options.rank]
            weight = weight @ top.T @ top
    return weight, (a @ weight - b).square().sum()


def _lasso(xx: Tensor, xy: Tensor, alpha: float) -> Tensor:
    """By accelerated proximal gradient steps that start afresh where they overshoot, until none moves the map."""
    largest = torch.linalg.matrix_norm(xx, 2)
    step = torch.where(largest > 0, 1 / largest, 0)
    weight = torch.zeros_like(xy)
    ahead, pace = weight, 1.0
    for _ in range(_MOST_STEPS):
        moved = ahead - step * (xx @ ahead - xy)
        following = moved.sign() * (moved.abs() - step * alpha).clamp_min(0)
        change = following - weight
        if ((ahead - following) * change).sum() > 0:
            pace = 1.0
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        ahead, weight, pace = following + (pace - 1) / faster * change, following, faster
        if change.abs().amax() <= 1e-12 * following.abs().amax():
            break
    return weight


def _as_map(
    weight: Tensor, means: list[Tensor] | None, residual: Tensor, variance: Tensor, dtype: torch.dtype
) -> LinearMap:
    bias = torch.zeros_like(weight[0]) if means is None else means[1] - means[0] @ weight
    if variance > 0:
        r2 = 1 - residual / variance
    else:
        r2 = undefined("`y` has no variance over the samples", residual, stacklevel=4)
    return LinearMap(weight.to(dtype), bias.to(dtype), r2.to(dtype))
