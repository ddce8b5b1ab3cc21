"""Which samples, and how much of one direction, a CKA stands on."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, unit_scale
from lightning_sim._checks import check_ids, check_pair, warn_if_constant
from lightning_sim.functional.hsic import row_sums

__all__ = ["Carriers", "carriers", "carriers_of", "concentration"]

_LISTED = 5
_STEPS = 50


class Carriers(NamedTuple):
    """What carries a CKA.

    Attributes:
        effective_number: of samples, (sum a)^2 / sum a^2 of the parts a that each has in the numerator; 1 where one
            sample is all of it, n where all weigh the same.
        sample_ids: of the five with the largest parts, the largest first.
        shares: of the numerator that those five have.
        largest_twentieth: share that the largest twentieth of the samples has together.
        first_direction: for either side, the share of the (biased) numerator along its first principal direction.
    """

    effective_number: float
    sample_ids: list[int]
    shares: list[float]
    largest_twentieth: float
    first_direction: tuple[float, float]

    @property
    def few(self) -> bool:
        """Whether a twentieth of the samples carries more than half, and the value says little about the others.

        Of a value that chance explains nothing is carried by anything: see `lightning_sim.functional.permutation_null`.
        """
        return self.largest_twentieth > 0.5


def carriers(x: Tensor, y: Tensor, *, sample_ids: Tensor | None = None) -> Carriers:
    r"""Which samples the unbiased linear CKA of two representations stands on.

    $a_i = \sum_j A_{ij} B_{ij}$ of the U-centred kernels is sample i's part in the numerator. A few samples far from
    the others can carry nearly all of it while the value hardly moves: of 512 digits, one sample scaled by 30 on both
    sides takes the effective number of samples from 349 to 4.7. The share of the first principal direction v of `x`,
    $|v^T x_c^T y_c|^2 / \|x_c^T y_c\|_F^2$, tells how far the value is that of a single direction; likewise of `y`.

    Shapes: `x` (n, p1), `y` (n, p2). Cost: O(n^2 (p1 + p2)) time, blocks of fixed size.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        sample_ids: (n,) integers by which samples are named; their places if None.

    Returns:
        `Carriers`, of NaN with a warning where a side has no variance.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 4, and the
            ids n integers.

    References:
        Nguyen, Raghu and Kornblith 2022, "On the origins of the block structure phenomenon in neural network
        representations". Davari et al. 2023, "Reliability of CKA as a similarity measure in deep learning".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import carriers
        >>> x, noise = torch.randn(2, 100, 8, generator=torch.Generator().manual_seed(0))
        >>> x[17] *= 30
        >>> found = carriers(x, x + noise)
        >>> print(f"{found.sample_ids[0]} has {found.shares[0]:.2f} of it, {found.effective_number:.1f} samples count")
        17 has 0.44 of it, 4.9 samples count
    """
    x, y = check_pair(x, y, minimum_rows=4)
    if sample_ids is None:
        sample_ids = torch.arange(len(x), device="cpu")
    check_ids(sample_ids, x, "x")
    a, b = (unit_scale(center_columns(z.detach())) for z in (x, y))
    if warn_if_constant(a, b):
        return carriers_of(None, sample_ids, a, b)
    parts = row_sums(a, b)[0]
    return carriers_of(parts / parts.sum(), sample_ids, a, b)


def carriers_of(shares: Tensor | None, sample_ids: Tensor, a: Tensor, b: Tensor) -> Carriers:
    """From every sample's share of the numerator, of which there is none if None, and centred representations."""
    if shares is None:
        return Carriers(math.nan, [], [], math.nan, (math.nan, math.nan))
    directions = _share_of_first(a, b), _share_of_first(b, a)
    return Carriers(*concentration(shares, sample_ids), directions)


def concentration(shares: Tensor, sample_ids: Tensor) -> tuple[float, list[int], list[float], float]:
    """Effective number, ids and shares of the five largest, and share of the largest twentieth."""
    largest = shares.topk(min(_LISTED, len(shares)))
    twentieth = shares.topk(math.ceil(len(shares) / 20)).values.sum()
    ids = sample_ids.to(shares.device)[largest.indices].tolist()
    effective = shares.sum().square() / shares.square().sum()
    return float(effective), ids, largest.values.tolist(), float(twentieth)


def _share_of_first(a: Tensor, b: Tensor) -> float:
    """The share of |a' b|^2 along the first principal direction of `a`, which a power iteration finds."""
    direction = a[a.square().sum(1).argmax()]
    for _ in range(_STEPS):
        direction = torch.nn.functional.normalize(a.T @ (a @ direction), dim=0)
    return float((b.T @ (a @ direction)).square().sum() / (a.T @ b).square().sum())
