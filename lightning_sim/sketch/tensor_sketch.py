"""Tensor sketch: few columns whose inner products are those of outer products that are never formed."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim.sketch.folding import fold_into, num_folds
from lightning_sim.sketch.hashing import shuffled_columns

__all__ = ["tensor_sketch"]


def tensor_sketch(features: Tensor, gradients: Tensor, num_projections: int, seed: int, dtype: torch.dtype) -> Tensor:
    r"""Columns with the product kernel as inner product, :math:`\langle f, f' \rangle \langle g, g' \rangle`.

    That is the inner product of the outer products f (x) g, of width p_f p_g. A signed fold of such a product is the
    circular convolution of signed folds of its factors, which the FFT turns into a product: O(p + k log k) a row.
    As in :func:`lightning_sim.sketch.folding.fold`, two independent halves are kept, so that a product of one with the
    other has the right expectation even where squares of either are inflated by noise.

    Args:
        features: (b, p_f), floating-point.
        gradients: (b, p_g), floating-point.
        num_projections: k. Products of width p_f p_g <= k are formed, and exact.
        seed: chooses signs and order of the columns.
        dtype: of the result, float32 or float64.

    Returns:
        (1, b, p_f p_g) while that is at most k, else (2, b, k / 2).

    References:
        Pham & Pagh 2013, *Fast and scalable polynomial kernels via explicit feature maps*.
    """
    if num_folds(features.shape[1] * gradients.shape[1], num_projections) == 1:
        return torch.einsum("bi,bj->bij", features.to(dtype), gradients.to(dtype)).flatten(1)[None]
    columns = num_projections // 2
    # Numbers below 2 are the folds of features alone.
    f = fold_into(features, columns, (2, 3), seed, dtype)
    g = fold_into(gradients, columns, (4, 5), seed, dtype)
    return torch.stack([_convolved(f[index], g[index], columns, index, seed) for index in range(2)])


def _convolved(f: Tensor, g: Tensor, columns: int, index: int, seed: int) -> Tensor:
    # Shuffled over all columns, so that the pairs (i, j) and (j, i) do not share a slot, and narrow factors fill all.
    g = torch.nn.functional.pad(g, (0, columns - g.shape[1]))[:, shuffled_columns(columns, index, seed, g.device)]
    convolved: Tensor = torch.fft.irfft(torch.fft.rfft(f, n=columns) * torch.fft.rfft(g), n=columns)
    return convolved
