"""Whether two representations put the same samples next to each other."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim._centering import center_columns, undefined, widen
from lightning_sim._checks import check_choice, check_pair, warn_if_constant

__all__ = ["mutual_knn"]

# Entries of the (rows, n) blocks of scores, a few of which exist at once: 32 MiB each in float64.
_BLOCK_ENTRIES = 2**22


def mutual_knn(
    x: Tensor, y: Tensor, *, k: int = 10, metric: Literal["cosine", "euclidean", "inner_product"] = "cosine"
) -> Tensor:
    r"""Mean share of the k nearest neighbours of a sample that two representations have in common.

    $\frac{1}{n k} \sum_i |N_x(i) \cap N_y(i)|$, where $N(i)$ are the k other samples nearest to sample i; a
    sample is not its own neighbour.

    Shapes: `x` (n, p1), `y` (n, p2) -> (). Range: [0, 1], no units, symmetric. Independent representations
    read k / (n - 1) on average, which is not subtracted. Invariant to orthogonal maps and isotropic scaling
    of either side and, where there are no ties, to joint permutations of the samples; "euclidean" also to
    translations (nothing is centred otherwise), "cosine" also to rescaling single samples.

    Convention: the code of the paper ranks inner products of rows that the caller has normalised, which is
    "cosine"; a row of zeros has cosine 0 to all others. Ties go to the sample with the lower index.

    Cost: O(n^2 p) time, O(n p) memory plus blocks of fixed size, in float64 where the device has it: a
    large common mean leaves float32 cosines no digits to tell samples apart.

    Args:
        x: representation of n samples.
        y: another representation of the same samples in the same order.
        k: number of neighbours, 1 to n - 1.
        metric: nearest means largest "cosine", smallest "euclidean" distance or largest "inner_product".

    Returns:
        A scalar in the wider of float32 and the dtypes of `x` and `y`; not differentiable. NaN with a
        warning that names a side without variance, or whose samples are all equally near to each other (such as
        the cosines of rows that differ by a factor).

    Raises:
        ValueError: unless both are finite floating-point matrices with the same number of rows, at least 3
            (of 2 each is the other's neighbour); for a `k` outside 1 to n - 1 or an unknown `metric`.

    References:
        Huh et al. 2024, "The Platonic representation hypothesis", appendix on the mutual nearest-neighbour
        metric.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import mutual_knn
        >>> x = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> y = torch.tensor([[0.0], [1.0], [3.0], [1.5]])
        >>> mutual_knn(x, y, k=1, metric="euclidean")  # nearest in x: 1, 0, 3, 2; in y: 1, 3, 3, 1
        tensor(0.5000)
    """
    check_choice(metric, "metric", ("cosine", "euclidean", "inner_product"))
    x, y = check_pair(x, y, minimum_rows=3)
    n = x.shape[0]
    k = check_integer(k, "k", least=1)
    if k >= n:
        raise ValueError(
            f"`k` must be between 1 and {n - 1}, one less than the {n} samples, got {k} "
            f"for shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if warn_if_constant(center_columns(x), center_columns(y)):
        return x.new_tensor(torch.nan)
    searches = [_search(z.detach(), metric) for z in (x, y)]
    shared, ranks = 0, [False, False]
    for block in torch.split(torch.arange(n, device=x.device), max(1, _BLOCK_ENTRIES // n)):
        found = [_neighbors(search, block, k) for search in searches]
        shared += int((found[0].chosen & found[1].chosen).sum())
        ranks = [ranked or side.ranks for ranked, side in zip(ranks, found, strict=True)]
    if not all(ranks):
        alike = " and ".join(f"`{name}`" for name, ranked in zip("xy", ranks, strict=True) if not ranked)
        return undefined(f"no sample of {alike} has others that are nearer than the rest", x)
    return x.new_tensor(shared / (n * k))


class _Search(NamedTuple):
    """What the nearest samples j to i maximise: `rows[i] @ rows[j] - offsets[j]`, up to `rounding[i]`."""

    rows: Tensor
    offsets: Tensor
    rounding: Tensor


def _search(x: Tensor, metric: str) -> _Search:
    rows = center_columns(x) if metric == "euclidean" else widen(x)  # a large mean would take the digits
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    if metric == "cosine":
        rows = rows / norms.where(norms > 0, 1)[:, None]
        norms = torch.ones_like(norms)
    offsets = norms.square() / 2 if metric == "euclidean" else torch.zeros_like(norms)
    # Equal scores differ by the rounding of the product, which is another one on every device.
    rounding = 64 * torch.finfo(rows.dtype).eps * (norms * norms.max() + offsets.max())
    return _Search(rows, offsets, rounding)


class _Neighbors(NamedTuple):
    """Mask (block, n) of the nearest samples, and whether any sample of the block is nearer to some than to others."""

    chosen: Tensor
    ranks: bool


def _neighbors(search: _Search, block: Tensor, k: int) -> _Neighbors:
    """The k nearest samples of those in `block`, ties resolved by index."""
    scores = search.rows[block] @ search.rows.T - search.offsets
    scores.scatter_(1, block[:, None], -torch.inf)
    kth = scores.topk(k, dim=1).values[:, -1:]
    rounding = search.rounding[block, None]
    nearer = scores > kth + rounding
    tied = (scores >= kth - rounding) & ~nearer
    vacancies = k - nearer.sum(1, keepdim=True)
    ranks = bool((tied.sum(1) < scores.shape[1] - 1).any())  # a sample is not its own neighbour
    return _Neighbors(nearer | (tied & (tied.cumsum(1) <= vacancies)), ranks)
