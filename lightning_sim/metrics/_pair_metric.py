"""Metrics of two representations: a batch, a rank and a merged metric all add to the same few tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_sim.metrics._summed_metric import SummedMetric

__all__ = ["PairMetric", "PairSums", "State"]

State = dict[str, Tensor]


class PairSums(Protocol):
    """A way of summing over pairs of rows of two representations.

    Parts summed apart from each other (on other ranks, in another metric, for one batch in `forward`) may have to
    agree on something before they add: around which mean their moments are, which buckets their samples are in.
    Every part announces a small tensor, and brings itself into line with the sum of what all announced.
    """

    def zeros(self) -> State:
        """The sums over no samples, of a shape that no sample changes."""

    def updated(self, state: State, x: Tensor, y: Tensor, sample_ids: Tensor | None) -> State:
        """The state with the samples of a batch added, out of place."""

    def announced(self, state: State, part: int, num_parts: int) -> Tensor:
        """What the other parts have to know of this one; the sum over the parts goes to `aligned`."""

    def aligned(self, state: State, announced: Tensor, part: int) -> State:
        """An equivalent state that adds, tensor by tensor, with those of the other parts."""


class PairMetric(SummedMetric):
    """A metric in [0, 1], or around 0 as well, whose states are the `PairSums` it is given."""

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, sums: PairSums, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._sums = sums
        for name, zero in sums.zeros().items():
            self.add_state(name, zero, dist_reduce_fx="sum")

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another metric of the same settings, or of its `metric_state`."""
        if isinstance(incoming_state, PairMetric) and incoming_state._sums != self._sums:
            raise ValueError(
                f"metrics of different settings cannot be merged, got {incoming_state._sums} and {self._sums}"
            )
        super().merge_state(incoming_state)

    def update(self, x: Tensor, y: Tensor, sample_ids: Tensor | None = None) -> None:
        """Add a batch of samples."""
        self._replace(self._sums.updated(self._state(), x, y, sample_ids))

    def _state(self) -> State:
        return cast(State, self.metric_state)  # no state is a list

    def _replace(self, state: State) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    # torchmetrics adds states in these two places: a batch or another metric's state, and those of all ranks.
    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        state = self._state()
        # What is added to again and again stays as it is: moved by the same number every time, as by parts of one size,
        # its samples would in the end have the signs of the others.
        own = 0 if _held(state) >= _held(incoming_state) else 1
        announced = self._sums.announced(state, own, 2) + self._sums.announced(incoming_state, 1 - own, 2)
        self._replace(self._sums.aligned(state, announced, own))
        super()._reduce_states(self._sums.aligned(incoming_state, announced, 1 - own))

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        group = process_group or self.process_group
        rank, num_ranks = 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
        announced = dist_sync_fn(self._sums.announced(self._state(), rank, num_ranks), group=group)
        self._replace(self._sums.aligned(self._state(), torch.stack(announced).sum(0), rank))
        super()._sync_dist(dist_sync_fn, process_group)


def _held(state: State) -> int:
    """Number of samples, or of batches, in a state."""
    return int(state["count"] if "count" in state else state["batches"])
