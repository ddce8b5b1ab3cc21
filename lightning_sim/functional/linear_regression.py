"""How much of one representation a linear readout of another explains."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, unit_scale
from lightning_sim._checks import check_pair, warn_if_constant
from lightning_sim.functional._column_space import column_space_basis

__all__ = ["linear_regression_r2"]


def linear_regression_r2(x: Tensor, y: Tensor) -> Tensor:
    r"""Share of the variance of `x` that a least-squares fit from `y` explains.

    $R^2 = 1 - min_B \|x_c - y_c B\|_F^2 / \|x_c\|_F^2 = \|Q_y^T x_c\|_F^2 / \|x_c\|_F^2$ of centred data,
    with an orthonormal basis $Q_y$ of the columns of $y_c$.

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [0, 1], no units, not symmetric. Invariant to invertible
    linear maps of y, to orthogonal maps and isotropic scaling of x, to translations of either side and to
    joint permutations of the samples. Biased upwards: unrelated representations read about
    rank(y) / (n - 1), and 1 once y has rank n - 1.

    Convention: y predicts x, as in the paper. Columns are centred here; some code leaves that to the
    caller. Rank is decided by a tolerance that follows the dtype, so that n <= p2 and rank-deficient y are
    right.

    Cost: O(n p2 (p1 + min(n, p2))), in float64 where the device has it.

    Args:
        x: representation of n samples that is to be explained.
        y: representation of the same samples in the same order that explains it.

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`; differentiable where y has full
        rank. NaN with a warning that names a side without variance.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 2.

    References:
        Kornblith et al. 2019, "Similarity of neural network representations revisited", Table 1 (Linear
        Reg.).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import linear_regression_r2
        >>> y = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)  # four independent bits
        >>> x = y[:, :1]
        >>> print(f"{linear_regression_r2(x, y):.2f} {linear_regression_r2(y, x):.2f}")
        1.00 0.25
    """
    x, y = check_pair(x, y)
    target, basis = unit_scale(center_columns(x)), column_space_basis(y)
    if warn_if_constant(target, basis):
        return x.new_tensor(torch.nan)
    explained = (basis.T @ target).square().sum()
    return (explained / target.square().sum()).clamp(max=1).to(x.dtype)
