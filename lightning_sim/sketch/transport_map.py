"""The transport-map kernel: gradients as what features are to be carried to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_sim.sketch.kernels import kernel_similarity, positive_root
from lightning_sim.sketch.sketch import Sketch

__all__ = ["transport_map_kernel", "transport_map_matrix"]


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


def transport_map_matrix(
    rows: Sequence[tuple[Sketch, Sketch]], columns: Sequence[tuple[Sketch, Sketch]], measure: str = "cka"
) -> Tensor:
    """CKA (biased) or NBS of the transport-map kernels of every row with those of every column.

    Args:
        rows: A pairs of features and gradients.
        columns: B pairs, of the same samples.
        measure: ``"cka"`` or ``"nbs"``.

    Returns:
        (A, B); NaN where `Sketch.problem` has something to say about one of the four.

    Raises:
        ValueError: when the sketches cannot be compared.
    """
    for pair in (*rows, *columns):
        rows[0][0].require_comparable(pair[0])
    usable = {id(pair): all(sketch.problem() is None for sketch in pair) for pair in (*rows, *columns)}
    kernels = {id(pair): transport_map_kernel(*pair) for pair in (*rows, *columns) if usable[id(pair)]}
    values = torch.full((len(rows), len(columns)), torch.nan, dtype=torch.float64, device="cpu")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if usable[id(row)] and usable[id(column)]:
                values[i, j] = kernel_similarity(kernels[id(row)], kernels[id(column)], measure)
    return values
