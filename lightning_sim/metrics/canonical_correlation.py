"""Mean canonical correlation, accumulated over batches and ranks."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_sim._checks import check_choice
from lightning_sim.metrics._central_moments import CentralMoments
from lightning_sim.metrics._pair_metric import PairMetric

__all__ = ["CanonicalCorrelation"]


class CanonicalCorrelation(PairMetric):
    r"""Mean canonical correlation between the spaces that two representations span.

    .. math:: \frac{1}{d} \sum_i \rho_i \quad \text{or} \quad \frac{1}{d} \sum_i \rho_i^2,
        \qquad \rho = \text{singular values of } C_{xx}^{-1/2} C_{xy} C_{yy}^{-1/2}

    with the summed cross-covariances of the centred samples of all batches and ranks, in float64, and inverse square
    roots within the span of each side. In [0, 1]; invariant to invertible linear maps and translations of either
    side. Biased upwards: independent Gaussians read about max(p1, p2) / n for the squares.

    Rank-deficient sides and fewer samples than features are right, with this limit of covariances: of the standardised
    features of a side, a direction counts as absent whose variance is below 4e-11 of the strongest one's, or below the
    rounding of the inputs. `lightning_sim.functional.canonical_correlation` needs all samples at hand and goes further
    down.

    State: p (p + 4) + 5 numbers, p the sum of the widths, shared with the "exact" sums of
    `CenteredKernelAlignment` and `NormalizedBuresSimilarity` in a `MetricCollection`. An update of n samples costs
    O(n p^2), ``compute`` O(p^3).

    As input to ``forward`` and ``update`` the metric accepts:

    - ``x`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, num_features_x)``.
    - ``y`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, num_features_y)``, the same samples row by row.
      Batches without samples are allowed.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``cca`` (:class:`~torch.Tensor`): a float64 scalar, not differentiable. NaN with a warning for fewer than 2
      samples, and for a side without variance, which the warning names.

    Args:
        num_features_x: p1; ranks without samples need it.
        num_features_y: p2.
        summary: "mean" of the correlations or "mean_squared".
        divisor: d, "min_width" for min(p1, p2) or "min_rank" for the smaller rank of the centred samples.
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for an unknown option or widths that are not positive; in ``update``, unless both are finite
            floating-point matrices of these widths and of the same number of rows; in ``merge_state``, for a metric
            of other widths.

    References:
        Kornblith et al. 2019, "Similarity of neural network representations revisited", Table 1 (CCA).

    Example:
        >>> import torch
        >>> from lightning_sim.metrics import CanonicalCorrelation
        >>> generator = torch.Generator().manual_seed(0)
        >>> metric = CanonicalCorrelation(4, 2)
        >>> for _ in range(10):
        ...     x = torch.randn(50, 4, generator=generator)
        ...     metric.update(x, x @ torch.tensor([[1.0, 2.0], [0.0, 3.0], [0.0, 0.0], [5.0, 0.0]]) + 7)
        >>> print(f"{metric.compute():.4f}")  # y spans a subspace of x
        1.0000
    """

    _sums: CentralMoments
    count: Tensor

    def __init__(
        self,
        num_features_x: int,
        num_features_y: int,
        *,
        summary: Literal["mean", "mean_squared"] = "mean",
        divisor: Literal["min_width", "min_rank"] = "min_width",
        **kwargs: Any,
    ) -> None:
        check_choice(summary, "summary", ("mean", "mean_squared"))
        check_choice(divisor, "divisor", ("min_width", "min_rank"))
        super().__init__(CentralMoments.of_widths(num_features_x, num_features_y), **kwargs)
        self._summary = summary
        self._divisor = divisor

    def update(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]  # collections give ids to who takes them
        """Add a batch of samples."""
        super().update(x, y)

    def compute(self) -> Tensor:
        """The mean canonical correlation of all samples so far."""
        found = self._sums.canonical_correlations(self._state())
        if found is None:
            return torch.full_like(self.count, torch.nan)
        correlations, rank = found
        width = min(self._sums.num_features_x, self._sums.num_features_y)
        total = correlations.sum() if self._summary == "mean" else correlations.square().sum()
        return total / (width if self._divisor == "min_width" else rank)
