"""Norm of the kernel mean embedding: how far the samples agree on where to go."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lightning_sim._centering import undefined, unit_scale, widen
from lightning_sim._checks import check_choice, check_matrix, check_pair

__all__ = ["kernel_mean_embedding_norm"]

Normalization = Literal["diagonal", "frobenius"]


def kernel_mean_embedding_norm(
    features: Tensor, gradients: Tensor | None = None, *, normalization: Normalization | None = None
) -> Tensor:
    r"""Length of the mean of the samples in the space of a kernel, for features or features and gradients.

    $\|\mu\|^2 = \frac{1}{n^2} \sum_{ij} K_{ij}$ with $K = F F^T$, or $K = (F F^T) \circ (G G^T)$ where gradients are
    given. There $\|\mu\| = \|\frac{1}{n} \sum_i g_i f_i^T\|_F$: for a linear layer with inputs f and gradients g at its
    outputs, the norm of the gradient of the mean loss with respect to its weights; how hard this dataset pulls at the
    layer.

    Two forms are free of scale, both in [0, 1]: `normalization="diagonal"`, $\|\mu\| / \sqrt{\frac{1}{n} \sum_i
    K_{ii}}$, next to the root mean square length of the samples (1 when all are equal); and `"frobenius"`,
    $\sum_{ij} K_{ij} / (n \|K\|_F)$, the cosine of K and the matrix of ones.

    Shapes: `features` (n, p1), `gradients` (n, p2) -> (). Range: at least 0, in the units of the features (times
    those of the gradients). Invariant to orthogonal maps of each argument and to joint permutations; nothing is
    centred. Biased
    upwards: the samples' own entries add $\frac{1}{n}$ of their mean, so that unrelated samples of mean zero read
    $n^{-1/2}$ with "diagonal" and not 0. Compare values of one n.

    Cost: O(n^2 (p1 + p2)) time and O(n^2) memory, in float64 where the device has it.

    Args:
        features: what a layer computes, or its inputs.
        gradients: of each sample's loss, with respect to the layer's output.
        normalization: None, "diagonal" or "frobenius".

    Returns:
        A scalar in the wider of float32 and the dtypes of the arguments. NaN with a warning when it is normalised and
        all samples are zero.

    Raises:
        ValueError: unless the arguments are finite floating-point matrices with the same number of rows; for an unknown
            normalization.

    References:
        Tang et al. 2020, "Similarity of Neural Networks with Gradients".

    Example:
        >>> import torch
        >>> from lightning_sim.functional import kernel_mean_embedding_norm
        >>> kernel_mean_embedding_norm(torch.tensor([[3.0, 1.0], [3.0, -1.0]]))
        tensor(3.)
    """
    check_choice(normalization, "normalization", (None, "diagonal", "frobenius"))
    factors = [check_matrix(features, "features")]
    if len(features) == 0:
        raise ValueError(f"`features` need at least 1 row (sample), got shape {tuple(features.shape)}")
    if gradients is not None:
        factors = list(check_pair(features, gradients, names=("features", "gradients"), minimum_rows=1))
    dtype = factors[0].dtype
    kernel = None
    for factor in factors:
        wide = widen(factor) if normalization is None else unit_scale(widen(factor))
        kernel = wide @ wide.T if kernel is None else kernel * (wide @ wide.T)
    assert kernel is not None
    if normalization is None:
        return kernel.mean().clamp_min(0).sqrt().to(dtype)
    if not bool(kernel.any()):
        return undefined("every sample is zero", factors[0])
    if normalization == "diagonal":
        return (kernel.mean() / kernel.diagonal().mean()).clamp(0, 1).sqrt().to(dtype)
    return (kernel.mean() / kernel.square().mean().sqrt()).clamp(0, 1).to(dtype)
