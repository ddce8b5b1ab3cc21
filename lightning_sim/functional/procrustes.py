"""Distance between two representations after the best rotation of one onto the other."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, unit_scale, widen
from lightning_sim._checks import check_flag, check_pair, warn_if_constant

__all__ = ["angular_procrustes_distance", "procrustes_distance"]


def procrustes_distance(
    x: Tensor, y: Tensor, *, center: bool = True, normalize: bool = True, squared: bool = False
) -> Tensor:
    r"""Distance left after the orthogonal map that brings one representation closest to the other.

    $d = min_{Q^T Q = I} \|x Q - y\|_F$, so $d^2 = \|x\|_F^2 + \|y\|_F^2 - 2 \|x^T y\|_*$, with the narrower
    side padded by zero columns and reflections allowed.

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [0, sqrt 2], no units, if normalised, where d^2 is
    2 (1 - NBS); else [0, inf) in the units of the features, growing with n and p. A metric: symmetric, with a
    triangle inequality (not if `squared`). Invariant to orthogonal maps and to joint permutations of the
    samples; to translations if centred; to isotropic scaling if normalised. Biased like NBS: unrelated
    representations are nearer than sqrt 2 unless n is large beside p.

    Convention: the distance, not its square, of data scaled to unit Frobenius norm; other code returns the
    square or half of it. The disparity of `scipy.spatial.procrustes` lets the scale be fitted too and is
    1 - (1 - d^2 / 2)^2.

    Cost: O(n (p1 p2 + p1 min(n, p1) + p2 min(n, p2))) plus the SVD of a core of min(n, p1) x min(n, p2), in
    float64 where the device has it.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        center: subtract the column means first.
        normalize: divide each side by its Frobenius norm (after centring).
        squared: return $d^2$.

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`; once differentiable (the optimal map
        counts as constant, which is exact for the first derivative only). NaN with a warning that names a
        side without variance; without centring, a side that is zero.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 2.

    References:
        Schoenemann 1966, "A generalized solution of the orthogonal Procrustes problem"; Ding, Denain and
        Steinhardt 2021, "Grounding representation similarity with statistical testing" (normalised and
        squared); Williams et al. 2021, "Generalized shape metrics on neural representations" (not
        normalised).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import procrustes_distance
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]])
        >>> turned_and_moved = x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) + 5
        >>> print(f"{procrustes_distance(x, turned_and_moved):.4f}")
        0.0000
        >>> print(f"{procrustes_distance(x, 2 * turned_and_moved, normalize=False):.4f}")  # the size of x
        3.4641
    """
    for value, name in ((center, "center"), (normalize, "normalize"), (squared, "squared")):
        check_flag(value, name)
    x, y = check_pair(x, y)
    a, b = (center_columns(z) if center else widen(z) for z in (x, y))
    if warn_if_constant(a, b):
        return x.new_tensor(torch.nan)
    distance = _aligned_distance(a, b, normalize=normalize)
    return (distance.square() if squared else distance).to(x.dtype)


def angular_procrustes_distance(x: Tensor, y: Tensor, *, center: bool = True) -> Tensor:
    r"""Angle between two representations after the best rotation of one onto the other.

    $\theta = arccos(\|x^T y\|_* / (\|x\|_F \|y\|_F))$, the smallest angle between $x Q$ and $y$ as vectors
    over orthogonal Q, with the narrower side padded by zero columns and reflections allowed.

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [0, pi / 2] radians; its cosine is NBS if centred. A
    metric: symmetric, with a triangle inequality. Invariant to orthogonal maps, isotropic scaling and joint
    permutations of the samples; to translations if centred. Biased like NBS: unrelated representations are
    nearer than pi / 2 unless n is large beside p.

    Convention: radians, where other code returns the cosine. Computed as $2 arcsin(d / 2)$ of the normalised
    `procrustes_distance`, because the arc cosine of a rounded number near 1 loses half of the digits.

    Cost: that of `procrustes_distance`.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        center: subtract the column means first.

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`, in radians; once differentiable (the
        optimal map counts as constant, which is exact for the first derivative only). NaN with a warning
        that names a side without variance; without centring, a side that is zero.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 2.

    References:
        Williams et al. 2021, "Generalized shape metrics on neural representations" (angular, orthogonal
        group).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import angular_procrustes_distance
        >>> x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> print(f"{angular_procrustes_distance(x, x[:, :1]):.4f}")  # a quarter of pi
        0.7854
    """
    check_flag(center, "center")
    x, y = check_pair(x, y)
    a, b = (center_columns(z) if center else widen(z) for z in (x, y))
    if warn_if_constant(a, b):
        return x.new_tensor(torch.nan)
    chord = _aligned_distance(a, b, normalize=True)
    return (2 * torch.arcsin(chord / 2)).to(x.dtype)


def _aligned_distance(x: Tensor, y: Tensor, *, normalize: bool) -> Tensor:
    """Norm of the residual of the optimal alignment of x (n, p1) and y (n, p2).

    Computed from the residual itself: the difference of norms and nuclear norm keeps half of the digits
    when the two are close.
    """
    if normalize:
        x, y = (z / torch.linalg.matrix_norm(z) for z in (unit_scale(x), unit_scale(y)))
    if x.shape[1] > y.shape[1]:
        x, y = y, x  # the narrower side is mapped into the wider space without losing length
    x, y = _compress_columns(x), _compress_columns(y)
    u, _, vh = torch.linalg.svd((x.T @ y).detach(), full_matrices=False)
    residual: Tensor = torch.linalg.matrix_norm(x @ (u @ vh) - y)
    return residual


def _compress_columns(x: Tensor) -> Tensor:
    """`x` (n, p) in an orthonormal basis of its row space where p > n: same Gram matrix, n columns."""
    if x.shape[1] <= x.shape[0]:
        return x
    basis: Tensor = torch.linalg.qr(x.detach().T).Q
    return x @ basis
