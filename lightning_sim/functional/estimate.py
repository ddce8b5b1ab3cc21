"""Values with the standard errors that other samples of the same kind would show."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from lightning_sim._centering import center_columns, unit_scale
from lightning_sim._checks import check_choice, check_logits, check_pair
from lightning_sim.functional.centered_kernel_alignment import centered_kernel_alignment
from lightning_sim.functional.error_consistency import error_consistency, kappa_influences, right
from lightning_sim.functional.hsic import row_sums
from lightning_sim.functional.normalized_bures_similarity import normalized_bures_similarity
from lightning_sim.functional.outputs import (
    jensen_shannon_divergence,
    per_sample_agreement,
    per_sample_divergence,
    per_sample_rank_correlation,
    prediction_agreement,
    rank_correlation,
)

__all__ = [
    "Estimate",
    "alignment_influences",
    "bures_influences",
    "bures_parts",
    "estimate",
    "polar_directions",
    "standard_error",
]

EstimatedMeasure = Literal["cka", "nbs", "agreement", "jsd", "rank_correlation", "error_consistency"]

_OF_LOGITS = {
    "agreement": (prediction_agreement, per_sample_agreement),
    "jsd": (jensen_shannon_divergence, per_sample_divergence),
    "rank_correlation": (rank_correlation, per_sample_rank_correlation),
}


class Estimate(NamedTuple):
    """A value and how far it would move on other samples of the same kind.

    Attributes:
        value: of the measure.
        standard_error: the standard deviation of the value over draws of as many samples, estimated from this one;
            value +- 1.96 standard errors covers the mean over such draws in about 95 of 100. It is of other samples,
            not of other trainings. NaN where the value is.
    """

    value: Tensor
    standard_error: Tensor

    @classmethod
    def of(cls, value: Tensor, influences: Tensor) -> Estimate:
        """From the influences (n,) on the value; see `standard_error`."""
        return cls(value, standard_error(influences).to(value.dtype))


def estimate(x: Tensor, y: Tensor, *, measure: EstimatedMeasure = "cka", labels: Tensor | None = None) -> Estimate:
    r"""A measure of two networks on the same samples, with the standard error of its value.

    $SE = \sqrt{\frac{n}{n - 1} \sum_i e_i^2}$ with the influence $e_i$ of every sample on the value, which follows from
    what the value is computed from, without resampling (infinitesimal jackknife):

    - CKA (linear, unbiased): with U-centred kernels A, B and the row sums $a_i = \sum_j A_{ij} B_{ij}$,
      $b_i = \sum_j A_{ij}^2$, $c_i = \sum_j B_{ij}^2$,
      $e_i = CKA \, (2 a_i / \sum a - b_i / \sum b - c_i / \sum c)$;
    - NBS: with $x^T y = U S V^T$ of centred data,
      $e_i = NBS \, (x_i^T U V^T y_i / \|x^T y\|_* - |x_i|^2 / (2 |x|^2) - |y_i|^2 / (2 |y|^2))$. The bias of NBS for
      few samples is not in it: the interval is around the mean at this n;
    - means over samples (agreement, JSD in nats, rank correlation): the standard deviation over $\sqrt n$;
    - error consistency: the derivative of kappa by the shares it is computed from.

    The same is given by `estimate` of the metrics and of `lightning_sim.Sketch`, in this same form. Coverage of
    +-1.96 standard errors measured on features of digits over 200 draws: 0.94 to 0.98.

    Shapes: `x` (n, p1), `y` (n, p2), or logits (n, classes) twice. Cost beside the value: CKA O(n^2 (p1 + p2)) time
    and blocks of fixed size; NBS as the value; others O(n classes).

    Args:
        x: representation of n samples, or the logits of one network.
        y: another of the same samples in the same order.
        measure: "cka", "nbs", "agreement", "jsd", "rank_correlation" or "error_consistency".
        labels: (n,), the right classes, for "error_consistency".

    Returns:
        `Estimate` of two scalars, the value as the function of that measure gives it, with its warning where it is NaN.

    Raises:
        ValueError: as the function of the measure does, and for an unknown measure.

    References:
        Efron 1982, "The jackknife, the bootstrap and other resampling plans", chapter 6. Song et al. 2012 (HSIC_1).

    Example:
        >>> import torch
        >>> from lightning_sim.functional import estimate
        >>> x, noise = torch.randn(2, 200, 8, generator=torch.Generator().manual_seed(0))
        >>> found = estimate(x, x + noise)
        >>> print(f"{found.value:.2f} ± {found.standard_error:.2f}")
        0.53 ± 0.02
    """
    check_choice(measure, "measure", ("cka", "nbs", *_OF_LOGITS, "error_consistency"))
    if measure == "error_consistency":
        found = error_consistency(x, y, cast(Tensor, labels))  # which refuses None
        return Estimate.of(found.value, kappa_influences(*right(x, y, cast(Tensor, labels)), found) / len(x))
    if measure in _OF_LOGITS:
        function, per_sample = _OF_LOGITS[measure]
        value, samples = function(x, y), per_sample(*check_logits(x, y)).detach()
        samples = samples[~samples.isnan()]
        return Estimate.of(value, (samples - samples.mean()) / len(samples))
    value = centered_kernel_alignment(x, y) if measure == "cka" else normalized_bures_similarity(x, y)
    if bool(value.isnan()):
        return Estimate(value, torch.full_like(value, torch.nan))
    a, b = (unit_scale(center_columns(z.detach())) for z in check_pair(x, y))
    influences = alignment_influences(*row_sums(a, b)) if measure == "cka" else bures_influences(a, b)
    return Estimate.of(value, influences)


def standard_error(influences: Tensor) -> Tensor:
    r"""$\sqrt{\frac{n}{n - 1} \sum_i e_i^2}$ of the influences (..., n) of n samples on a value; NaN for one sample."""
    n = influences.shape[-1]
    return torch.sqrt(influences.square().sum(-1) * (n / (n - 1) if n > 1 else torch.nan))


def alignment_influences(cross: Tensor, self_x: Tensor, self_y: Tensor) -> Tensor:
    """On the ratio sum cross / sqrt(sum self_x sum self_y) of row sums (..., n)."""
    norms = self_x.sum(-1, keepdim=True), self_y.sum(-1, keepdim=True)
    scale = (norms[0] * norms[1]).sqrt()
    return 2 * cross / scale - cross.sum(-1, keepdim=True) / scale * (self_x / norms[0] + self_y / norms[1])


def bures_influences(a: Tensor, b: Tensor) -> Tensor:
    """On the NBS of centred (n, p1) and (n, p2), (n,)."""
    # Of representations wider than samples, coordinates in their own row space.
    a, b = (torch.linalg.qr(z.T, mode="r").R.T if z.shape[1] > z.shape[0] else z for z in (a, b))
    u, v = polar_directions(a, b)
    return bures_parts((a @ u) * (b @ v), a, b, dim=1)


def bures_parts(products: Tensor, a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Influences of the rows (`dim` 1) or columns (`dim` 0) whose products sum to the nuclear norm of a' b."""
    norm_a, norm_b = torch.linalg.vector_norm(a), torch.linalg.vector_norm(b)
    parts = products.sum(dim) / (norm_a * norm_b)
    shares = a.square().sum(dim) / norm_a.square() + b.square().sum(dim) / norm_b.square()
    influences: Tensor = parts - parts.sum() * shares / 2
    return influences


def polar_directions(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """U (p1, r) and V (p2, r) of a' b = U S V', from eigenvectors of its square; without values that are rounding."""
    if a.shape[1] < b.shape[1]:
        v, u = polar_directions(b, a)
        return u, v
    product = a.T @ b
    squares, v = torch.linalg.eigh(product.T @ product)
    above = squares > len(squares) * torch.finfo(squares.dtype).eps * squares[-1]
    v = v[:, above]
    return product @ (v / squares[above].sqrt()), v
