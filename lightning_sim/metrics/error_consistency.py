"""Whether two networks err on the same samples, accumulated over batches and ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sim.functional.error_consistency import (
    ErrorConsistencyResult,
    consistency_of_counts,
    kappa_influences,
    right,
)
from lightning_sim.functional.estimate import Estimate
from lightning_sim.metrics._summed_metric import SummedMetric

__all__ = ["ErrorConsistency"]


class ErrorConsistency(SummedMetric):
    r"""Cohen's kappa of the correctness of two networks: whether they err on the same samples.

    .. math:: \kappa = (c_{obs} - c_{exp}) / (1 - c_{exp}), \quad c_{exp} = p_a p_b + (1 - p_a)(1 - p_b)

    over the samples of all batches and ranks, with the share c_obs of samples on which both are right or both wrong,
    and accuracies p_a, p_b; see :func:`lightning_sim.functional.error_consistency`. State: 4 numbers.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``logits_a`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, classes)``; -inf is allowed.
    - ``logits_b`` (:class:`~torch.Tensor`): the other network's, of the same shape. Batches without samples are
      allowed.
    - ``labels`` (:class:`~torch.Tensor`): the right classes, n integers.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``ErrorConsistencyResult``: kappa as ``value``, ``observed`` and ``expected`` share of common errors and hits,
      ``accuracy_a`` and ``accuracy_b``, float64 scalars. Kappa is NaN with a warning without samples, and where both
      networks are right, or both wrong, on all of them.

    Args:
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: in ``update``, for what `lightning_sim.functional.error_consistency` refuses but batches without
            samples.

    References:
        Geirhos, Meding and Wichmann 2020, "Beyond accuracy: quantifying trial-by-trial behaviour of CNNs and humans by
        measuring error consistency".

    Example:
        >>> import torch
        >>> from lightning_sim.metrics import ErrorConsistency
        >>> metric = ErrorConsistency()
        >>> metric.update(torch.eye(4), torch.eye(4)[[0, 1, 3, 3]], torch.tensor([0, 1, 2, 0]))
        >>> found = metric.compute()
        >>> print(f"{found.value:.2f} at accuracies {found.accuracy_a:.2f} and {found.accuracy_b:.2f}")
        0.50 at accuracies 0.75 and 0.50
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(4, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits_a: Tensor, logits_b: Tensor, labels: Tensor) -> None:
        """Add a batch of samples."""
        a, b = right(logits_a.detach(), logits_b.detach(), labels, minimum_rows=0)
        self.counts = self.counts + torch.stack([(a * b).sum(), a.sum(), b.sum(), a.new_tensor(len(a))])

    def compute(self) -> ErrorConsistencyResult:
        """The error consistency on all samples so far."""
        return consistency_of_counts(self.counts)

    def _estimate(self) -> Estimate:
        found = consistency_of_counts(self.counts)
        both, of_a, of_b, n = self.counts
        a, b = self.counts.new_tensor([[1, 1, 0, 0], [1, 0, 1, 0]])
        samples = torch.stack([both, of_a - both, of_b - both, n - of_a - of_b + both])
        squares = (samples * kappa_influences(a, b, found).square()).sum()
        return Estimate(found.value, torch.sqrt(squares / (n * (n - 1))))
