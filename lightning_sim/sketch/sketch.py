"""The sketch of one layer of one network on one probe: a handful of sums of fixed size."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sim.sketch.arguments import checked_integer, checked_rows, checked_sizes
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

_ROUNDING = 4  # errors of so many units in the last place of a mean are taken for rounding
_CONSTANT = "is constant over the samples"
_NOT_FINITE = "holds NaN or infinite features"
_TOO_LARGE = "holds features that are too large for its sums; scale them, or sum in float64"
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
        ValueError: when `num_buckets` is no power of two, `num_projections` is odd, `seed` is no integer of 64 bits, or
            `dtype` is narrower than float32.

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
        self.num_buckets, self.num_projections = checked_sizes(num_buckets, num_projections, dtype)
        self.seed = checked_integer(seed, "seed")
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
        #: found with its first unbiased CKA, and the noise of its self-term
        self.known_cka_problem: tuple[str | None, float] | None = None
        self.scale = 1.0  #: the largest entry of the centred data, known with the problem
        self.raw_share = 1.0  #: norm of the data as they came next to the centred, likewise
        self._constant: tuple[Tensor | None] | None = None  # columns, if there are any
        self._occupied: Tensor | None = None
        self._kept: tuple[Tensor | None, tuple[Gram, Gram]] | None = None

    def __repr__(self) -> str:
        return (
            f"Sketch(num_buckets={self.num_buckets}, num_projections={self.num_projections}, seed={self.seed}, "
            f"width={self.width}, count={self.count})"
        )

    def update(self, features: Tensor, sample_ids: Tensor | HashedSamples, *, gradients: Tensor | None = None) -> None:
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
        self._known_problem = self.known_cka_problem = self._kept = self._constant = None
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
        self._sums["feature_sums"] += folds.sum(1, dtype=torch.float64)
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

    @property
    def is_folded(self) -> bool:
        """Whether there are two folds, whose noise similarities have."""
        return len(self._sums.get("bucket_sums", ())) > 1

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

        The unbiased estimator, in [-1, 1], is the ratio of HSIC_1 terms (Song et al. 2012, eq. 5); without collisions
        and folds it equals :func:`lightning_sim.functional.centered_kernel_alignment` to rounding. The biased one, in
        [0, 1], is that of Kornblith et al. 2019, eq. 4; with more samples than buckets its diagonal carries the
        collisions as well, so it serves comparison with papers on small probes only.

        Returns:
            Scalar of the sketch's dtype; NaN where `cka_problem` of a side says why, or where the ratio lies further
            outside of [-1, 1] than the noise of the folds explains (see
            :func:`lightning_sim.sketch.centered_kernel_alignment_matrix`).

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
        return self._held()["bucket_ones"]

    def centered(self, dtype: torch.dtype | None = None, buckets: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sketched, exactly centred features (folds, M, c), and the sketched ones (M,).

        Of a product its tensor sketch, also where the factors are kept. Columns that do not vary by more than rounding
        are zero: next to others, what rounding leaves of a large constant would pass for their variance.

        Args:
            dtype: to compute in, the sketch's if None.
            buckets: of which, all if None; the others must be empty.
        """
        sums, ones, means = self.uncentered()
        if buckets is not None:
            sums, ones = sums[:, buckets], ones[buckets]
        dtype = dtype or self.dtype
        centered = torch.addcmul(sums.to(dtype), ones[:, None].to(dtype), means[:, None, :].to(dtype), value=-1)
        if self._constant is None:
            spread = torch.maximum(centered.amax(1), -centered.amin(1))
            # Of a fold, all columns have the rounding of the columns in it, also where those have cancelled.
            sizes = means.square().mean(1, keepdim=True).sqrt() if self.is_folded else means.abs()
            rounding = _ROUNDING * torch.finfo(self.dtype).eps * ones.abs().amax() * sizes
            constant = (spread <= rounding) & spread.isfinite()
            self._constant = (constant if bool(constant.any()) else None,)
            self.scale = float(spread.masked_fill(constant, 0).max())
        if self._constant[0] is not None:
            centered.masked_fill_(self._constant[0][:, None], 0)
        return centered, ones

    def uncentered(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sketched features as they came (folds, M, c), the sketched ones (M,) and the features' means (folds, c)."""
        sums = self._held()
        if self.keeps_factors:
            sums = tensor_sketched(sums, self.num_projections, self.seed)
        return sums["bucket_sums"], sums["bucket_ones"], sums["feature_sums"] / self.count

    def occupied(self) -> Tensor:
        """Buckets that hold something, (M,); one whose samples cancel in all sums adds nothing, and counts as empty."""
        sums = self._held()
        held = sums["bucket_ones"] != 0
        if not self.keeps_factors:
            held |= (sums["bucket_sums"] != 0).any(2).any(0)
        return held

    def _held(self) -> dict[str, Tensor]:
        if not self.count:
            raise ValueError("the sketch holds no samples; update() it with some first")
        return self._sums

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
            ones = self.ones() if buckets is None else self.ones()[buckets]
            ones = ones.to(gram_dtype(len(ones), self.dtype))
            kept = KeptGram(first, ones)
            first, second = kept, kept if second is first else KeptGram(second, ones)
            self._kept = buckets, (first, second)
        return first, second

    def _grams(self, buckets: Tensor | None) -> tuple[Gram, Gram]:
        sums = self._held()
        if self.keeps_factors:
            kept = sums if buckets is None else {name: value[buckets] for name, value in sums.items()}
            product = ProductGram(kept, self.count)
            return product, product
        size = self.num_buckets if buckets is None else len(buckets)
        centered, _ = self.centered(gram_dtype(size, self.dtype), buckets)
        if self.problem() is None:
            centered.div_(self.scale)
        first = FoldGram(centered[0])
        return first, FoldGram(centered[1]) if len(centered) > 1 else first

    def kernel(self) -> Tensor:
        """Gram matrix (M, M) of the sketched, centred data in float64, the mean of both folds', diagonal included."""
        if self.keeps_factors:
            return self.product().block(slice(None), slice(None))
        folds = self.centered()[0].double()
        return torch.einsum("hmc,hnc->mn", folds, folds) / len(folds)

    def rows(self) -> Tensor:
        """The samples' features (N, c) in the order of their buckets, which is the same in every network's sketch.

        Any function of two feature matrices can be computed from the rows of two sketches. They are the features
        themselves for layers up to `num_projections` wide; of wider ones both folds side by side, whose inner products
        are right on average. Of a product of features and gradients they are its (tensor sketched) outer products.

        Raises:
            ValueError: when a bucket holds several samples, whose features cannot be told apart.
        """
        if not self.count:
            raise ValueError("a sketch without samples has no features")
        sums, ones, _ = self.uncentered()
        own = ones.abs() == 1
        if int(own.sum()) != self.count:
            raise ValueError(
                f"{self.count} samples share {self.num_buckets} buckets, and the features of single samples are lost; "
                "make the sketch with at least as many buckets as there are samples, with consecutive ids"
            )
        rows = torch.cat(list(sums[:, own] * ones[own, None]), dim=1)
        scaled: Tensor = rows / len(sums) ** 0.5
        return scaled
    def product(self) -> ProductGram:
        """The kernel of features and gradients that are kept side by side."""
        return ProductGram(self._held(), self.count)

    def sums(self) -> list[Tensor]:
        """The tensors of the state, which add over disjoint sets of samples."""
        return list(self._sums.values())

    def is_finite(self) -> bool:
        """Whether neither NaN nor infinite features were added."""
        return all(bool(torch.isfinite(value).all()) for value in self._sums.values())

    def problem(self) -> str | None:
        """Why no similarity can be computed, in words, or None: NaN or infinite features, or no variance."""
        if self._known_problem is None:
            self._known_problem = (self._problem() if self.count else "holds no samples",)
        return self._known_problem[0]

    def cka_problem(self, estimator: str = "unbiased") -> str | None:
        """Why CKA with any other sketch is NaN, in words, or None.

        That is `problem`; and for the unbiased estimator also why HSIC_1 of the sketch with itself is zero but for
        rounding or the noise of its folds: all samples, or all but one, are alike, or all are equally far apart.

        Raises:
            ValueError: as `cka`.
        """
        from lightning_sim.sketch.similarity import centered_kernel_alignment_matrix

        if self.problem() is not None or estimator == "biased":
            return self.problem()
        if self.known_cka_problem is None:
            centered_kernel_alignment_matrix([self], [self], estimator=estimator)
        assert self.known_cka_problem is not None
        return self.known_cka_problem[0]

    def _problem(self) -> str | None:
        # Subtracting the mean of a constant leaves rounding errors of this size, relative to the mean.
        rounding = _ROUNDING * torch.finfo(self.dtype).eps
        if self.keeps_factors:
            product = self.product()
            trace, uncentered = product.trace, product.uncentered_trace
            self.raw_share = float((uncentered / trace).sqrt())
            if not bool(trace.isfinite()):
                return _NOT_FINITE
            # Of squares, which are subtracted in float64.
            return _CONSTANT if bool(trace <= max(rounding**2, 1e-14) * uncentered) else None
        centered, ones = self.centered()
        means = self._sums["feature_sums"] / self.count
        if not math.isfinite(self.scale):
            if bool(means.isfinite().all()):  # they are summed in float64
                return _TOO_LARGE
            return f"{_NOT_FINITE}, or finite ones too large for its folds" if self.is_folded else _NOT_FINITE
        if self.scale == 0:
            sums = self._sums["bucket_sums"]
            moved = torch.addcmul(sums, ones[:, None], means[:, None, :].to(self.dtype), value=-1).abs().max()
            if not bool(moved > 0):
                return _CONSTANT
            share = float(moved / means.abs().max())
            return (
                f"{_CONSTANT} up to rounding: it varies by {share:.0e} of its mean, which sums in "
                f"{str(self.dtype).removeprefix('torch.')} cannot tell from none; subtract the mean first, or sum in "
                "float64"
            )
        size = torch.linalg.vector_norm(centered)
        if not 1e-15 < float(size) < 1e15:  # squares of float32 may be out of its range
            size = torch.linalg.vector_norm(centered, dtype=torch.float64)
        largest = torch.linalg.vector_norm(means) * torch.linalg.vector_norm(ones, dtype=torch.float64)
        self.raw_share = math.hypot(1, float(largest / size))
        return None

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
        if type(other) is not type(self):
            raise ValueError(
                f"a {type(self).__name__} can only be combined with another, got {type(other).__name__}: they hold "
                "different things"
            )
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
        flat = checked_rows(values, sample_ids, name)
        if width and flat.shape[1] != width:
            raise ValueError(
                f"`{name}` must keep their width: {width} so far, now {flat.shape[1]} (shape {tuple(values.shape)})"
            )
        return flat
