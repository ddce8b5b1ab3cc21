"""The transport-map kernel: gradients as what features are to be carried to."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim.sketch.kernels import kernel_similarity, positive_root
from lightning_sim.sketch.sketch import Sketch

__all__ = ["TransportMap", "transport_map_kernel"]


def transport_map_kernel(features: Sketch, gradients: Sketch) -> Tensor:
    r"""The linear map that carries N(0, K_f) to N(0, K_g) at the least cost, itself a kernel over the buckets.

    .. math:: T = K_f^{-1/2} (K_f^{1/2} K_g K_f^{1/2})^{1/2} K_f^{-1/2}, \quad T K_f T = K_g

    with the kernels of the sketched, centred data and the pseudo-inverse on the directions in which features vary
    (there, T K_f T = K_g holds on the part of K_g that lies in them). It is not a kernel of single samples and has no
    sketch of its own, nor an unbiased estimate. Degree 1 in the gradients and -1 in the features.

    Cost: O(M^2 (k + M)) in float64.

    Args:
        features: sketch of a layer's features.
        gradients: sketch of the gradients with respect to them, of the same samples and sizes.

    Returns:
        (M, M) in float64, positive semidefinite.

    Raises:
        ValueError: when the sketches are not of the same samples, seed and sizes.

    References:
        Tang et al. 2020, *Similarity of Neural Networks with Gradients*, section 4, eq. (3).
    """
    features.require_comparable(gradients)
    kernel = features.kernel()
    # In directions that features do not vary in, the inverse would make much of what rounding left there.
    share = 4 * torch.finfo(features.dtype).eps * features.raw_share if features.problem() is None else 0.0
    rounding = share**2 * float(kernel.trace())
    root, inverse = (positive_root(kernel, power, rounding=rounding) for power in (0.5, -0.5))
    return inverse @ positive_root(root @ gradients.kernel() @ root) @ inverse


class TransportMap:
    """The transport map of one layer, as something that can be compared like a sketch.

    Args:
        features: sketch of a layer's features.
        gradients: sketch of the gradients with respect to them.
    """

    def __init__(self, features: Sketch, gradients: Sketch) -> None:
        self.features = features
        self.gradients = gradients
        self._kernel: Tensor | None = None

    def kernel(self) -> Tensor:
        """:func:`transport_map_kernel`, computed once."""
        if self._kernel is None:
            self._kernel = transport_map_kernel(self.features, self.gradients)
        return self._kernel

    def problem(self) -> str | None:
        """Why no similarity can be computed, in words, or None."""
        return self.features.problem() or self.gradients.problem()

    def cka(self, other: TransportMap) -> Tensor:
        """CKA of the two kernels; it is biased, and there is no other estimate."""
        return self._similarity(other, "cka")

    def nbs(self, other: TransportMap) -> Tensor:
        """NBS of the two kernels."""
        return self._similarity(other, "nbs")

    def rows(self) -> Tensor:
        """Refused: the map is no kernel of single samples."""
        raise ValueError("a transport map has no features of single samples, which functions of them need")

    def _similarity(self, other: TransportMap, measure: str) -> Tensor:
        self.features.require_comparable(other.features)
        mine = self.kernel()
        return kernel_similarity(mine, other.kernel().to(mine.device), measure)
