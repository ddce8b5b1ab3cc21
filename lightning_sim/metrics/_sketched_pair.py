"""Sums of constant size over pairs of samples of any width: the sketches of two representations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sim._centering import undefined
from lightning_sim._checks import check_ids, check_pair
from lightning_sim.functional.estimate import Estimate
from lightning_sim.functional.hsic import Estimator
from lightning_sim.metrics._pair_metric import State
from lightning_sim.sketch import Sketch
from lightning_sim.sketch.folding import fold, num_folds
from lightning_sim.sketch.hashing import sample_buckets, sample_signs

__all__ = ["SketchedPair"]

_SIDES = ("x", "y")

# Signs of moved buckets are hashed from integers that no running count of samples reaches.
_FIRST_MOVE = 1 << 50


@dataclass(frozen=True)
class SketchedPair:
    """The sums that `lightning_sim.sketch.Sketch` keeps, of two sides with the same sample ids.

    Samples without an id are counted, 0, 1, ..., within every part. Where parts are added, each moves its samples on
    by the number that the parts before it hold: a move of all ids by d turns the buckets round by a fixed number of
    places. So the ids of all parts are consecutive, and do not collide while all samples together find a bucket.
    """

    num_buckets: int
    num_projections: int
    seed: int

    def __post_init__(self) -> None:
        Sketch(self.num_buckets, self.num_projections, self.seed)  # refuses sizes that cannot work

    def zeros(self) -> State:
        """Tensors of fixed shape: a layer narrower than `num_projections` leaves columns empty."""
        buckets, columns = self.num_buckets, self.num_projections
        return {
            "bucket_sums": torch.zeros(2, buckets, columns, dtype=torch.float32),
            "bucket_ones": torch.zeros(buckets, dtype=torch.float32),
            "feature_sums": torch.zeros(2, columns, dtype=torch.float64),
            "width_sums": torch.zeros(2, 2, dtype=torch.int64),  # of the widths and their squares, per side
            "count": torch.zeros((), dtype=torch.int64),
            "counted_ids": torch.zeros((), dtype=torch.int64),
        }

    def updated(self, state: State, x: Tensor, y: Tensor, sample_ids: Tensor | None) -> State:
        """The state with the samples of a batch added, out of place."""
        x, y = check_pair(x, y, minimum_rows=0)
        self._check_widths(state, x, y)
        n, dtype = len(x), state["bucket_sums"].dtype
        counted = int(state["counted_ids"])
        if sample_ids is None:
            ids = torch.arange(counted, counted + n, device=x.device)
        else:
            check_ids(sample_ids, x, "x")
            ids = sample_ids.to(x.device, torch.int64)
        buckets = sample_buckets(ids, self.num_buckets)
        signs = sample_signs(ids, self.seed).to(dtype)
        rows = torch.stack([self._folded(side.detach().to(dtype)) for side in (x, y)])
        widths = torch.tensor([[side.shape[1], side.shape[1] ** 2] for side in (x, y)], device=x.device)
        return {
            "bucket_sums": state["bucket_sums"].index_add(1, buckets, rows * signs[:, None]),
            "bucket_ones": state["bucket_ones"].index_add(0, buckets, signs),
            "feature_sums": state["feature_sums"] + rows.sum(1, dtype=torch.float64),
            "width_sums": state["width_sums"] + n * widths,
            "count": state["count"] + n,
            "counted_ids": state["counted_ids"] + (n if sample_ids is None else 0),
        }

    def announced(self, state: State, part: int, num_parts: int) -> Tensor:
        """How many ids every part counted: its own number, in its own place."""
        counts = torch.zeros(num_parts, dtype=torch.int64, device=state["count"].device)
        counts[part] = state["counted_ids"]
        return counts

    def aligned(self, state: State, announced: Tensor, part: int) -> State:
        """The state with all counted ids moved on by the number of those in the parts before."""
        distance = int(announced[:part].sum())
        if distance == 0 or int(state["counted_ids"]) == 0:
            return state
        ends = sample_buckets(torch.tensor([0, distance]), self.num_buckets)
        places = int(ends[1] - ends[0])
        # Samples of two parts had the same ids, hence the same signs; bucket by bucket they get independent ones.
        first = _FIRST_MOVE + distance * self.num_buckets
        buckets = torch.arange(first, first + self.num_buckets, device=state["bucket_ones"].device)
        signs = sample_signs(buckets, self.seed).to(state["bucket_ones"].dtype)
        return {
            **state,
            "bucket_sums": state["bucket_sums"].roll(places, 1) * signs[:, None],
            "bucket_ones": state["bucket_ones"].roll(places, 0) * signs,
        }

    def cka(self, state: State, estimator: Estimator) -> Tensor:
        """Centred kernel alignment; NaN with a warning where it is undefined."""
        return self._value(state, lambda x, y: (x.cka(y, estimator=estimator),), _cka_problem(estimator))[0]

    def cka_estimate(self, state: State, estimator: Estimator) -> Estimate:
        """The same with its standard error."""
        return Estimate(*self._value(state, lambda x, y: x.estimate(y, estimator=estimator), _cka_problem(estimator)))

    def nbs(self, state: State) -> Tensor:
        """Normalised Bures similarity; NaN with a warning where it is undefined."""
        return self._value(state, lambda x, y: (x.nbs(y),), Sketch.problem)[0]

    def nbs_estimate(self, state: State) -> Estimate:
        """The same with its standard error."""
        return Estimate(*self._value(state, lambda x, y: x.estimate(y, measure="nbs"), Sketch.problem))

    def _value(
        self,
        state: State,
        measure: Callable[[Sketch, Sketch], tuple[Tensor, ...]],
        problem: Callable[[Sketch], str | None],
    ) -> tuple[Tensor, ...]:
        """The measure, and its error if that gives one; NaN with a warning that says what the problem of a side is."""
        count, counted = int(state["count"]), int(state["counted_ids"])
        if count < 4:
            return (undefined(f"at least 4 samples are needed, got {count}", state["bucket_sums"]),) * 2
        if counted not in (0, count):
            raise ValueError(
                f"`sample_ids` must be given for every batch or for none: {count - counted} samples came with ids "
                f"and {counted} without"
            )
        x, y = self._sketches(state, count)
        found = measure(x, y)
        if not bool(found[0].isnan()):
            return found
        sides = zip(_SIDES, (x, y), strict=True)
        reasons = [f"`{name}` {reason}" for name, side in sides if (reason := problem(side)) is not None]
        outside = "the value is further out of its range than the noise of the folds explains"
        undefined("; ".join(reasons) or outside, state["bucket_sums"])
        return found

    def _sketches(self, state: State, count: int) -> tuple[Sketch, Sketch]:
        # Empty buckets change nothing, but a batch in `forward` would pay for all of them.
        occupied = ((state["bucket_ones"] != 0) | (state["bucket_sums"] != 0).any(2).any(0)).nonzero()[:, 0]
        num_buckets = max(4, 1 << max(len(occupied) - 1, 0).bit_length())
        missing = num_buckets - len(occupied)
        ones = torch.nn.functional.pad(state["bucket_ones"][occupied], (0, missing))
        sums = torch.nn.functional.pad(state["bucket_sums"][:, occupied], (0, 0, 0, missing))
        empty = Sketch(num_buckets, self.num_projections, self.seed, sums.dtype).state_dict()
        x, y = (
            Sketch.from_state_dict(
                {
                    **empty,
                    "width": width,
                    "count": count,
                    "sums": {
                        "bucket_sums": self._split(sums[side], width),
                        "bucket_ones": ones,
                        "feature_sums": self._split(state["feature_sums"][side][None], width)[:, 0],
                    },
                }
            )
            for side, width in enumerate(self._widths(state))
        )
        return x, y

    def _folded(self, rows: Tensor) -> Tensor:
        """The folds of (n, p) side by side, filled up to (n, num_projections)."""
        folded = torch.cat(list(fold(rows, self.num_projections, self.seed, rows.dtype)), dim=1)
        return torch.nn.functional.pad(folded, (0, self.num_projections - folded.shape[1]))

    def _split(self, rows: Tensor, width: int) -> Tensor:
        """The folds (folds, n, columns) in the rows (n, num_projections) that `_folded` gave."""
        folds = num_folds(width, self.num_projections)
        return rows[None, :, :width] if folds == 1 else torch.stack(rows.chunk(folds, 1))

    def _check_widths(self, state: State, x: Tensor, y: Tensor) -> None:
        if int(state["count"]) == 0:
            return
        for name, side, width in zip(_SIDES, (x, y), self._widths(state), strict=True):
            if side.shape[1] != width:
                raise ValueError(f"`{name}` must keep its width: {width} so far, got shape {tuple(side.shape)}")

    def _widths(self, state: State) -> list[int]:
        count, widths = int(state["count"]), []
        for name, (total, squares) in zip(_SIDES, state["width_sums"].tolist(), strict=True):
            width = int(total) // count
            if total * total != squares * count:  # the widths have a variance
                raise ValueError(f"`{name}` must have one width in all batches and on all ranks")
            widths.append(width)
        return widths


def _cka_problem(estimator: Estimator) -> Callable[[Sketch], str | None]:
    return lambda side: side.cka_problem(estimator)
