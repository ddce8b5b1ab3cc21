"""Centred kernel alignment, accumulated over batches and ranks."""

from __future__ import annotations

from typing import Any, Literal, cast

from torch import Tensor

from lightning_sim._arguments import warn_renamed
from lightning_sim._checks import check_choice, check_flag
from lightning_sim.functional.estimate import Estimate
from lightning_sim.functional.hsic import Estimator
from lightning_sim.metrics._central_moments import CentralMoments
from lightning_sim.metrics._minibatch_terms import MinibatchTerms
from lightning_sim.metrics._pair_metric import PairMetric
from lightning_sim.metrics._sketched_pair import SketchedPair

__all__ = ["CenteredKernelAlignment"]

_WAYS = ("sketch", "exact", "minibatch")


class CenteredKernelAlignment(PairMetric):
    r"""Linear CKA of two representations of the same samples: 1 when they arrange the samples alike.

    .. math:: CKA = \frac{HSIC(K, L)}{\sqrt{HSIC(K, K) \, HSIC(L, L)}}, \quad K = X X^T, \; L = Y Y^T

    over all samples of all batches and ranks, with HSIC_1 (unbiased, in [-1, 1] and around 0 for unrelated
    representations) or the biased HSIC (in [0, 1], grows towards 1 with width / samples). Invariant to orthogonal
    maps, translations and isotropic scaling of either side. `lightning_sim.functional.centered_kernel_alignment` is
    the same of samples that are all at hand, and differentiable.

    The n x n kernels are never formed. `accumulate` says what is summed instead:

    - "sketch": the sums of two `lightning_sim.Sketch`, for widths that need not be known. Exact, in any split into
      batches, metrics and ranks and in any order, while all samples together are at most `num_buckets` and both
      widths at most `num_projections`; beyond, an estimate whose error falls with both sizes (at the defaults, a
      standard deviation of 0.005 for 10,000 samples of 2560 features). State: M (2 k + 1) floats for M buckets and
      k projections, 8.4 MB at the defaults; an update costs one pass over the features and one over the state,
      `compute` O(M^2 k).
    - "exact": cross-covariances in float64, for narrow layers. Exact in any split and order; samples may have means
      far larger than their variance. State: p (p + 4) + 5 numbers, p the sum of the widths; an update of n samples
      costs O(n p^2), `compute` O(p^2).
    - "minibatch": the HSIC_1 terms of every batch and their products, 15 numbers. Every batch of at least 4 samples
      counts equally, smaller ones not at all: the value depends on how the samples are divided into batches, but as an
      estimate of HSIC_1 not its expectation. An update costs O(n^2 p) or O(n p^2).

    `estimate` gives the standard error as well: of samples with "sketch" (see `lightning_sim.Sketch.estimate`), of
    batches with "minibatch"; "exact" sums too little for one.

    Samples need no ids: they are counted, and parts that counted by themselves (on other ranks, in metrics that are
    merged) are told apart when they are added. Give `sample_ids` where the value must be the same to rounding in any
    split beyond `num_buckets` as well.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``x`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, p1)``.
    - ``y`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, p2)``, the same samples row by row. Batches
      without samples are allowed.
    - ``sample_ids`` (:class:`~torch.Tensor`, optional): n integers, unique over all batches and ranks; given with
      every batch or with none. Only "sketch" looks at them. Two samples collide when their ids are equal modulo
      `num_buckets`, so consecutive ids do not while there are buckets.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``cka`` (:class:`~torch.Tensor`): a scalar, float32 for "sketch" (float64 after ``set_dtype(torch.float64)``)
      and float64 else, not differentiable. NaN with a warning for fewer than 4 samples (2 for "exact" when biased),
      and for a side without variance, which the warning names.

    Args:
        accumulate: what to sum, "sketch", "exact" or "minibatch".
        estimator: of HSIC, "unbiased" or, for comparison with papers, "biased". With more samples than buckets,
            "sketch" adds the bias of the collisions to the latter.
        num_buckets: M, a power of two, for "sketch".
        num_projections: k, an even number, for "sketch".
        seed: of the hashes of "sketch".
        num_features_x: p1, for "exact": ranks without samples need it.
        num_features_y: p2, for "exact".
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for an unknown option, sizes that cannot work, the biased estimator with "minibatch", or "exact"
            without widths; in ``update``, unless both are finite floating-point matrices of the same number of rows
            and of the widths so far; in ``merge_state``, for a metric of other settings.

    References:
        Kornblith et al. 2019, "Similarity of neural network representations revisited", eq. 4. Song et al. 2012,
        eq. 5 (HSIC_1). Nguyen et al. 2021, eq. 2 (minibatches). Tang et al. 2020, Algorithm 1 (sketches).

    Example:
        >>> import torch
        >>> from lightning_sim.metrics import CenteredKernelAlignment
        >>> generator = torch.Generator().manual_seed(0)
        >>> metric = CenteredKernelAlignment()
        >>> for _ in range(10):
        ...     x = torch.randn(50, 16, generator=generator)
        ...     metric.update(x, 2 * x.flip(1) + 1)
        >>> print(f"{metric.compute():.4f}")
        1.0000
    """

    _sums: SketchedPair | CentralMoments | MinibatchTerms

    def __init__(
        self,
        accumulate: Literal["sketch", "exact", "minibatch"] = "sketch",
        *,
        estimator: Estimator = "unbiased",
        num_buckets: int = 1024,
        num_projections: int = 1024,
        seed: int = 0,
        num_features_x: int | None = None,
        num_features_y: int | None = None,
        **kwargs: Any,
    ) -> None:
        if accumulate == "sketch" and isinstance(estimator, str) and estimator in _WAYS:
            warn_renamed(f"estimator={estimator!r}", f"accumulate={estimator!r}")
            accumulate, estimator = cast(Any, estimator), "unbiased"
        if "biased" in kwargs:
            biased = kwargs.pop("biased")
            check_flag(biased, "biased")
            estimator = "biased" if biased else "unbiased"
            warn_renamed(f"biased={biased}", f"estimator={estimator!r}")
        check_choice(accumulate, "accumulate", _WAYS)
        check_choice(estimator, "estimator", ("unbiased", "biased"))
        if accumulate == "sketch":
            super().__init__(SketchedPair(num_buckets, num_projections, seed), **kwargs)
        elif accumulate == "exact":
            super().__init__(CentralMoments.of_widths(num_features_x, num_features_y), **kwargs)
        elif estimator == "biased":
            raise ValueError('`estimator` must be "unbiased" with `accumulate="minibatch"`, whose sums need such terms')
        else:
            super().__init__(MinibatchTerms(), **kwargs)
        self._estimator: Estimator = estimator

    def compute(self) -> Tensor:
        """The CKA of all samples so far."""
        return self._sums.cka(self._state(), self._estimator)

    def _estimate(self) -> Estimate:
        if isinstance(self._sums, CentralMoments):
            return super()._estimate()
        return self._sums.cka_estimate(self._state(), self._estimator)
