"""The sketch of one layer of one network on one probe: a handful of sums of fixed size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_sim.sketch.folding import fold, num_folds
from lightning_sim.sketch.hashing import fingerprint, sample_buckets, sample_signs, wrapped
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
    p_f p_g <= `num_projections`, by :func:`tensor sketch <lightning_sim.sketch.tensor_sketch.tensor_sketch>` beyond.
    A sketch is of one kind, with gradients or without.

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
        self._sums: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        return (
            f"Sketch(num_buckets={self.num_buckets}, num_projections={self.num_projections}, seed={self.seed}, "
            f"width={self.width}, count={self.count})"
        )

    def update(self, features: Tensor, sample_ids: Tensor, *, gradients: Tensor | None = None) -> None:
        """Add a batch of samples.

        Args:
            features: (b, ...) floating-point; flattened to (b, p).
            sample_ids: (b,) integers that name the samples: the same sample has the same id in every network.
            gradients: (b, ...) floating-point, flattened to (b, p_g), for the product kernel.

        Raises:
            ValueError: when the shapes or dtypes are not these, the width changed since the last batch, or gradients
                come now and did not before, or the other way round.
        """
        features = self._checked(features, sample_ids, "features", self.width)
        if gradients is not None:
            gradients = self._checked(gradients, sample_ids, "gradients", self.gradient_width)
        if self._sums and (gradients is not None) != (self.gradient_width > 0):
            had, has = ("with", "without") if self.gradient_width else ("without", "with")
            raise ValueError(f"a sketch is of one kind: it was updated {had} `gradients` so far, and now {has} them")
        if features.shape[0] == 0:
            return
        self.allocate(features.shape[1], features.device, 0 if gradients is None else gradients.shape[1])
        self.fingerprint = wrapped(self.fingerprint + fingerprint(sample_ids))
        sample_ids = sample_ids.to(device=features.device, dtype=torch.int64)
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, features.shape[0], _SAMPLES_PER_BLOCK):
                block = slice(start, start + _SAMPLES_PER_BLOCK)
                self._add(features[block], None if gradients is None else gradients[block], sample_ids[block])
        self.count += features.shape[0]

    def _add(self, features: Tensor, gradients: Tensor | None, sample_ids: Tensor) -> None:
        buckets = sample_buckets(sample_ids, self.num_buckets, self.seed)
        signs = sample_signs(sample_ids, self.seed).to(self.dtype)
        features = features.to(self.dtype)
        if gradients is None:
            folds = fold(features, self.num_projections, self.seed)
        else:
            folds = tensor_sketch(features, gradients.to(self.dtype), self.num_projections, self.seed)
        for index, folded in enumerate(folds):
            self._sums["feature_sums"][index] += folded.sum(0, dtype=torch.float64)
            self._sums["bucket_sums"][index].index_add_(0, buckets, folded * signs[:, None])
        self._sums["bucket_ones"].index_add_(0, buckets, signs)

    def allocate(self, width: int, device: torch.device | str = "cpu", gradient_width: int = 0) -> None:
        """Make the state for these widths, all zero; a rank without samples needs it before reducing."""
        if self._sums:
            return
        total = width * gradient_width if gradient_width else width
        folds = num_folds(total, self.num_projections)
        columns = total if folds == 1 else self.num_projections // 2
        self.width, self.gradient_width = width, gradient_width
        with torch.inference_mode(False):  # inference tensors could not be added to outside of that mode
            self._sums = {
                "bucket_sums": torch.zeros(folds, self.num_buckets, columns, dtype=self.dtype, device=device),
                "bucket_ones": torch.zeros(self.num_buckets, dtype=self.dtype, device=device),
                "feature_sums": torch.zeros(folds, columns, dtype=torch.float64, device=device),
            }

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
        for name, value in self._sums.items():
            value += other._sums[name].to(value.device)
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
        return self._sums["bucket_sums"].device if self._sums else torch.device("cpu")

    def to(self, device: torch.device | str) -> Sketch:
        """Move the state, in place."""
        self._sums = {name: value.to(device) for name, value in self._sums.items()}
        return self

    def centered(self) -> tuple[Tensor, Tensor]:
        """Sketched, exactly centred features (folds, M, c), and the sketched ones (M,), in the sketch's dtype."""
        means = self._sums["feature_sums"] / self.count
        ones = self._sums["bucket_ones"]
        return self._sums["bucket_sums"] - ones[:, None] * means[:, None, :].to(self.dtype), ones

    def kernel(self) -> Tensor:
        """Gram matrix (M, M) of the sketched, centred data in float64, the mean of both folds', diagonal included."""
        folds = self.centered()[0].double()
        return torch.einsum("hmc,hnc->mn", folds, folds) / len(folds)

    def sums(self) -> list[Tensor]:
        """The tensors of the state, which add over disjoint sets of samples."""
        return list(self._sums.values())

    def problem(self) -> str | None:
        """Why no similarity can be computed, in words, or None: NaN or infinite features, or no variance."""
        if not self._sums:
            return "holds no samples"
        centered, ones = self.centered()
        size = torch.linalg.vector_norm(centered, dtype=torch.float64)
        if not bool(torch.isfinite(size)):
            return "holds NaN or infinite features"
        # Subtracting the mean of a constant leaves rounding errors of this size.
        means = torch.linalg.vector_norm(self._sums["feature_sums"] / self.count)
        rounding = 16 * torch.finfo(self.dtype).eps * means * torch.linalg.vector_norm(ones, dtype=torch.float64)
        if bool(size <= rounding):
            return "is constant over the samples"
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

    def _checked(self, values: Tensor, sample_ids: Tensor, name: str, width: int) -> Tensor:
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
