"""Similarity of the outputs of two networks: predictions, distributions and rankings of the classes."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
from torch import Tensor

from lightning_sim._centering import undefined, widen
from lightning_sim._checks import check_choice, check_logits
from lightning_sim.functional._ranks import average_ranks

__all__ = ["jensen_shannon_divergence", "prediction_agreement", "rank_correlation"]


def prediction_agreement(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    r"""Fraction of samples for which both networks predict the same class.

    $\frac{1}{n} \sum_i [\arg\max_c a_{ic} = \arg\max_c b_{ic}]$; of equal largest logits the first counts.

    Shapes: both (n, classes) -> (). Range: [0, 1]; two random guessers agree on 1 / classes of a balanced
    set (`permutation_null` gives the chance level of any set).
    Invariant to increasing maps of the logits of a sample (probabilities give the same value), to
    permutations of the samples and joint permutations of the classes. An unbiased mean over samples. Cost:
    O(n classes).

    Args:
        logits_a: outputs of one network, classes in columns; -inf is allowed.
        logits_b: outputs of the other for the same samples and classes.

    Returns:
        A scalar in the wider of float32 and the dtypes of the inputs; not differentiable.

    Raises:
        ValueError: unless both are floating-point of one shape with at least 1 row and 2 columns, without NaN
            or +inf.

    References:
        One minus the churn of Milani Fard et al. 2016, "Launch and iterate: reducing prediction churn".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import prediction_agreement
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> prediction_agreement(logits, torch.tensor([[5.0, 0.0], [1.0, 0.0]]))
        tensor(0.5000)
    """
    logits_a, logits_b = check_logits(logits_a, logits_b)
    return per_sample_agreement(logits_a, logits_b).to(logits_a.dtype).mean()


def jensen_shannon_divergence(logits_a: Tensor, logits_b: Tensor, *, base: Literal["e", 2] = "e") -> Tensor:
    r"""Mean over samples of the Jensen-Shannon divergence between the class distributions of two networks.

    $\frac{1}{n} \sum_i \frac{1}{2} KL(p_i \| m_i) + \frac{1}{2} KL(q_i \| m_i)$ with $p_i$, $q_i$ the softmax
    of the logits, $m_i = (p_i + q_i) / 2$ and $0 \log 0 = 0$.

    Shapes: both (n, classes) -> (). Units and range: nats, [0, ln 2] with `base="e"`; bits, [0, 1] with
    `base=2`. It is the divergence itself, not its square root (the distance that scipy calls jensenshannon);
    of logits, not of probabilities (which torchmetrics takes, with NaN for the logarithm of zero).
    Symmetric; invariant to shifts of the logits of a sample, to permutations of the samples and joint
    permutations of the classes. An unbiased mean over samples. Cost: O(n classes), from log-softmax in
    float64 where the device has it; logits of -inf are probabilities of zero. For probabilities give their
    logarithms.

    Args:
        logits_a: outputs of one network, classes in columns; -inf is allowed.
        logits_b: outputs of the other for the same samples and classes.
        base: of the logarithm, "e" (nats) or 2 (bits).

    Returns:
        A scalar in the wider of float32 and the dtypes of the inputs, differentiable.

    Raises:
        ValueError: unless both are floating-point of one shape with at least 1 row and 2 columns, without NaN
            or +inf; for another base.

    References:
        Lin 1991, "Divergence measures based on the Shannon entropy", eq. 4.1 with equal weights.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import jensen_shannon_divergence
        >>> certain = torch.tensor([[0.0, -torch.inf]])
        >>> jensen_shannon_divergence(certain, certain.flip(1), base=2)
        tensor(1.)
    """
    check_choice(base, "base", ("e", 2))
    logits_a, logits_b = check_logits(logits_a, logits_b)
    nats = per_sample_divergence(logits_a, logits_b).mean().clamp_min(0)
    return (nats / math.log(base) if base == 2 else nats).to(logits_a.dtype)


def rank_correlation(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    r"""Mean over samples of Spearman's rank correlation between the classes' logits in two networks.

    $\frac{1}{n} \sum_i corr(R(a_i), R(b_i))$ with R the ranks of the classes for one sample, ties given their
    average rank, and corr Pearson's correlation over classes.

    A sample that has the same logit for every class in either network ranks nothing. Such samples are left
    out of the mean with a warning that says how many; when none is left, the value is NaN.

    Shapes: both (n, classes) -> (). Range: [-1, 1], no units. Invariant to increasing maps of the logits of a
    sample, as long as they keep ties (probabilities that underflow to zero are ties), to permutations of the
    samples and joint permutations of the classes. An unbiased mean over samples. Cost: O(n classes log
    classes).

    Args:
        logits_a: outputs of one network, classes in columns; -inf is allowed.
        logits_b: outputs of the other for the same samples and classes.

    Returns:
        A scalar in the wider of float32 and the dtypes of the inputs; not differentiable.

    Raises:
        ValueError: unless both are floating-point of one shape with at least 1 row and 2 columns, without NaN
            or +inf.

    References:
        Spearman 1904; Kendall and Gibbons 1990, chapter 3 (average ranks for ties).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import rank_correlation
        >>> rank_correlation(torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([[1.0, 0.0, 9.0]]))
        tensor(0.5000)
    """
    logits_a, logits_b = check_logits(logits_a, logits_b)
    correlations = per_sample_rank_correlation(logits_a, logits_b)
    defined = correlations[~correlations.isnan()]
    if len(defined) < len(correlations):
        sides = [
            name
            for name, logits in (("`logits_a`", logits_a), ("`logits_b`", logits_b))
            if bool((logits.amax(1) == logits.amin(1)).any())
        ]
        left_out = f"{len(correlations) - len(defined)} of {len(correlations)} samples"
        message = f"{' and '.join(sides)} has no variance over the classes for {left_out}"
        if len(defined) == 0:
            return undefined(message, logits_a)
        warnings.warn(f"{message}, left out of the rank correlation", UserWarning, stacklevel=2)
    return defined.mean().to(logits_a.dtype)


def per_sample_agreement(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Whether both predict the same class, (n,) in float64."""
    return widen(logits_a.argmax(1) == logits_b.argmax(1))


def per_sample_divergence(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Jensen-Shannon divergence (n,) of the distributions over classes, the last dimension, in nats."""
    log_p, log_q = _log_softmax(logits_a), _log_softmax(logits_b)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)).sum(-1) / 2


def per_sample_rank_correlation(logits_a: Tensor, logits_b: Tensor) -> Tensor:
    """Spearman's correlation (n,) of the rows of two (n, classes); NaN where one is constant."""
    return (standardized_ranks(logits_a) * standardized_ranks(logits_b)).sum(1).clamp(-1, 1)


def standardized_ranks(logits: Tensor) -> Tensor:
    """Ranks of the classes (n, classes), of mean 0 and length 1 in every row; NaN in a row that has no ranking."""
    ranks = average_ranks(widen(logits).contiguous()) - (logits.shape[1] + 1) / 2
    return ranks.div(torch.linalg.vector_norm(ranks, dim=1, keepdim=True))


def _log_softmax(logits: Tensor) -> Tensor:
    """Log-softmax without infinities: beyond a gap of 1000 the probability is zero in any case."""
    logits = widen(logits)
    logits = logits - logits.detach().amax(-1, keepdim=True)
    return torch.log_softmax(logits.clamp(min=-1000), -1)
