"""What a sketch holds of one layer on a set of samples: sums of fixed size, to which samples are added."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim._centering import column_sums, home_of_sums
from lightning_sim.sketch.arguments import checked_batch, checked_sizes
from lightning_sim.sketch.factors import add_factors, factors_kept, no_factors, share_a_bucket, tensor_sketched
from lightning_sim.sketch.folding import fold, num_folds
from lightning_sim.sketch.hashing import HashedSamples, hash_samples, sample_buckets, wrapped
from lightning_sim.sketch.leading_directions import SAMPLES, LeadingDirections, leading_directions
from lightning_sim.sketch.tensor_sketch import tensor_sketch

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BucketSums"]

_SAMPLES_PER_BLOCK = 1024  # bounds the memory of folds and transforms, whatever the batch


class BucketSums:
    """The state of a :class:`lightning_sim.Sketch`, whose arguments these are."""

    def __init__(
        self, num_buckets: int = 1024, num_projections: int = 1024, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        self.num_buckets, self.num_projections = checked_sizes(num_buckets, num_projections, dtype)
        self.seed = check_integer(seed, "seed", least=-(2**63), most=2**63 - 1)
        self.dtype = dtype
        self.width = 0
        self.gradient_width = 0
        self.count = 0
        self.fingerprint = 0
        self._sums: dict[str, Tensor] = {}
        self.directions: LeadingDirections | Literal["first"] | None = None  #: "first": of the samples to come
        self.num_directions = 0  #: whose coordinates are the last columns of both folds
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
        #: for NBS, and of what they were made
        self.kept_cores: tuple[tuple[Any, ...], list[tuple[Tensor, Tensor]]] | None = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_buckets={self.num_buckets}, num_projections={self.num_projections}, "
            f"seed={self.seed}, width={self.width}, count={self.count})"
        )

    def update(self, features: Tensor, sample_ids: Tensor | HashedSamples, *, gradients: Tensor | None = None) -> None:
        """Add a batch of samples.

        Args:
            features: (b, ...) floating-point; flattened to (b, p).
            sample_ids: (b,) integers that name the samples: the same sample has the same id in every network. Or what
                `hash_samples` makes of them once for many sketches of these `num_buckets` and `seed`.
            gradients: (b, ...) floating-point, flattened to (b, p_g), for the product kernel.

        Raises:
            ValueError: when shapes or dtypes are not these, or widths or kinds not those of the batches before.
        """
        hashes = self.num_buckets, self.seed
        features = checked_batch(features, sample_ids, "features", self.width if self.count else 0, hashes)
        if gradients is not None:
            width = self.gradient_width if self.count else 0
            gradients = checked_batch(gradients, sample_ids, "gradients", width, hashes)
        if self.count and (gradients is not None) != (self.gradient_width > 0):
            had, has = ("with", "without") if self.gradient_width else ("without", "with")
            raise ValueError(f"a sketch is of one kind: it was updated {had} `gradients` so far, and now {has} them")
        if features.shape[0] == 0:
            return
        if self.num_directions and self.directions is None:
            raise ValueError(f"{self!r} is finished: what it needed to take more samples has been let go")
        self.allocate(features.shape[1], features.device, 0 if gradients is None else gradients.shape[1])
        self._known_problem = self.known_cka_problem = self._constant = self.kept_cores = None
        if isinstance(sample_ids, Tensor):
            sample_ids = hash_samples(sample_ids, *hashes)
        with torch.inference_mode(False), torch.no_grad():
            if self.keeps_factors:
                self._occupy(sample_ids.ids)
            if self.dtype == torch.float64:  # which the device of the features may not have
                features = features.to(self.device)
                gradients = None if gradients is None else gradients.to(self.device)
            if not self.count and gradients is None:
                self._find_directions(features[:SAMPLES])
            for rows, samples in sample_ids.to(self.device, self.dtype).blocks(_SAMPLES_PER_BLOCK):
                self._add(features[rows], None if gradients is None else gradients[rows], samples)
        self.fingerprint = wrapped(self.fingerprint + sample_ids.fingerprint)
        self.count += features.shape[0]

    def _find_directions(self, features: Tensor) -> None:
        """Those of the first samples, if they are to be followed; none where nothing is folded."""
        if self.directions == "first" or not self.is_folded:
            how = self.num_projections, self.seed, self.dtype
            self.directions = leading_directions(features, *how) if self.is_folded else None
        self.num_directions = 0 if self.directions is None else len(self.directions)

    def _add(self, features: Tensor, gradients: Tensor | None, samples: HashedSamples) -> None:
        if gradients is not None and self.keeps_factors:
            features, gradients = (x.to(self.device, self.dtype) for x in (features, gradients))
            return add_factors(self._sums, features, gradients, samples)
        how = self.num_projections, self.seed, self.dtype
        if isinstance(self.directions, LeadingDirections):
            folds = self.directions.sketched(features)
        else:
            folds = fold(features, *how) if gradients is None else tensor_sketch(features, gradients, *how)
        folds = folds.to(self.device)
        self._sums["feature_sums"] += column_sums(folds)
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
        device, total = home_of_sums(device), width * gradient_width if gradient_width else width
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

    def clear(self) -> Self:
        """Forget all samples and be as new, but keep the memory for a layer of the same widths; returns itself."""
        if factors_kept(self.width, self.gradient_width, self.num_projections) and not self.keeps_factors:
            self._sums = {}
            self.width = self.gradient_width = 0
        for value in self._sums.values():
            value.zero_()
        self.count = self.fingerprint = 0
        self.directions, self.num_directions = None, 0
        self.forget()
        return self

    def merge(self, other: BucketSums) -> None:
        """Add the samples of another sketch of the same network and layer.

        Raises:
            ValueError: when seeds, sizes, dtypes, widths or leading directions differ.
        """
        self._require_same_hashes(other)
        if not other._sums:
            return
        if self._sums and (self.width, self.gradient_width) != (other.width, other.gradient_width):
            raise ValueError(
                f"cannot merge sketches of different layers or kinds: of width {self.width} and {other.width}, with "
                f"gradients of width {self.gradient_width} and {other.gradient_width} (0: without)"
            )
        if not self.count:
            self.directions, self.num_directions = other.directions, other.num_directions
        elif self.num_directions + other.num_directions and (self.directions or 0) is not other.directions:
            raise ValueError("cannot merge sketches that follow different leading directions, or are finished")
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

    @property
    def device(self) -> torch.device:
        """Where the state lies."""
        return next(iter(self._sums.values())).device if self._sums else torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Move the state, in place; to the CPU, if the device has no float64."""
        device = home_of_sums(device)
        if self.device != device:
            self._sums = {name: value.to(device) for name, value in self._sums.items()}
            self.forget()
        return self

    def on(self, device: torch.device | str) -> Self:
        """The sketch on a device: itself where it lies there, else a copy."""
        return self if self.device == home_of_sums(device) else copy.copy(self).to(device)

    def sums(self) -> list[Tensor]:
        """The tensors of the state, which add over disjoint sets of samples."""
        return list(self._sums.values())

    def is_finite(self) -> bool:
        """Whether neither NaN nor infinite features were added."""
        return all(bool(torch.isfinite(value).all()) for value in self._sums.values())

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors that `from_state_dict` makes the sketch from."""
        return {
            "num_buckets": self.num_buckets,
            "num_projections": self.num_projections,
            "seed": self.seed,
            "dtype": str(self.dtype).removeprefix("torch."),
            "width": self.width,
            "gradient_width": self.gradient_width,
            "num_directions": self.num_directions,
            "factors": self.keeps_factors,
            "count": self.count,
            "fingerprint": self.fingerprint,
            "sums": {name: value.cpu() for name, value in self._sums.items()},
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The sketch that `state_dict` was taken from, on the CPU."""
        dtype = {"float32": torch.float32, "float64": torch.float64}[state["dtype"]]
        sketch = cls._of_settings(state, dtype)
        for name in ("width", "gradient_width", "count", "fingerprint", "num_directions"):
            setattr(sketch, name, state.get(name, 0))  # of directions earlier versions knew nothing
        sketch._sums = dict(state["sums"])
        return sketch

    @classmethod
    def _of_settings(cls, state: dict[str, Any], dtype: torch.dtype) -> Self:
        return cls(state["num_buckets"], state["num_projections"], state["seed"], dtype)

    def require_comparable(self, other: BucketSums) -> None:
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

    def _require_same_hashes(self, other: BucketSums) -> None:
        if type(other) is not type(self):
            raise ValueError(
                f"a {type(self).__name__} can only be combined with another, got {type(other).__name__}: they hold "
                "different things"
            )
        for name in ("num_buckets", "num_projections", "seed", "dtype"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"sketches with different `{name}` cannot be combined, got {mine} and {theirs}")

    def _held(self) -> dict[str, Tensor]:
        if not self.count:
            raise ValueError("the sketch holds no samples; update() it with some first")
        return self._sums
