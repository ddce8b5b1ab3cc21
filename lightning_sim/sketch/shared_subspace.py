"""Which principal directions of one network another one shares, from sketches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim.figures.style import GREY, OUTPUT_COLORS, new_figure, style_axes
from lightning_sim.sketch.sketch import Sketch

__all__ = ["SharedSubspace", "shared_subspace"]


@dataclass(frozen=True)
class SharedSubspace:
    """What one network's kernel does to the other's principal directions; see :func:`shared_subspace`.

    Args:
        variance: (count,), the share of its own network's variance in every direction, descending.
        scaling: (count,), in [0, 1].
        alignment: (count,), in [0, 1]; 1 where the direction is not rotated.
    """

    variance: Tensor
    scaling: Tensor
    alignment: Tensor

    def plot(self) -> Any:
        """Scaling and rotation by direction, a ``matplotlib.figure.Figure``; needs the extra ``plot``."""
        figure = new_figure(8.0, 3.2)
        numbers = range(1, len(self.variance) + 1)
        left, right = figure.subplots(1, 2)
        own = self.variance / self.variance[0]
        left.plot(numbers, own, color=GREY, linewidth=1.2, label="by its own network")
        left.plot(numbers, self.scaling, color=OUTPUT_COLORS[1], marker="o", markersize=3, label="by the other")
        left.set_yscale("log")
        left.legend(frameon=False, fontsize=8)
        right.plot(numbers, self.alignment, color=OUTPUT_COLORS[0], marker="o", markersize=3)
        right.set_ylim(0, 1.02)
        for axes, title in ((left, "scaling"), (right, "alignment (cosine of the rotation)")):
            axes.set_title(title, fontsize=10.5, loc="left")
            axes.set_xlabel("principal direction", fontsize=9)
            style_axes(axes)
        return figure


def shared_subspace(a: Sketch, b: Sketch, *, count: int = 50) -> SharedSubspace:
    r"""How much the kernel of `b` scales and rotates the principal directions of `a`.

    With :math:`u_i` the unit eigenvectors of the centred kernel K of `a`, directions in the space of samples, and L the
    centred kernel of `b`,

    .. math:: scaling_i = \frac{\|L u_i\|}{\|L\|_2}, \quad alignment_i = \frac{u_i' L u_i}{\|L u_i\|}

    A direction that is also an eigenvector of L is scaled by its eigenvalue and not rotated. Directions that `a` varies
    much in and that are scaled little are private to `a`. Biased linear CKA is made of these:
    :math:`\langle K, L \rangle = \sum_i \lambda_i \, u_i' L u_i`.

    Exact while N <= M and p <= k. Beyond that K and L are those of the sketches: leading directions are near, those
    whose variance is of the size of the sketch's noise are not.

    Cost: O(M^2 k + M^3).

    Args:
        a: whose directions.
        b: whose kernel acts on them; of the same samples, seed and sizes.
        count: how many directions, leading ones first; fewer where `a` has fewer.

    Returns:
        `SharedSubspace`, in float64 on the CPU. Not symmetric in `a` and `b`.

    Raises:
        ValueError: when the sketches cannot be compared, one holds NaN or is constant, or `count` is not positive.

    References:
        Kornblith et al. 2019, *Similarity of Neural Network Representations Revisited*, section 6.4 and figure 8.

    Example:
        >>> import torch
        >>> from lightning_sim.sketch import Sketch, shared_subspace
        >>> x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([8.0, 4.0, 2.0, 1.0])
        >>> a, b = Sketch(num_buckets=128), Sketch(num_buckets=128)
        >>> a.update(x, torch.arange(100))
        >>> b.update(x[:, :2], torch.arange(100))
        >>> [round(value, 1) for value in shared_subspace(a, b).scaling.tolist()]
        [1.0, 0.4, 0.0, 0.0]
    """
    check_integer(count, "count", least=1)
    a.require_comparable(b)
    for sketch, name in ((a, "a"), (b, "b")):
        if (problem := sketch.problem()) is not None:
            raise ValueError(f"the sketch `{name}` {problem}")
    own, other = a.kernel().cpu(), b.kernel().cpu()
    values, vectors = torch.linalg.eigh(own)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    kept = min(count, int((values > values[0] * len(values) * torch.finfo(a.dtype).eps).sum()))
    directions = vectors[:, :kept]
    moved = other @ directions
    lengths = torch.linalg.vector_norm(moved, dim=0)
    along = (directions * moved).sum(0)
    alignment = torch.where(lengths > 0, along / lengths.clamp_min(torch.finfo(lengths.dtype).tiny), 0.0)
    largest = torch.linalg.eigvalsh(other)[-1]
    return SharedSubspace(values[:kept] / values.sum(), lengths / largest, alignment.clamp(0, 1))
