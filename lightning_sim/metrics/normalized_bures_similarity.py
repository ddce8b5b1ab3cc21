"""Normalised Bures similarity, accumulated over batches and ranks."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lightning_sim._arguments import warn_renamed
from lightning_sim._checks import check_choice
from lightning_sim.functional.estimate import Estimate
from lightning_sim.metrics._central_moments import CentralMoments
from lightning_sim.metrics._pair_metric import PairMetric
from lightning_sim.metrics._sketched_pair import SketchedPair

__all__ = ["NormalizedBuresSimilarity"]


class NormalizedBuresSimilarity(PairMetric):
    r"""Overlap of two representations after the best rotation of one to the other.

    .. math:: NBS = \frac{\|X_c^T Y_c\|_*}{\|X_c\|_F \|Y_c\|_F}

    of the centred samples of all batches and ranks, with the sum of singular values in the numerator. In [0, 1];
    invariant to orthogonal maps, translations and isotropic scaling of either side. Biased upwards for few samples
    and wide layers, without a cheap correction. `lightning_sim.functional.normalized_bures_similarity` is the same of
    samples that are all at hand, and differentiable.

    - `accumulate` "sketch": exact while there are at most `num_buckets` samples and `num_projections` features, an
      estimate beyond; more samples than buckets raise it further, as fewer samples would. State and cost of an update
      as for `CenteredKernelAlignment`, with which it shares its states in a `MetricCollection`; ``compute`` costs
      O(M k^2 + k^3).
    - "exact": from cross-covariances in float64, for narrow layers, in any split and order; without a standard error,
      which `estimate` gives of the former.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``x`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, p1)``.
    - ``y`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, p2)``, the same samples row by row. Batches
      without samples are allowed.
    - ``sample_ids`` (:class:`~torch.Tensor`, optional): n integers, see `CenteredKernelAlignment`.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``nbs`` (:class:`~torch.Tensor`): a scalar, float32 for "sketch" (float64 after ``set_dtype(torch.float64)``)
      and float64 for "exact", not differentiable. NaN with a warning for fewer than 4 samples (2 for "exact"), and
      for a side without variance, which the warning names.

    Args:
        accumulate: what to sum, "sketch" or "exact".
        num_buckets: M, a power of two, for "sketch".
        num_projections: k, an even number, for "sketch".
        seed: of the hashes of "sketch".
        num_features_x: p1, for "exact": ranks without samples need it.
        num_features_y: p2, for "exact".
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for another `accumulate`, sizes that cannot work, or "exact" without widths; in ``update`` and
            ``merge_state`` as for `CenteredKernelAlignment`.

    References:
        Tang et al. 2020, "Similarity of Neural Networks with Gradients", section 3.

    Example:
        >>> import torch
        >>> from lightning_sim.metrics import NormalizedBuresSimilarity
        >>> generator = torch.Generator().manual_seed(0)
        >>> metric = NormalizedBuresSimilarity("exact", num_features_x=16, num_features_y=16)
        >>> for _ in range(10):
        ...     x = torch.randn(50, 16, generator=generator)
        ...     metric.update(x, 2 * x.flip(1) + 1)
        >>> print(f"{metric.compute():.4f}")
        1.0000
    """

    _sums: SketchedPair | CentralMoments

    def __init__(
        self,
        accumulate: Literal["sketch", "exact"] = "sketch",
        *,
        num_buckets: int = 1024,
        num_projections: int = 1024,
        seed: int = 0,
        num_features_x: int | None = None,
        num_features_y: int | None = None,
        **kwargs: Any,
    ) -> None:
        renamed = "estimator" in kwargs
        accumulate = kwargs.pop("estimator", accumulate)
        check_choice(accumulate, "accumulate", ("sketch", "exact"))
        if renamed:
            warn_renamed(f"estimator={accumulate!r}", f"accumulate={accumulate!r}")
        if accumulate == "sketch":
            super().__init__(SketchedPair(num_buckets, num_projections, seed), **kwargs)
        else:
            super().__init__(CentralMoments.of_widths(num_features_x, num_features_y), **kwargs)

    def compute(self) -> Tensor:
        """The NBS of all samples so far."""
        return self._sums.nbs(self._state())

    def _estimate(self) -> Estimate:
        return super()._estimate() if isinstance(self._sums, CentralMoments) else self._sums.nbs_estimate(self._state())
