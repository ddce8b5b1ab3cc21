"""Comparing sketches of different samples, as Tang et al. 2020 do across datasets."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_sim.sketch.kernels import kernel_similarity
from lightning_sim.sketch.sketch import Sketch

__all__ = ["compare_unpaired"]


def compare_unpaired(a: Sketch, b: Sketch, *, measure: Literal["cka", "nbs"] = "nbs") -> Tensor:
    r"""CKA or NBS of the bucket kernels of two networks on two datasets, of any numbers of samples.

    Each side is sketched to the same number M of buckets with a hash of its own, and the M x M kernels are compared
    as if bucket m of one belonged to bucket m of the other (Tang et al. 2020, section 5).

    **What the number means.** Nothing relates the buckets of one side to those of the other: they are random
    combinations of unrelated samples. Which directions the two representations share, and what they say about which
    sample, can therefore not enter. In expectation the number depends on M and on the two spectra alone, the
    eigenvalues of the two covariances. For CKA of linear kernels, with the effective dimension
    :math:`d = (tr C)^2 / tr C^2` of covariance C,

    .. math:: E[CKA] \approx \left((1 + M / d_a)(1 + M / d_b)\right)^{-1/2}

    It compares how many directions are used and how evenly, not what for.

    **What it does not mean.** It is not 1 for a network compared with itself under another hash, and not 0 for
    unrelated networks; values of different M are not comparable; a higher value says that spectra are flatter, not
    that networks or datasets are more alike. To compare what two networks compute, give both the same samples and
    use :meth:`lightning_sim.Sketch.cka`.

    Range: [0, 1] (CKA of kernels that are not centred exactly may leave it slightly). There is no unbiased version:
    with nothing paired its expectation is zero.

    Args:
        a: sketch of one network on one dataset.
        b: sketch of another on another, with another seed and the same number of buckets.
        measure: ``"cka"`` (biased) or ``"nbs"``.

    Returns:
        Scalar in float64; NaN where one side holds NaN or has no variance.

    Raises:
        ValueError: for different numbers of buckets, or the same seed: equal hashes would pair samples that happen to
            have equal ids.

    Example:
        >>> import torch
        >>> from lightning_sim.sketch import Sketch, compare_unpaired
        >>> draw = torch.Generator().manual_seed(0)
        >>> a, b = Sketch(num_buckets=64, seed=1), Sketch(num_buckets=64, seed=2)
        >>> a.update(torch.randn(500, 32, generator=draw), torch.arange(500))
        >>> b.update(torch.randn(700, 32, generator=draw), torch.arange(700))
        >>> round(float(compare_unpaired(a, b, measure="cka")), 1)  # unrelated, both of 32 even directions
        0.3
    """
    if a.num_buckets != b.num_buckets:
        raise ValueError(f"sketches of different `num_buckets`, {a.num_buckets} and {b.num_buckets}")
    if a.seed == b.seed:
        raise ValueError(
            f"both sketches have `seed` {a.seed}, so that samples of equal ids are paired: for the same samples use "
            "Sketch.cka, for different ones sketch each with a seed of its own"
        )
    kernels = a.kernel(), b.kernel().to(a.device)
    if a.problem() is not None or b.problem() is not None:  # of a constant, rounding would pass for a kernel
        return torch.full((), torch.nan, dtype=torch.float64, device=a.device)
    return kernel_similarity(*kernels, measure)
