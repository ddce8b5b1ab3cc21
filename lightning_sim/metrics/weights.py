"""Similarity of two networks of dense layers from their weights, accumulated layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sim._arguments import check_integer, check_names, described
from lightning_sim._centering import undefined
from lightning_sim._checks import check_flag, check_matrix
from lightning_sim.functional.open_gates import OpenGateKernels, open_gate_alignment, open_gate_kernels
from lightning_sim.functional.weights import weight_centered_kernel_alignment
from lightning_sim.metrics._summed_metric import SummedMetric

__all__ = ["WeightCenteredKernelAlignment"]

_SIDES = ("a", "b")


class WeightCenteredKernelAlignment(SummedMetric):
    r"""Linear CKA of the chained weights of two networks of dense layers (wCKA), given layer by layer.

    .. math:: wCKA_{ij} = \frac{\|P_i^T Q_j\|_F^2}{\|P_i^T P_i\|_F \|Q_j^T Q_j\|_F},
        \quad P_i = W_1 W_2 \cdots W_i

    with the products of one network and Q_j likewise of the other, columns centred. No data is needed; activations
    and biases do not enter. In [0, 1]. See `lightning_sim.functional.weight_centered_kernel_alignment` for invariances
    and bias, and for whole networks at once. Given the shape of an input, for two modules of any layers instead, with
    every gate open: ``update(network_a, network_b)`` adds the matrix of two networks, and ``compute`` returns the mean.

    The states are the weights themselves, zero until they are given, so they are sums as well: layers held by
    different ranks come together, and layers held by all ranks are multiplied by the number of ranks, which does not
    change the value, nor does a layer given twice. Two different weights for one layer are averaged: call `reset`
    between checkpoints. State: the weights of both networks, in float64; ``compute`` costs O(d_0 d_i d_j) for every
    pair of layers.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``weight_a`` (:class:`~torch.Tensor` or None): a layer of one network, input-major, of shape ``(d_in, d_out)``
      (:class:`torch.nn.Linear` stores the transpose). None where that network has no such layer.
    - ``weight_b`` (:class:`~torch.Tensor` or None): the same of the other network.
    - ``layer`` (int, optional): which layer it is, from 0; the one after the last that this process was given if None.

    As output of ``forward`` and ``compute`` the metric returns:

    - ``wcka`` (:class:`~torch.Tensor`): a float64 matrix (layers of a, layers of b), not differentiable, of the layers
      so far (``forward`` as well, since a layer alone has no value); NaN where a layer up to there is missing, with a
      warning in ``compute``, and for chains without variance over the inputs, with a warning.

    Args:
        widths_a: d_0, d_1, ... of one network: the width of its inputs, then the outputs of every layer.
        widths_b: the same of the other network, whose inputs have the same width; `widths_a` if None.
        center: centre the columns of the products over the input coordinates.
        input_shape: of one input; networks are given then, and no widths.
        layers_a: the names of the layers of one network, with an input shape.
        layers_b: the same of the other network; `layers_a` if None.
        coordinates: see :func:`lightning_sim.functional.open_gate_kernels`, as for `seed`.
        seed: of the sums of coordinates.
        kwargs: see :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for widths that describe no layer or differ at the inputs; in ``update``, for a layer that does not
            exist and for a weight that is not a finite floating-point matrix of that layer's shape.

    References:
        Linear CKA: Kornblith et al. 2019, eq. 4, of weights chained from the inputs on.

    Example:
        >>> import torch
        >>> from lightning_sim.metrics import WeightCenteredKernelAlignment
        >>> generator = torch.Generator().manual_seed(0)
        >>> metric = WeightCenteredKernelAlignment((8, 16, 4))
        >>> for shape in ((8, 16), (16, 4)):
        ...     weight = torch.randn(*shape, generator=generator)
        ...     metric.update(weight, 3 * weight)
        >>> print(f"{metric.compute()[-1, -1]:.4f}")
        1.0000
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    weight_a_0: Tensor
    given_a: Tensor
    _goes_on = False  # layers that are still to come are not missed

    def __init__(
        self,
        widths_a: Sequence[int] | None = None,
        widths_b: Sequence[int] | None = None,
        *,
        center: bool = True,
        input_shape: Sequence[int] | None = None,
        layers_a: Sequence[str] | None = None,
        layers_b: Sequence[str] | None = None,
        coordinates: int | None = 64,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        check_flag(center, "center")
        super().__init__(**kwargs)
        self._center = center
        self._open_gates: dict[str, Any] | None = None
        if input_shape is not None:
            names = {"a": check_names(layers_a, "layers_a", '["conv1", "fc"]')}
            names["b"] = names["a"] if layers_b is None else check_names(layers_b, "layers_b", '["conv1", "fc"]')
            self._layers = names
            self._open_gates = {"input_shape": input_shape, "coordinates": coordinates, "seed": seed, "center": center}
            shape = len(names["a"]), len(names["b"])
            self.add_state("weight_a_0", torch.zeros(shape, dtype=torch.float64), "sum")  # the matrices
            self.add_state("given_a", torch.zeros((), dtype=torch.int64), "sum")  # how many
            return
        self._widths = {"a": _checked_widths(widths_a, "widths_a")}
        self._widths["b"] = self._widths["a"] if widths_b is None else _checked_widths(widths_b, "widths_b")
        if self._widths["a"][0] != self._widths["b"][0]:
            raise ValueError(
                f"`widths_a` and `widths_b` must begin with the same width of the inputs, got {self._widths['a']} and "
                f"{self._widths['b']}"
            )
        for side, widths in self._widths.items():
            for layer, shape in enumerate(itertools.pairwise(widths)):
                self.add_state(f"weight_{side}_{layer}", torch.zeros(shape, dtype=torch.float64), "sum")
            self.add_state(f"given_{side}", torch.zeros(len(widths) - 1, dtype=torch.int64), "sum")

    def update(
        self, weight_a: Tensor | nn.Module | None, weight_b: Tensor | nn.Module | None, layer: int | None = None
    ) -> None:
        """Add one layer of each network, or with an input shape two networks."""
        if self._open_gates is not None:
            kernels = [self._kernels(network, side) for side, network in zip(_SIDES, (weight_a, weight_b), strict=True)]
            self.weight_a_0 = self.weight_a_0 + open_gate_alignment(*kernels)[0].to(self.weight_a_0)
            self.given_a = self.given_a + 1
            return
        if layer is None:
            layer = max(_last(getattr(self, f"given_{side}")) for side in _SIDES) + 1
        layer = check_integer(layer, "layer", least=0)
        weights = {
            side: self._checked(weight, side, layer)
            for side, weight in zip(_SIDES, (weight_a, weight_b), strict=True)
            if weight is not None
        }
        if not weights:
            raise ValueError("`weight_a` or `weight_b` must be given, got None for both")
        for side, weight in weights.items():
            state, given = f"weight_{side}_{layer}", f"given_{side}"
            setattr(self, state, getattr(self, state) + weight)
            one = torch.nn.functional.one_hot(torch.tensor(layer), len(getattr(self, given)))
            setattr(self, given, getattr(self, given) + one.to(weight.device))

    def compute(self) -> Tensor:
        """The matrix of the layers so far, or the mean of the matrices."""
        if self._open_gates is not None:
            if not int(self.given_a):
                return undefined("no networks were given", self.weight_a_0).expand_as(self.weight_a_0)
            return self.weight_a_0 / self.given_a
        chains = [self._chain(side) for side in _SIDES]
        value = self.weight_a_0.new_full([len(self._widths[side]) - 1 for side in _SIDES], torch.nan)
        if not all(chains):
            missing = " and ".join(f"`weight_{s}`" for s, chain in zip(_SIDES, chains, strict=True) if not chain)
            undefined(f"the first layer of {missing} was not given", value)
            return value
        ends = [
            f"layer {len(chain)} of `weight_{side}`"
            for side, chain in zip(_SIDES, chains, strict=True)
            if len(chain) < len(self._widths[side]) - 1
        ]
        if ends and not self._goes_on:
            undefined(f"{' and '.join(ends)} was not given, and what follows on it has no product", value)
        value[: len(chains[0]), : len(chains[1])] = weight_centered_kernel_alignment(*chains, center=self._center)
        return value

    def forward(
        self, weight_a: Tensor | nn.Module | None, weight_b: Tensor | nn.Module | None, layer: int | None = None
    ) -> Tensor:
        """Add one layer of each network, and return the matrix of the layers so far."""
        self.update(weight_a, weight_b, layer)
        self._to_sync, self._goes_on = self.dist_sync_on_step, True
        try:
            value: Tensor = self.compute()
        finally:
            self._to_sync, self._computed, self._goes_on = self.sync_on_compute, None, False
        self._forward_cache = value  # type: ignore[assignment]  # torchmetrics declares None
        return value

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any | None = None) -> Any:
        """Plot a matrix as a picture, or the whole chains of a sequence of matrices over steps; needs matplotlib.

        Args:
            val: what `compute` or `forward` returned, or a sequence of these; `compute()` if None.
            ax: matplotlib axes to draw on; new ones if None.

        Returns:
            The figure (None where `ax` was given) and the axes.
        """
        val = self.compute() if val is None else val
        if not isinstance(val, Tensor):
            return self._plot([matrix[-1, -1] for matrix in val], ax)
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots() if ax is None else (None, ax)
        image = axes.imshow(val.detach().cpu().numpy(), vmin=0, vmax=1, origin="lower")
        axes.figure.colorbar(image, ax=axes, label=type(self).__name__)
        axes.set_xlabel("layer of b")
        axes.set_ylabel("layer of a")
        return figure, axes

    def _kernels(self, network: object, side: str) -> OpenGateKernels:
        if not isinstance(network, nn.Module):
            raise ValueError(f"`weight_{side}` must be a torch.nn.Module with `input_shape`, got {described(network)}")
        found = open_gate_kernels(network, layers=self._layers[side], **(self._open_gates or {}))
        order = [found.layers.index(name) for name in self._layers[side]]  # as they were named
        return found._replace(layers=self._layers[side], kernels=found.kernels[order])

    def _checked(self, weight: object, side: str, layer: int) -> Tensor:
        name, widths = f"weight_{side}", self._widths[side]
        weight = check_matrix(weight, name, form="(d_in, d_out)").detach()  # type: ignore[arg-type]
        if layer > len(widths) - 2:
            raise ValueError(
                f"`{name}` must be one of layers 0 to {len(widths) - 2}, got layer {layer}; give None where a network "
                "has fewer layers, and call reset() before the next checkpoint"
            )
        if tuple(weight.shape) != widths[layer : layer + 2]:
            raise ValueError(
                f"`{name}` must have shape {widths[layer : layer + 2]} for layer {layer}, input-major, got "
                f"{tuple(weight.shape)}; torch.nn.Linear stores the transpose"
            )
        return weight

    def _chain(self, side: str) -> list[Tensor]:
        """The weights of one network up to the first that is missing."""
        given = [*getattr(self, f"given_{side}").tolist(), 0]
        return [getattr(self, f"weight_{side}_{layer}") for layer in range(given.index(0))]


def _checked_widths(widths: object, name: str) -> tuple[int, ...]:
    if not isinstance(widths, list | tuple) or len(widths) < 2:
        raise ValueError(
            f"`{name}` must hold the width of the inputs and of the outputs of every layer, got {widths!r}"
        )
    return tuple(check_integer(width, f"{name}[{place}]", least=1) for place, width in enumerate(widths))


def _last(given: Tensor) -> int:
    """The last layer given, -1 for none."""
    return max((layer for layer, times in enumerate(given.tolist()) if times), default=-1)
