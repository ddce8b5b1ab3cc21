"""The linear map from one representation into another, accumulated over batches and ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim._checks import check_pair
from lightning_sim.functional.stitching import LinearMap, MapOptions, map_of_gram, stitching_gram
from lightning_sim.metrics._summed_metric import SummedMetric

__all__ = ["StitchingMap"]


class StitchingMap(SummedMetric):
    r"""The linear map of a kind that brings one representation closest to another, and its R2.

    The maps of :func:`lightning_sim.functional.stitching_map`, in float64, of all batches and ranks. State: one matrix
    $[1\ x\ y]^T [1\ x\ y]$ of (1 + p1 + p2)^2 numbers in float64, whatever the number of samples. Metrics merge and
    ranks all-reduce by adding it, which is exact, as averaging the maps of groups is not.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``x`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, num_features_x)``.
    - ``y`` (:class:`~torch.Tensor`): floating-point, of shape ``(n, num_features_y)``, the same samples row by row.
      Batches without samples are allowed.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``map`` (:class:`lightning_sim.functional.LinearMap`): weight, bias and R2 (of one number each, torchmetrics
      drops the dimensions).

    Args:
        num_features_x: p1; ranks without samples need it.
        num_features_y: p2.
        kwargs: `kind`, `rank`, `alpha`, `ridge` and `bias` as of :func:`lightning_sim.functional.stitching_map`; of the
            others see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for options that do not fit together; in ``update``, unless both are finite floating-point matrices
            of these widths and of the same number of rows.

    References:
        Csiszarik et al. 2021, "Similarity and matching of neural network representations", section 4.2.

    Example:
        >>> import torch
        >>> from lightning_sim.metrics import StitchingMap
        >>> generator = torch.Generator().manual_seed(0)
        >>> metric = StitchingMap(2, 2)
        >>> for _ in range(10):
        ...     x = torch.randn(50, 2, generator=generator)
        ...     metric.update(x, x @ torch.tensor([[2.0, 4.0], [3.0, 1.0]]) + 5)
        >>> weight, bias, r2 = metric.compute()
        >>> print(weight.T.numpy().round(4).tolist(), bias.numpy().round(4), f"{r2:.4f}")
        [[2.0, 3.0], [4.0, 1.0]] [5. 5.] 1.0000
    """

    gram: Tensor

    def __init__(self, num_features_x: int, num_features_y: int, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in MapOptions._fields if name in kwargs}
        super().__init__(**kwargs)
        named = (("num_features_x", num_features_x), ("num_features_y", num_features_y))
        self._widths = tuple(check_integer(value, name, least=1) for name, value in named)
        self._options = MapOptions(**options).checked()
        size = 1 + sum(self._widths)
        self.add_state("gram", torch.zeros(size, size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Tensor, y: Tensor) -> None:
        """Add a batch of samples."""
        x, y = check_pair(x, y, minimum_rows=0)
        if (x.shape[1], y.shape[1]) != self._widths:
            shapes = f"`x` {tuple(x.shape)} and `y` {tuple(y.shape)}"
            raise ValueError(f"`x` and `y` must have {self._widths} columns, as announced, got shapes {shapes}")
        self.gram = self.gram + stitching_gram(x.detach(), y.detach()).to(self.gram)

    def compute(self) -> LinearMap:
        """The map of all samples so far."""
        return map_of_gram(self.gram, self._widths[0], self._options)
