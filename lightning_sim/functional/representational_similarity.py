"""Whether two representations find the same pairs of samples dissimilar."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, undefined
from lightning_sim._checks import check_choice, check_pair, warn_if_constant
from lightning_sim.functional._ranks import average_ranks
from lightning_sim.functional._rounding import rows_of

__all__ = ["representational_similarity_analysis"]


def representational_similarity_analysis(
    x: Tensor,
    y: Tensor,
    *,
    dissimilarity: Literal["correlation", "euclidean"] = "correlation",
    compare: Literal["spearman", "pearson"] = "spearman",
) -> Tensor:
    r"""Correlation between the pairwise dissimilarities of samples in two representations.

    $corr((d^x_{ij})_{i<j}, (d^y_{ij})_{i<j})$ over the n (n - 1) / 2 distinct pairs, where $d_{ij}$ is one
    minus the Pearson correlation of rows i and j over features ("correlation") or their Euclidean distance
    ("euclidean").

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [-1, 1], no units, symmetric. Invariant to isotropic
    scaling of either side and to joint permutations of the samples; "euclidean" also to orthogonal maps and
    translations. "correlation" is invariant to neither, since it centres every sample over its features:
    only to permutations of the features and to adding one number to all of them. "spearman" ignores how
    dissimilarity is scaled, ties get average ranks. Unrelated representations score 0 on average; as pairs
    share samples, the spread is that of far fewer than n (n - 1) / 2 independent pairs.

    Cost: O(n^2 p) time and O(n^2 + n p) memory, in float64 where the device has it.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        dissimilarity: "correlation", which needs at least 2 features, or "euclidean".
        compare: "spearman" or "pearson", the correlation of the dissimilarities.

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`; differentiable for "pearson". NaN
        with a warning that names the side if one has no variance, if all its pairs are equally dissimilar,
        or, for "correlation", if it holds a sample with the same value in all features.

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 3;
            for an unknown option.

    References:
        Kriegeskorte, Mur and Bandettini 2008, "Representational similarity analysis - connecting the
        branches of systems neuroscience".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import representational_similarity_analysis
        >>> x = torch.tensor([[0.0], [1.0], [3.0]])
        >>> y = torch.tensor([[0.0], [1.0], [9.0]])  # distances 1, 2, 3 and 1, 8, 9: the same order
        >>> representational_similarity_analysis(x, y, dissimilarity="euclidean")
        tensor(1.)
        >>> representational_similarity_analysis(x, y, dissimilarity="euclidean", compare="pearson")
        tensor(0.9177)
    """
    check_choice(dissimilarity, "dissimilarity", ("correlation", "euclidean"))
    check_choice(compare, "compare", ("spearman", "pearson"))
    x, y = check_pair(x, y, minimum_rows=3)
    if warn_if_constant(center_columns(x), center_columns(y)):
        return x.new_tensor(torch.nan)
    directions: list[Tensor] = []
    for name, representation in (("x", x), ("y", y)):
        pairs, rounding = _dissimilarities(representation, dissimilarity)
        if bool(pairs.isnan().any()):
            return undefined(f"`{name}` holds samples with the same value in all features", x)
        if not bool(pairs.detach().var(correction=0) > rounding):
            return undefined(f"`{name}` has only equally dissimilar pairs of samples", x)
        if compare == "spearman":
            pairs = average_ranks(pairs, rounding=64 * torch.finfo(pairs.dtype).eps * float(pairs.max()))
        pairs = center_columns(pairs[:, None])
        if not bool(pairs.any()):
            return undefined(f"`{name}` has only equally dissimilar pairs of samples", x)
        directions.append(pairs / torch.linalg.vector_norm(pairs))
    return (directions[0] * directions[1]).sum().clamp(-1, 1).to(x.dtype)


def _dissimilarities(x: Tensor, dissimilarity: str) -> tuple[Tensor, Tensor]:
    """The n (n - 1) / 2 dissimilarities of rows of `x` (n, p), and how much of their variance may be rounding.

    NaN for rows that have no correlation.
    """
    if dissimilarity == "euclidean":
        rows, errors = rows_of(x)
        pairs = torch.pdist(rows)
        return pairs, _rounding_of_distances(errors)
    # Half the squared distance of standardised rows is one minus their correlation, without its cancellation.
    features, errors = rows_of(x.T)
    lengths = torch.linalg.vector_norm(features.T, dim=1, keepdim=True)
    distances = torch.pdist(features.T / lengths)
    rounding = distances.detach().square().mean() * _rounding_of_distances(errors.T / lengths.detach())
    return distances.square() / 2, rounding


def _rounding_of_distances(errors: Tensor) -> Tensor:
    """The variance that independent errors (n, p) of the entries give a distance; twice of it, as for kernels."""
    # The error of a distance is that along one direction.
    return 4 * errors.square().mean()
