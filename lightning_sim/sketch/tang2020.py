"""The sketch of Tang et al. 2020 as published, to reproduce their paper and to see the difference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim._checks import check_choice
from lightning_sim.sketch.bucket_sums import BucketSums
from lightning_sim.sketch.hashing import HashedSamples, random_buckets
from lightning_sim.sketch.kernels import kernel_similarity
from lightning_sim.sketch.sketch import Sketch

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Tang2020Sketch"]


class Tang2020Sketch(Sketch):
    r"""Algorithm 1 of Tang et al. 2020: features and gradients sketched apart, kernels multiplied, centred at the end.

    Every sample is added, with random signs, to T of the M buckets, one in each of T parts of M / T, at random:
    :math:`S (M, N)` with entries :math:`\pm 1 / \sqrt{T}`. The kernel is

    .. math:: K = SFF'S' \quad\text{or}\quad K = SFF'S' \circ SGG'S'

    and CKA (biased) and NBS are those of H K H. Three things differ from :class:`lightning_sim.Sketch`, and each biases
    the result: buckets hold samples with random signs, so that H K H does not centre the data, and features with a
    mean appear similar; the diagonal, which the collisions inflate, is kept; and multiplied kernels of buckets mix
    different samples' features and gradients. For N = 8000, M = 512 such products read 0.28 where 0.13 was right. The
    hash differs from the published code in one way: it depends on the sample and the seed, not on the batch, so that
    two networks on the same probe use the same S.

    State: M p floats for features and for gradients, of the full width p.

    Args:
        num_buckets: M, a power of two.
        buckets_per_sample: T, a power of two below M.
        seed: of the hash.
        dtype: of the state.

    Raises:
        ValueError: for sizes that are not these.

    References:
        Tang et al. 2020, *Similarity of Neural Networks with Gradients*, Algorithm 1, and their code in amzn/xfer.

    Example:
        >>> import torch
        >>> from lightning_sim.sketch import Sketch, Tang2020Sketch
        >>> draw = torch.Generator().manual_seed(0)
        >>> x, y = (torch.randn(4000, 300, generator=draw) + 3 for _ in range(2))  # independent, with a mean
        >>> values = []
        >>> for make in (Sketch, Tang2020Sketch):
        ...     a, b = make(num_buckets=512), make(num_buckets=512)
        ...     a.update(x, torch.arange(4000))
        ...     b.update(y, torch.arange(4000))
        ...     values.append(float(a.cka(b)))
        >>> abs(values[0]) < 0.05, values[1] > 0.5
        (True, True)
    """

    def __init__(
        self, num_buckets: int = 1024, buckets_per_sample: int = 1, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(num_buckets, seed=seed, dtype=dtype)
        buckets_per_sample = check_integer(buckets_per_sample, "buckets_per_sample", least=1)
        if num_buckets % buckets_per_sample or buckets_per_sample == num_buckets:
            raise ValueError(
                f"`buckets_per_sample` must be a power of two below {num_buckets}, got {buckets_per_sample}"
            )
        self.buckets_per_sample = buckets_per_sample

    def _find_directions(self, features: Tensor) -> None:
        self.directions = None  # of what is not folded

    def allocate(self, width: int, device: torch.device | str = "cpu", gradient_width: int = 0) -> None:
        """Make the state for these widths, all zero."""
        if self._sums:
            return
        self.width, self.gradient_width = width, gradient_width
        widths = [width, gradient_width] if gradient_width else [width]
        names = ("bucket_sums", "bucket_gradient_sums")
        with torch.inference_mode(False):
            self._sums = {
                name: torch.zeros(self.num_buckets, columns, dtype=self.dtype, device=device)
                for name, columns in zip(names, widths, strict=False)
            }

    def _add(self, features: Tensor, gradients: Tensor | None, samples: HashedSamples) -> None:
        sample_ids = samples.ids.to(features.device)
        size = self.num_buckets // self.buckets_per_sample
        for part in range(self.buckets_per_sample):
            buckets, signs = random_buckets(sample_ids, size, part, self.seed)
            signs = signs.to(self.dtype)[:, None] / self.buckets_per_sample**0.5
            for total, values in zip(self.sums(), (features, gradients), strict=False):
                if values is not None:
                    total.index_add_(0, buckets + part * size, values.to(self.dtype) * signs)

    def kernel(self) -> Tensor:
        """H K H, (M, M) in float64."""
        kernel = torch.ones(self.num_buckets, self.num_buckets, dtype=torch.float64, device=self.device)
        for value in super()._held().values():
            kernel = kernel * (value.double() @ value.double().T)
        return kernel - kernel.mean(0) - kernel.mean(1, keepdim=True) + kernel.mean()

    def _held(self) -> dict[str, Tensor]:
        raise ValueError(
            "a sketch as published keeps no sum of its samples, so that their data cannot be centred: its own cka() "
            "and nbs() compare two of them, biased, and kernel() is what they compare"
        )

    def cka(self, other: Sketch, *, estimator: str = "biased") -> Tensor:
        """CKA as published, which is biased.

        Raises:
            ValueError: for another estimator, which does not exist for these sketches, or another kind of sketch.
        """
        check_choice(estimator, "estimator", ("biased",))
        self.require_comparable(other)
        return kernel_similarity(self.kernel(), other.kernel(), "cka").to(self.dtype)

    def nbs(self, other: Sketch) -> Tensor:
        """NBS as published, of kernels."""
        self.require_comparable(other)
        return kernel_similarity(self.kernel(), other.kernel(), "nbs").to(self.dtype)

    def problem(self) -> str | None:
        """Why no similarity can be computed, in words, or None."""
        if not self._sums:
            return "holds no samples"
        kernel = self.kernel()
        if not bool(torch.isfinite(kernel).all()):
            return "holds NaN or infinite features"
        return None if bool(kernel.any()) else "is constant over the samples"

    def cka_problem(self, estimator: str = "biased") -> str | None:
        """Why CKA with any other sketch is NaN, in words, or None: it has no variance to divide by but that.

        Raises:
            ValueError: for another estimator.
        """
        check_choice(estimator, "estimator", ("biased",))
        return self.problem()

    def require_comparable(self, other: BucketSums) -> None:
        """Raise the reason, if the two sketches cannot be compared sample by sample."""
        theirs = getattr(other, "buckets_per_sample", None)
        if theirs != self.buckets_per_sample:
            raise ValueError(
                "sketches as published can only be compared with each other, and with the same `buckets_per_sample`, "
                f"got {self.buckets_per_sample} and {theirs}"
            )
        super().require_comparable(other)

    def save(self, path: Path | str, **description: Any) -> None:
        """Refused: files hold sketches that others can be compared with."""
        raise ValueError("sketches as published cannot be saved; keep their state_dict(), or save a Sketch")

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors that `from_state_dict` makes the sketch from."""
        return super().state_dict() | {"buckets_per_sample": self.buckets_per_sample}

    @classmethod
    def _of_settings(cls, state: dict[str, Any], dtype: torch.dtype) -> Self:
        return cls(state["num_buckets"], state["buckets_per_sample"], state["seed"], dtype)
