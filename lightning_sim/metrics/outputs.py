"""Similarity of the outputs of two networks, accumulated over batches and ranks."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_sim._centering import undefined
from lightning_sim._checks import check_choice, check_logits
from lightning_sim.functional.estimate import Estimate
from lightning_sim.functional.outputs import (
    per_sample_divergence,
    per_sample_rank_correlation,
    prediction_agreement,
)
from lightning_sim.metrics._summed_metric import SummedMetric

__all__ = ["OutputDivergence", "PredictionAgreement", "RankCorrelation"]


class PredictionAgreement(SummedMetric):
    r"""Fraction of samples for which two networks predict the same class.

    .. math:: \frac{1}{n} \sum_i [\arg\max_c a_{ic} = \arg\max_c b_{ic}]

    over the samples of all batches and ranks; of equal largest logits the first counts. In [0, 1]; two random
    guessers agree on 1 / classes of a balanced set. State: 2 numbers.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``logits_a`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, classes)``; -inf is allowed.
    - ``logits_b`` (:class:`~torch.Tensor`): the other network's, of the same shape. Batches without samples are
      allowed.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``agreement`` (:class:`~torch.Tensor`): a float64 scalar; NaN with a warning without samples.

    Args:
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: in ``update``, unless both are floating-point of one shape with at least 2 columns, without NaN or
            +inf.

    References:
        One minus the churn of Milani Fard et al. 2016, "Launch and iterate: reducing prediction churn".

    Example:
        >>> import torch
        >>> from lightning_sim.metrics import PredictionAgreement
        >>> metric = PredictionAgreement()
        >>> metric.update(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([[5.0, 0.0], [1.0, 0.0]]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    agreements: Tensor
    count: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("agreements", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits_a: Tensor, logits_b: Tensor) -> None:
        """Add a batch of samples."""
        if _checked_count(logits_a, logits_b):
            fraction = prediction_agreement(logits_a.detach().double(), logits_b.detach().double())
            self.agreements = self.agreements + fraction * len(logits_a)
            self.count = self.count + len(logits_a)

    def compute(self) -> Tensor:
        """The agreement on all samples so far."""
        return _mean(self.agreements, self.count)

    def _estimate(self) -> Estimate:
        return _estimate_of(_mean(self.agreements, self.count), self.agreements, self.count)


class OutputDivergence(SummedMetric):
    r"""Mean over samples of the Jensen-Shannon divergence between the class distributions of two networks.

    .. math:: \frac{1}{n} \sum_i \tfrac{1}{2} KL(p_i \| m_i) + \tfrac{1}{2} KL(q_i \| m_i),
        \quad m_i = (p_i + q_i) / 2

    over the samples of all batches and ranks, with the softmax of the logits and 0 log 0 = 0. In nats, [0, ln 2], or
    bits, [0, 1]; the divergence itself, not its square root. State: 3 numbers.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``logits_a`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, classes)``; -inf is allowed. For
      probabilities give their logarithms.
    - ``logits_b`` (:class:`~torch.Tensor`): the other network's, of the same shape. Batches without samples are
      allowed.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``divergence`` (:class:`~torch.Tensor`): a float64 scalar, not differentiable (the function
      `lightning_sim.functional.jensen_shannon_divergence` is); NaN with a warning without samples.

    Args:
        base: of the logarithm, "e" (nats) or 2 (bits).
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for another base; in ``update``, unless both are floating-point of one shape with at least 2
            columns, without NaN or +inf.

    References:
        Lin 1991, "Divergence measures based on the Shannon entropy", eq. 4.1 with equal weights.

    Example:
        >>> import torch
        >>> from lightning_sim.metrics import OutputDivergence
        >>> metric = OutputDivergence(base=2)
        >>> certain = torch.tensor([[0.0, -torch.inf]])
        >>> metric.update(certain, certain.flip(1))
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    divergences: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, base: Literal["e", 2] = "e", **kwargs: Any) -> None:
        check_choice(base, "base", ("e", 2))
        super().__init__(**kwargs)
        self._base = base
        for name in ("divergences", "squares", "count"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits_a: Tensor, logits_b: Tensor) -> None:
        """Add a batch of samples."""
        if _checked_count(logits_a, logits_b):
            nats = per_sample_divergence(logits_a.detach().double(), logits_b.detach().double())
            self.divergences = self.divergences + nats.sum()
            self.squares = self.squares + nats.square().sum()
            self.count = self.count + len(logits_a)

    def compute(self) -> Tensor:
        """The mean divergence over all samples so far."""
        return self._in_base(_mean(self.divergences, self.count))

    def _estimate(self) -> Estimate:
        found = _estimate_of(_mean(self.divergences, self.count), self.squares, self.count)
        return Estimate(*(self._in_base(nats) for nats in found))

    def _in_base(self, nats: Tensor) -> Tensor:
        return nats.clamp_min(0) / (math.log(2) if self._base == 2 else 1)


