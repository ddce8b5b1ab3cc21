"""The sketch of one layer of one network on one probe: a handful of sums of fixed size."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sim.sketch.factors import (
    add_factors,
    factors_kept,
    no_factors,
    share_a_bucket,
    tensor_sketched,
)
from lightning_sim.sketch.folding import fold, num_folds
from lightning_sim.sketch.grams import FoldGram, Gram, KeptGram, ProductGram, gram_dtype
from lightning_sim.sketch.hashing import HashedSamples, hash_samples, sample_buckets, wrapped
from lightning_sim.sketch.tensor_sketch import tensor_sketch

__all__ = ["Sketch"]

_SAMPLES_PER_BLOCK = 1024  # bounds the memory of folds and transforms, whatever the batch


class Sketch:
    r"""Constant-memory summary of a layer's features on a set of samples, from which CKA and NBS are computed.

    With features ``X (N, p)``, a sign-and-bucket matrix ``S (M, N)`` given by a fixed hash of the sample ids, and
    folds ``R (p, c)`` given by a fixed hash of the columns, the sketch holds

    .. math:: S X R, \quad S 1, \quad 1' X R, \quad N

    all of them sums over samples: sketches of disjoint sets of samples add (`merge`), in any order and on any
    device. Features are centred exactly afterwards, :math:`S(X - 1\mu') = SX - (S1)\mu'`.

    **Exact** while N <= `num_buckets` (consecutive sample ids do not collide) and p <= `num_projections`
    (nothing is folded). Beyond that two independent folds of half the width are kept, and the estimates of CKA
    stay unbiased up to the ratio's second-order term. State: M * k floats whatever N and p; at the defaults 4.2 MB.
    Cost of an update: one pass over the features.

    **Product kernel.** With gradients beside the features, the sketch is that of the outer products g (x) f of every
    sample, whose linear kernel is :math:`K = F F' \circ G G'`, features and gradients at once: exact while
    p_f p_g <= `num_projections`, or p_f + p_g <= `num_projections` and no bucket holds two samples; by
    :func:`tensor sketch <lightning_sim.sketch.tensor_sketch.tensor_sketch>` beyond. A sketch is of one kind, with
    gradients or without.

    Accumulates in float32 (or `dtype`) whatever the precision of the features. Follows the device of the first
    features it is given.

    References:
        Tang et al. 2020, *Similarity of Neural Networks with Gradients*, Algorithm 1, whose kernel is centred
        after sketching; here the data are. Charikar, Chen & Farach-Colton 2002 for the sign-and-bucket sketch. Pham &
        Pagh 2013, *Fast and scalable polynomial kernels via explicit feature maps*, for the product kernel.

    Args:
        num_buckets: M, a power of two.
        num_projections: k, an even number.
        seed: of the hashes. Only sketches of the same seed and sizes can be compared.
        dtype: of the state, float32 or float64.

    Raises:
        ValueError: when `num_buckets` is no power of two, `num_projections` is odd, or `dtype` is narrower than
            float32.

    Example:
        >>> import torch
        >>> from lightning_sim.sketch import Sketch
        >>> x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
        >>> a, b = Sketch(), Sketch()
        >>> a.update(x[:300], torch.arange(300))
        >>> a.update(x[300:], torch.arange(300, 500))
        >>> b.update(2 * x + 3, torch.arange(500))
        >>> round(float(a.cka(b)), 4)
        1.0
    """

    def __init__(
        self, num_buckets: int = 1024, num_projections: int = 1024, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        if num_buckets < 4 or num_buckets & (num_buckets - 1):
            raise ValueError(f"`num_buckets` must be a power of two and at least 4, got {num_buckets}")
        if num_projections < 2 or num_projections % 2:
            raise ValueError(f"`num_projections` must be an even number and at least 2, got {num_projections}")
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype}")
        self.num_buckets = num_buckets
        self.num_projections = num_projections
        self.seed = seed
        self.dtype = dtype
        self.width = 0
        self.gradient_width = 0
        self.count = 0
        self.fingerprint = 0
        self.keep_grams = False  #: whether Grams are kept for further comparisons, as much memory again
        self._sums: dict[str, Tensor] = {}
        self.forget()

    def forget(self) -> None:
        """Drop what was derived from the sums, which are about to change."""
        self._known_problem: tuple[str | None] | None = None
        self._norm = 0.0  # of the centred data, known with the problem
        self._occupied: Tensor | None = None
        self._kept: tuple[Tensor | None, tuple[Gram, Gram]] | None = None

    def __repr__(self) -> str:
        return (
            f"Sketch(num_buckets={self.num_buckets}, num_projections={self.num_projections}, seed={self.seed}, "
            f"width={self.width}, count={self.count})"
        )

    def update(
        self, features: Tensor, sample_ids: Tensor | HashedSamples, *, gradients: Tensor | None = None
    ) -> None:
        """Add a batch of samples.

        Args:
            features: (b, ...) floating-point; flattened to (b, p).
            sample_ids: (b,) integers that name the samples: the same sample has the same id in every network. Or what
                `hash_samples` makes of them once for many sketches of these `num_buckets` and `seed`.
            gradients: (b, ...) floating-point, flattened to (b, p_g), for the product kernel.

        Raises:
            ValueError: when the shapes or dtypes are not these, the width changed since the last batch, or gradients
                come now and did not before, or the other way round.
        """
        features = self._checked(features, sample_ids, "features", self.width if self.count else 0)
        if gradients is not None:
            gradients = self._checked(gradients, sample_ids, "gradients", self.gradient_width if self.count else 0)
        if self.count and (gradients is not None) != (self.gradient_width > 0):
            had, has = ("with", "without") if self.gradient_width else ("without", "with")
            raise ValueError(f"a sketch is of one kind: it was updated {had} `gradients` so far, and now {has} them")
        if features.shape[0] == 0:
            return
        self.allocate(features.shape[1], features.device, 0 if gradients is None else gradients.shape[1])
        self._known_problem = self._kept = None
        if isinstance(sample_ids, Tensor):
            sample_ids = hash_samples(sample_ids, self.num_buckets, self.seed)
        with torch.inference_mode(False), torch.no_grad():
            if self.keeps_factors:
                self._occupy(sample_ids.ids)
            for rows, samples in sample_ids.to(features.device, self.dtype).blocks(_SAMPLES_PER_BLOCK):
                self._add(features[rows], None if gradients is None else gradients[rows], samples)
        self.fingerprint = wrapped(self.fingerprint + sample_ids.fingerprint)
        self.count += features.shape[0]

    def _add(self, features: Tensor, gradients: Tensor | None, samples: HashedSamples) -> None:
        if gradients is not None and self.keeps_factors:
            return add_factors(self._sums, features.to(self.dtype), gradients.to(self.dtype), samples)
        if gradients is None:
            folds = fold(features, self.num_projections, self.seed, self.dtype)
        else:
            folds = tensor_sketch(features, gradients, self.num_projections, self.seed, self.dtype)
        self._sums["feature_sums"] += folds.sum(1)  # of one block in the sketch's dtype, of all in float64
        if samples.run is not None:
            self._sums["bucket_sums"][:, samples.run].addcmul_(folds, samples.signs[:, None])
        else:
            self._sums["bucket_sums"].index_add_(1, samples.buckets, folds * samples.signs[:, None])
        self._sums["bucket_ones"].index_add_(0, samples.buckets, samples.signs)

    def _occupy(self, sample_ids: Tensor) -> None:
        """Mark the buckets of new samples; give the factors up when a bucket gets a second sample."""
        # On the CPU, where sample ids are as a rule: the device is not waited for.
        if self._occupied is None:
            self._occupied = self._sums["bucket_ones"].cpu() != 0
        buckets = sample_buckets(sample_ids.cpu().to(torch.int64), self.num_buckets)
        held = self._occupied.long().index_add_(0, buckets, torch.ones_like(buckets))
        if int(held.max()) > 1:
            self.sketch_factors()
        else:
            self._occupied = held > 0

    @property
    def keeps_factors(self) -> bool:
        """Whether features and gradients are kept side by side, and their product kernel is exact."""
        return "bucket_gradients" in self._sums

    def sketch_factors(self) -> None:
        """Replace factors by sums of tensor sketches, to which samples in occupied buckets can be added."""
        if self.keeps_factors:
            self._sums = tensor_sketched(self._sums, self.num_projections, self.seed)
            self.forget()

    def allocate(self, width: int, device: torch.device | str = "cpu", gradient_width: int = 0) -> None:
        """Make the state for these widths, all zero; a rank without samples needs it before reducing."""
        if self._sums and (self.count or (width, gradient_width) == (self.width, self.gradient_width)):
            return
        total = width * gradient_width if gradient_width else width
        folds = num_folds(total, self.num_projections)
        columns = total if folds == 1 else self.num_projections // 2
        self.width, self.gradient_width = width, gradient_width
        self.forget()
        with torch.inference_mode(False):  # inference tensors could not be added to outside of that mode
            if factors_kept(width, gradient_width, self.num_projections):
                self._sums = no_factors(self.num_buckets, width, gradient_width, self.dtype, device)
                return
            self._sums = {
                "bucket_sums": torch.zeros(folds, self.num_buckets, columns, dtype=self.dtype, device=device),
                "bucket_ones": torch.zeros(self.num_buckets, dtype=self.dtype, device=device),
                "feature_sums": torch.zeros(folds, columns, dtype=torch.float64, device=device),
            }

    def clear(self) -> Sketch:
        """Forget all samples and be as new, but keep the memory for a layer of the same widths; returns itself."""
        if factors_kept(self.width, self.gradient_width, self.num_projections) and not self.keeps_factors:
            self._sums = {}
            self.width = self.gradient_width = 0
        for value in self._sums.values():
            value.zero_()
        self.count = self.fingerprint = 0
        self.forget()
        return self

    def merge(self, other: Sketch) -> None:
        """Add the samples of another sketch of the same network and layer.

        Raises:
            ValueError: when seeds, sizes, dtypes or widths differ.
        """
        self._require_same_hashes(other)
        if not other._sums:
            return
        if self._sums and self.width != other.width:
            raise ValueError(
                f"cannot merge sketches of features of width {self.width} and {other.width}: "
                "they are not of the same layer"
            )
        if self._sums and self.gradient_width != other.gradient_width:
            raise ValueError(
                "cannot merge sketches of different kinds, or with gradients of different widths: "
                f"{self.gradient_width} and {other.gradient_width} (0: without gradients)"
            )
        self.allocate(other.width, other.device, other.gradient_width)
        added = other._sums
        if self.keeps_factors and not (other.keeps_factors and not share_a_bucket(self._sums, added)):
            self.sketch_factors()
        if other.keeps_factors and not self.keeps_factors:
            added = tensor_sketched(added, self.num_projections, self.seed)
        for name, value in self._sums.items():
            value += added[name].to(value.device)
        self.forget()
        self.fingerprint = wrapped(self.fingerprint + other.fingerprint)
        self.count += other.count

    def cka(self, other: Sketch, *, estimator: str = "unbiased") -> Tensor:
        """Linear centred kernel alignment with another sketch of the same samples.

        The unbiased estimator is the ratio of HSIC_1 terms (Song et al. 2012, eq. 5); without collisions and folds
        it equals :func:`lightning_sim.functional.centered_kernel_alignment` to rounding. The biased one, in [0, 1],
        is that of Kornblith et al. 2019, eq. 4; with more samples than buckets its diagonal carries the
        collisions as well, so it serves comparison with papers on small probes only.

        Returns:
            Scalar of the sketch's dtype; NaN where one side holds NaN features or has no variance.

        Raises:
            ValueError: when the sketches are not of the same samples, seed and sizes, or hold fewer than 4 samples.
        """
        from lightning_sim.sketch.similarity import centered_kernel_alignment_matrix

        return centered_kernel_alignment_matrix([self], [other], estimator=estimator)[0, 0]

    def nbs(self, other: Sketch) -> Tensor:
        """Normalised Bures similarity with another sketch of the same samples (Tang et al. 2020, eq. 10).

        In [0, 1], biased upwards for few samples. See :func:`lightning_sim.functional.normalized_bures_similarity`.

        Raises:
            ValueError: as for `cka`.
        """
        from lightning_sim.sketch.similarity import normalized_bures_similarity

        return normalized_bures_similarity(self, other)

    def save(self, path: Path | str, **description: Any) -> None:
        """Write the sketch to a file; see :func:`lightning_sim.sketch.save_sketch` for what can be said about it."""
        from lightning_sim.sketch.storage import save_sketch

        save_sketch(self, path, **description)

    @staticmethod
    def load(path: Path | str) -> Sketch:
        """The sketch in a file, on the CPU; see :func:`lightning_sim.sketch.load_sketch`."""
        from lightning_sim.sketch.storage import load_sketch

        return load_sketch(path)

    @property
    def device(self) -> torch.device:
        """Where the state lies."""
        return next(iter(self._sums.values())).device if self._sums else torch.device("cpu")

    def to(self, device: torch.device | str) -> Sketch:
        """Move the state, in place."""
        if self.device != torch.device(device):
            self._sums = {name: value.to(device) for name, value in self._sums.items()}
            self.forget()
        return self

    def on(self, device: torch.device | str) -> Sketch:
        """The sketch on a device: itself where it lies there, else a copy."""
        if self.device == torch.device(device):
            return self
        moved = copy.copy(self).to(device)
        moved.keep_grams = False
        return moved

    def ones(self) -> Tensor:
        """The sketched vector of ones S1 (M,), by which data are centred."""
        return self._sums["bucket_ones"]

    def centered(self) -> tuple[Tensor, Tensor]:
        """Sketched, exactly centred features (folds, M, c), and the sketched ones (M,), in the sketch's dtype.

        Of a product its tensor sketch, also where the factors are kept.
        """
        sums, ones, means = self.uncentered()
        return torch.addcmul(sums, ones[:, None], means[:, None, :].to(self.dtype), value=-1), ones

    def uncentered(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sketched features as they came (folds, M, c), the sketched ones (M,) and the features' means (folds, c)."""
        sums = self._sums
        if self.keeps_factors:
            sums = tensor_sketched(sums, self.num_projections, self.seed)
        return sums["bucket_sums"], sums["bucket_ones"], sums["feature_sums"] / self.count

    def occupied(self) -> Tensor:
        """Buckets that hold something, (M,); one whose samples cancel in all sums adds nothing, and counts as empty."""
        held = self._sums["bucket_ones"] != 0
        if not self.keeps_factors:
            held |= (self._sums["bucket_sums"] != 0).any(2).any(0)
        return held

    def grams(self, buckets: Tensor | None = None) -> tuple[Gram, Gram]:
        """Gram matrices of the sketched, centred data by the one and the other fold, scaled.

        CKA does not depend on the scale, and without it float32 products of features of 1e10 would overflow.

        Args:
            buckets: of which to form them, all if None; the others must be empty.
        """
        if self._kept is not None:
            before, grams = self._kept
            if before is buckets or (before is not None and buckets is not None and torch.equal(before, buckets)):
                return grams
        first, second = self._grams(buckets)
        if self.keep_grams:
            size = self.num_buckets if buckets is None else len(buckets)
            dtype = gram_dtype(size, self.dtype)
            kept = KeptGram(first, size, dtype, self.device)
            first, second = kept, kept if second is first else KeptGram(second, size, dtype, self.device)
            self._kept = buckets, (first, second)
        return first, second

    def _grams(self, buckets: Tensor | None) -> tuple[Gram, Gram]:
        if self.keeps_factors:
            kept = self._sums if buckets is None else {name: value[buckets] for name, value in self._sums.items()}
            product = ProductGram(kept, self.count)
            return product, product
        sums, ones, means = self.uncentered()
        if buckets is not None:
            sums, ones = sums[:, buckets], ones[buckets]
        dtype = gram_dtype(len(ones), self.dtype)
        centered = torch.addcmul(sums.to(dtype), ones[:, None].to(dtype), means[:, None, :].to(dtype), value=-1)
        if self.problem() is None:
            centered = centered.div_(self._norm)
        first = FoldGram(centered[0])
        return first, FoldGram(centered[1]) if len(centered) > 1 else first

    def kernel(self) -> Tensor:
        """Gram matrix (M, M) of the sketched, centred data in float64, the mean of both folds', diagonal included."""
        if self.keeps_factors:
            return ProductGram(self._sums, self.count).block(slice(None), slice(None))
        folds = self.centered()[0].double()
        return torch.einsum("hmc,hnc->mn", folds, folds) / len(folds)

    def sums(self) -> list[Tensor]:
        """The tensors of the state, which add over disjoint sets of samples."""
        return list(self._sums.values())

    def problem(self) -> str | None:
        """Why no similarity can be computed, in words, or None: NaN or infinite features, or no variance."""
        if self._known_problem is None:
            self._known_problem = (self._problem() if self._sums else "holds no samples",)
        return self._known_problem[0]

    def _problem(self) -> str | None:
        # Subtracting the mean of a constant leaves rounding errors of this size, relative to the mean.
        rounding = 16 * torch.finfo(self.dtype).eps
        if self.keeps_factors:
            product = ProductGram(self._sums, self.count)
            size, largest = product.trace, product.uncentered_trace
            rounding = max(rounding**2, 1e-14)  # of squares, which are subtracted in float64
        else:
            centered, ones = self.centered()
            size = torch.linalg.vector_norm(centered)
            if not 1e-15 < float(size) < 1e15:  # squares of float32 may be out of its range
                size = torch.linalg.vector_norm(centered, dtype=torch.float64)
            self._norm = float(size)
            means = torch.linalg.vector_norm(self._sums["feature_sums"] / self.count)
            largest = means * torch.linalg.vector_norm(ones, dtype=torch.float64)
        if not bool(torch.isfinite(size)):
            return "holds NaN or infinite features"
        return "is constant over the samples" if bool(size <= rounding * largest) else None

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors that `from_state_dict` makes the sketch from."""
        return {
            "num_buckets": self.num_buckets,
            "num_projections": self.num_projections,
            "seed": self.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            "width": self.width,
            "gradient_width": self.gradient_width,
            "factors": self.keeps_factors,
            "count": self.count,
            "fingerprint": self.fingerprint,
            "sums": {name: value.cpu() for name, value in self._sums.items()},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Sketch:
        """The sketch that `state_dict` was taken from, on the CPU."""
        dtype = {"float32": torch.float32, "float64": torch.float64}[state["dtype"]]
        sketch = cls._of_settings(state, dtype)
        sketch.width, sketch.gradient_width = state["width"], state["gradient_width"]
        sketch.count, sketch.fingerprint = state["count"], state["fingerprint"]
        sketch._sums = dict(state["sums"])
        return sketch

    @classmethod
    def _of_settings(cls, state: dict[str, Any], dtype: torch.dtype) -> Sketch:
        return cls(state["num_buckets"], state["num_projections"], state["seed"], dtype)

    def require_comparable(self, other: Sketch) -> None:
        """Raise the reason, if the two sketches cannot be compared sample by sample."""
        self._require_same_hashes(other)
        for sketch in (self, other):
            if sketch.count < 4:
                raise ValueError(f"a comparison needs at least 4 samples, a sketch holds {sketch.count}")
        if (self.count, self.fingerprint) != (other.count, other.fingerprint):
            raise ValueError(
                f"the sketches are of different samples ({self.count} and {other.count} of them): "
                "features can only be compared on the same probe, with the same sample ids"
            )

    def _require_same_hashes(self, other: Sketch) -> None:
        for name in ("num_buckets", "num_projections", "seed", "dtype"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"sketches with different `{name}` cannot be combined, got {mine} and {theirs}")

    def _checked(self, values: Tensor, sample_ids: Tensor | HashedSamples, name: str, width: int) -> Tensor:
        if isinstance(sample_ids, HashedSamples):
            if (sample_ids.num_buckets, sample_ids.seed) != (self.num_buckets, self.seed):
                raise ValueError(
                    f"`sample_ids` were hashed for num_buckets={sample_ids.num_buckets}, seed={sample_ids.seed}, and "
                    f"this sketch has {self.num_buckets} and {self.seed}"
                )
            sample_ids = sample_ids.ids
        if values.ndim < 2 or not values.is_floating_point():
            raise ValueError(
                f"`{name}` must be floating-point of shape (batch, ...), got {values.dtype} of shape "
                f"{tuple(values.shape)}"
            )
        if sample_ids.shape != values.shape[:1] or sample_ids.is_floating_point():
            raise ValueError(
                f"`sample_ids` must be {values.shape[0]} integers, one for each row of `{name}` of shape "
                f"{tuple(values.shape)}, got {sample_ids.dtype} of shape {tuple(sample_ids.shape)}"
            )
        flat = values.detach().flatten(1)
        if width and flat.shape[1] != width:
            raise ValueError(
                f"`{name}` must keep their width: {width} so far, now {flat.shape[1]} (shape {tuple(values.shape)})"
            )
        return flat
