"""Centred kernel alignment from terms summed over batches."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim._centering import center_columns
from lightning_sim._checks import check_pair, warn_if_constant
from lightning_sim.functional._rounding import over_largest, rows_of
from lightning_sim.functional.centered_kernel_alignment import alignment
from lightning_sim.functional.hsic import HsicTerms, linear_hsic_terms

__all__ = ["minibatch_centered_kernel_alignment"]


def minibatch_centered_kernel_alignment(x: Tensor, y: Tensor, *, batch_size: int) -> Tensor:
    r"""Linear CKA from the HSIC_1 of contiguous batches, for more samples than a kernel can hold.

    $\sum_b HSIC_1(K_b, L_b) / \sqrt{\sum_b HSIC_1(K_b, K_b) \sum_b HSIC_1(L_b, L_b)}$ over the batches b,
    with linear kernels. Every batch counts equally whatever its size; a shorter last batch is kept when it
    has the 4 samples that HSIC_1 needs and left out otherwise.

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [-1, 1], no units. Invariant to orthogonal maps,
    translations and isotropic scaling of either side, to permutations within a batch and of whole batches;
    not to other permutations of the samples, nor to the batch size. Each sum is an unbiased estimate, so the
    value estimates the same quantity as the unbiased CKA of all samples, with more variance the smaller the
    batches.

    Cost: O(n batch_size (p1 + p2)) time and O(batch_size^2) memory, or O(n (p1 + p2)^2) and O((p1 + p2)^2)
    where that is cheaper.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        batch_size: rows per batch, at least 4.

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`, differentiable. NaN with a warning
        that names the side which has no variance within the batches.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 4,
            and the batch size is at least 4.

    References:
        Nguyen et al. 2021, "Do wide and deep networks learn the same things?", eq. 2. Song et al. 2012, eq. 5
        (HSIC_1).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import minibatch_centered_kernel_alignment
        >>> x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
        >>> minibatch_centered_kernel_alignment(x, 2 * x.flip(1) + 1, batch_size=20)
        tensor(1.)
    """
    batch_size = check_integer(batch_size, "batch_size", least=4)  # the samples that HSIC_1 needs
    x, y = check_pair(x, y, minimum_rows=4)
    if warn_if_constant(center_columns(x), center_columns(y)):
        return x.new_tensor(torch.nan)
    # Centring every batch changes no HSIC_1, and its sums over features suppose it.
    sides = (
        over_largest([rows_of(rows) for rows in torch.split(side, batch_size) if len(rows) >= 4]) for side in (x, y)
    )
    batches = [linear_hsic_terms(rows_a, rows_b, "unbiased") for rows_a, rows_b in zip(*sides, strict=True)]
    sums = HsicTerms(*(torch.stack(terms).sum() for terms in zip(*batches, strict=True)))
    return alignment(sums, ("`x`", "`y`")).to(x.dtype)
