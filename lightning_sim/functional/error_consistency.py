"""Whether two networks err on the same samples, beyond what their accuracies make likely."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_sim._centering import undefined, widen
from lightning_sim._checks import check_ids, check_logits

__all__ = ["ErrorConsistencyResult", "consistency_of_counts", "error_consistency", "kappa_influences", "right"]


class ErrorConsistencyResult(NamedTuple):
    """Error consistency, and the numbers without which it says little.

    Attributes:
        value: Cohen's kappa of both networks' correctness.
        observed: share of samples on which both are right or both are wrong.
        expected: that share if the errors of two networks of these accuracies had nothing to do with each other.
        accuracy_a: share of samples on which the first is right.
        accuracy_b: on which the second is.
    """

    value: Tensor
    observed: Tensor
    expected: Tensor
    accuracy_a: Tensor
    accuracy_b: Tensor


def error_consistency(logits_a: Tensor, logits_b: Tensor, labels: Tensor) -> ErrorConsistencyResult:
    r"""Cohen's kappa of the correctness of two networks: whether they err on the same samples.

    $\kappa = (c_{obs} - c_{exp}) / (1 - c_{exp})$ with the share $c_{obs}$ of samples on which both are right or both
    wrong, and $c_{exp} = p_a p_b + (1 - p_a)(1 - p_b)$ for accuracies $p_a$, $p_b$. 1: the same errors; 0: as many
    common errors as chance gives. Two networks that are nearly always right, or nearly always wrong, agree whatever
    they do: read kappa beside the shares it is made of.

    Shapes: both logits (n, classes), labels (n,) -> five scalars in [0, 1], kappa in [-1, 1]. Cost: O(n classes).

    Args:
        logits_a: outputs of one network, classes in columns; -inf is allowed.
        logits_b: outputs of the other for the same samples and classes.
        labels: the right classes.

    Returns:
        `ErrorConsistencyResult` of float64 scalars, not differentiable. Kappa is NaN, with a warning that says so,
        where both networks are right on all samples, or both wrong on all: chance agreement is 1.

    Raises:
        ValueError: unless the logits are floating-point of one shape with at least 1 row and 2 columns, without NaN or
            +inf, and the labels integers from 0 to classes - 1, one for each row.

    References:
        Geirhos, Meding and Wichmann 2020, "Beyond accuracy: quantifying trial-by-trial behaviour of CNNs and humans by
        measuring error consistency", eqs. 1 to 3. Cohen 1960.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import error_consistency
        >>> a = torch.eye(4)[[0, 1, 2, 3]]
        >>> b = torch.eye(4)[[0, 1, 3, 3]]
        >>> found = error_consistency(a, b, torch.tensor([0, 1, 2, 0]))
        >>> print(f"{found.value:.2f}, observed {found.observed:.2f}, by chance {found.expected:.2f}")
        0.50, observed 0.75, by chance 0.50
    """
    right_a, right_b = right(logits_a, logits_b, labels)
    counts = torch.stack([(right_a * right_b).sum(), right_a.sum(), right_b.sum(), right_a.new_tensor(len(right_a))])
    return consistency_of_counts(counts, stacklevel=4)


def right(logits_a: Tensor, logits_b: Tensor, labels: Tensor, *, minimum_rows: int = 1) -> tuple[Tensor, Tensor]:
    """Whether each network predicts the label, (n,) of 0 and 1 in float64 each."""
    logits_a, logits_b = check_logits(logits_a, logits_b, minimum_rows=minimum_rows)
    check_ids(labels, logits_a, "logits_a", argument="labels")
    classes = logits_a.shape[1]
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(f"`labels` must be classes from 0 to {classes - 1}, got {labels.min()} to {labels.max()}")
    labels = labels.to(logits_a.device)
    right_a, right_b = (widen(logits.argmax(1) == labels) for logits in (logits_a, logits_b))
    return right_a, right_b


def consistency_of_counts(counts: Tensor, *, stacklevel: int = 3) -> ErrorConsistencyResult:
    """From the numbers of samples on which both are right, the first is, the second is, and of all, (4,)."""
    both, accuracy_a, accuracy_b = counts[:3] / counts[3]
    observed = 1 - accuracy_a - accuracy_b + 2 * both
    expected = accuracy_a * accuracy_b + (1 - accuracy_a) * (1 - accuracy_b)
    if bool(expected < 1):
        value = (observed - expected) / (1 - expected)
    elif bool(counts[3] == 0):
        value = undefined("no samples were given", counts, stacklevel=stacklevel)
    else:
        how = "right" if bool(accuracy_a == 1) else "wrong"
        value = undefined(f"both networks are {how} on all samples", counts, stacklevel=stacklevel)
    return ErrorConsistencyResult(value, observed, expected, accuracy_a, accuracy_b)


def kappa_influences(right_a: Tensor, right_b: Tensor, found: ErrorConsistencyResult) -> Tensor:
    """n times the influence on kappa of samples on which each network is right (1) or wrong (0)."""
    same = 1 - (right_a - right_b).abs() - found.observed
    chance = (2 * found.accuracy_b - 1) * (right_a - found.accuracy_a)
    chance = chance + (2 * found.accuracy_a - 1) * (right_b - found.accuracy_b)
    return same / (1 - found.expected) - (1 - found.observed) / (1 - found.expected) ** 2 * chance
