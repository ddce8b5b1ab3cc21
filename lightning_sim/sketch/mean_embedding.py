"""Norm of the kernel mean embedding from a sketch: how far the samples agree on where to go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from lightning_sim._checks import check_choice
from lightning_sim.sketch.sketch import Sketch
from lightning_sim.sketch.tang2020 import Tang2020Sketch

__all__ = ["mean_embedding_norm"]


def mean_embedding_norm(sketch: Sketch, *, normalization: Literal["diagonal", "frobenius"] | None = None) -> Tensor:
    r"""Length of the mean of the sketched samples in the space of their kernel, nothing centred.

    What :func:`lightning_sim.functional.kernel_mean_embedding_norm` computes from the samples: :math:`\|\mu\|`; with
    `normalization` ``"diagonal"`` :math:`\|\mu\| / \sqrt{\frac{1}{n} \sum_i K_{ii}}`, and with ``"frobenius"``
    :math:`\sum_{ij} K_{ij} / (n \|K\|_F)`. A sketch with gradients gives that of the product kernel.

    **Exact** to rounding while the sketch is. Beyond, each of these three is unbiased over seeds and orders of the
    samples, with the folds'
    means :math:`\mu_1, \mu_2` and kernels :math:`\tilde K_1, \tilde K_2` of the M buckets:

    - :math:`\|\mu\|^2` by the mean of :math:`\|\mu_1\|^2` and :math:`\|\mu_2\|^2`, as folds keep inner products;
    - :math:`\sum_i K_{ii}` by the mean of the traces, as random signs cancel what different samples in a bucket share;
    - :math:`\|K\|_F^2` by :math:`\langle \tilde K_1, \tilde K_2 \rangle`: its entries :math:`a \ne b` hold the pairs of
      samples in different buckets, and stand for those in one bucket, a share :math:`\pi \approx 1 / M`, as well. The
      diagonal has the expectation :math:`(1 - \pi) \sum_i K_{ii}^2 + \pi (\sum_i K_{ii})^2 + 2 \pi \sum_{i \ne j}
      K_{ij}^2`, from which follows the first sum.

    Their roots and ratios are up to terms of the second order. The share :math:`\pi` is that of consecutive sample ids;
    with hashed ones, as of tokens, :math:`\|K\|_F` may be off by 1 / (2 M) of itself.

    Range: at least 0; normalised in [0, 1]. Biased upwards by 1 / n like the measure itself: compare values of one n.

    Cost: O(M k^2) for ``"frobenius"``, else O(M k).

    Args:
        sketch: of features, or of features and gradients.
        normalization: None, ``"diagonal"`` or ``"frobenius"``.

    Returns:
        Scalar of the sketch's dtype; NaN where it holds NaN features, and normalised where all samples are zero.

    Raises:
        ValueError: for a sketch without samples, a :class:`lightning_sim.sketch.Tang2020Sketch`, which keeps no sum of
            the samples, or an unknown normalization.

    References:
        Tang et al. 2020, *Similarity of Neural Networks with Gradients*, eq. 18, 19 and 48.

    Example:
        >>> import torch
        >>> from lightning_sim.sketch import Sketch, mean_embedding_norm
        >>> sketch = Sketch()
        >>> sketch.update(torch.tensor([[3.0, 1.0], [3.0, -1.0]]), torch.arange(2))
        >>> mean_embedding_norm(sketch)
        tensor(3.)
    """
    check_choice(normalization, "normalization", (None, "diagonal", "frobenius"))
    if isinstance(sketch, Tang2020Sketch):
        raise ValueError("a sketch as published keeps no sum of the samples; make a Sketch for their mean embedding")
    if not sketch.count:
        raise ValueError("the mean embedding needs at least 1 sample, the sketch holds none")
    squared, trace, squared_frobenius = (_of_factors if sketch.keeps_factors else _of_folds)(sketch)
    if normalization is None:
        value = squared.sqrt()
    elif normalization == "diagonal":
        value = (squared * sketch.count / trace).clamp_max(1).sqrt()
    else:
        value = (squared * sketch.count / squared_frobenius().sqrt()).clamp_max(1)
    return value.to(sketch.dtype)


def _of_factors(sketch: Sketch) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    """Squared length of the mean, trace of the kernel and its squared Frobenius norm, where the kernel is exact."""
    product = sketch.product()
    return product.mean, product.uncentered_trace, lambda: product.uncentered().square().sum()


def _of_folds(sketch: Sketch) -> tuple[Tensor, Tensor, Callable[[], Tensor]]:
    folds, ones, means = sketch.uncentered()
    first, second = folds[0].double(), folds[-1].double()
    trace = (first.square().sum() + second.square().sum()) / 2
    return means.square().sum() / len(means), trace, lambda: _squared_frobenius(first, second, ones, sketch)


def _squared_frobenius(first: Tensor, second: Tensor, ones: Tensor, sketch: Sketch) -> Tensor:
    n = sketch.count
    whole = (first.T @ second).square().sum()  # <XX', YY'> = ||X'Y||^2
    if int(ones.count_nonzero()) == n:  # every sample has a bucket of its own
        return whole
    traces = first.square().sum(1), second.square().sum(1)
    diagonal = traces[0] @ traces[1]
    full, rest = divmod(n, sketch.num_buckets)
    together = full * (full - 1) * (sketch.num_buckets - rest) + (full + 1) * full * rest
    share = together / (n * (n - 1))
    between = (whole - diagonal) / (1 - share)
    squared_trace = traces[0].sum() * traces[1].sum()
    own = (diagonal - share * squared_trace - 2 * share * between) / (1 - share)
    return between + own.clamp_min(squared_trace / n)