class RankCorrelation(SummedMetric):
    r"""Mean over samples of Spearman's rank correlation between the classes' logits in two networks.

    .. math:: \frac{1}{n} \sum_i corr(R(a_i), R(b_i))

    over the samples of all batches and ranks, with R the ranks of the classes for one sample (ties get their average
    rank) and Pearson's correlation over classes. In [-1, 1]. Samples with the same logit for every class in either
    network rank nothing; they are left out, and ``compute`` warns how many there were. State: 4 numbers.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``logits_a`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, classes)``; -inf is allowed.
    - ``logits_b`` (:class:`~torch.Tensor`): the other network's, of the same shape. Batches without samples are
      allowed.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``rank_correlation`` (:class:`~torch.Tensor`): a float64 scalar; NaN with a warning without samples that rank
      anything.

    Args:
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: in ``update``, unless both are floating-point of one shape with at least 2 columns, without NaN or
            +inf.

    References:
        Spearman 1904; Kendall and Gibbons 1990, chapter 3 (average ranks for ties).

    Example:
        >>> import torch
        >>> from lightning_sim.metrics import RankCorrelation
        >>> metric = RankCorrelation()
        >>> metric.update(torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([[1.0, 0.0, 9.0]]))
        >>> metric.compute()
        tensor(0.5000, dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    correlations: Tensor
    squares: Tensor
    count: Tensor
    left_out: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in ("correlations", "squares", "count", "left_out"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits_a: Tensor, logits_b: Tensor) -> None:
        """Add a batch of samples."""
        if _checked_count(logits_a, logits_b):
            correlations = per_sample_rank_correlation(logits_a.detach().double(), logits_b.detach().double())
            undefined_ones = correlations.isnan()
            self.correlations = self.correlations + correlations.nansum()
            self.squares = self.squares + correlations.square().nansum()
            self.count = self.count + (~undefined_ones).sum()
            self.left_out = self.left_out + undefined_ones.sum()

    def compute(self) -> Tensor:
        """The mean rank correlation over all samples so far."""
        left_out = int(self.left_out)
        if left_out:
            warnings.warn(
                f"`logits_a` or `logits_b` is constant over the classes for {left_out} of "
                f"{left_out + int(self.count)} samples, which are left out of the rank correlation",
                UserWarning,
                stacklevel=2,
            )
        return _mean(self.correlations, self.count)

    def _estimate(self) -> Estimate:
        return _estimate_of(_mean(self.correlations, self.count), self.squares, self.count)


def _checked_count(logits_a: Tensor, logits_b: Tensor) -> int:
    """The number of samples, which may be zero."""
    return len(check_logits(logits_a, logits_b, minimum_rows=0)[0])


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return undefined("no samples were given", total) if int(count) == 0 else total / count


def _estimate_of(mean: Tensor, squares: Tensor, count: Tensor) -> Estimate:
    """The mean of so many values with its standard error, from the sum of their squares."""
    variance = (squares / count - mean.square()).clamp_min(0) / (count - 1)
    return Estimate(mean, torch.sqrt(variance))
