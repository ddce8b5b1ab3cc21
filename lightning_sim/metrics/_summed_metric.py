"""What all metrics share: states that add over batches and ranks, and ranks that add them by all-reduce."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_sim.functional.estimate import Estimate
from lightning_sim.sketch.synchronization import all_reduce_sum

__all__ = ["SummedMetric"]


class SummedMetric(Metric):
    """A metric whose states are all sums.

    Ranks add their states by all-reduce, one state at a time, where torchmetrics gathers the states of all ranks
    on every rank: memory and traffic are proportional to the state, whatever the number of ranks. A `dist_sync_fn`
    given by the user takes its place, and may return the states of all ranks or their sum.

    States keep their dtype when a module that holds the metric is cast, as Lightning's ``precision="bf16-true"``
    does; `set_dtype` widens them, and never narrows one below what its sums need.
    """

    full_state_update = False
    is_differentiable = False

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any | None = None,
        should_sync: bool = True,
        distributed_available: Callable[[], bool] | None = None,
    ) -> None:
        """Replace the states by their sums over the ranks, until `unsync`."""
        dist_sync_fn = dist_sync_fn or self.dist_sync_fn or _all_reduced
        super().sync(dist_sync_fn, process_group, should_sync, distributed_available)

    def estimate(self) -> Estimate:
        """What `compute` gives, with the standard error of its value: see :func:`lightning_sim.functional.estimate`.

        Of the samples of all ranks, on every rank that calls it together with the others.

        Raises:
            NotImplementedError: for metrics, and ways of summing, that keep too little to know one.
        """
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=self._should_unsync
        ):
            return self._estimate()

    def _estimate(self) -> Estimate:
        raise NotImplementedError(f"{type(self).__name__} keeps too little of its samples to know a standard error")

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the samples of another metric of the same class and settings, or of its `metric_state`.

        Raises:
            ValueError: for another metric or settings, or for states of other names or shapes.
        """
        # torchmetrics has this since 1.6 only, and goes on to return a value computed before.
        updates = 1
        if isinstance(incoming_state, Metric):
            if not isinstance(incoming_state, type(self)):
                raise ValueError(
                    f"`incoming_state` must be a {type(self).__name__} to be merged with one, "
                    f"got {type(incoming_state).__name__}"
                )
            updates, incoming_state = incoming_state.update_count, dict(incoming_state.metric_state)
        expected, given = _shapes(self.metric_state), _shapes(incoming_state)
        if given != expected:
            raise ValueError(f"`incoming_state` must hold states of the shapes {expected}, got {given}")
        self._reduce_states({name: value.to(self.device) for name, value in incoming_state.items()})
        self._computed = None
        self._update_count += updates

    def set_dtype(self, dst_type: str | torch.dtype) -> Metric:
        """Sum in this dtype where it is wider than that of a state: float64, while float32 changes nothing.

        Integers stay integers.

        Raises:
            ValueError: for another dtype.
        """
        if dst_type not in (torch.float32, torch.float64):
            raise ValueError(
                f"`dst_type` must be torch.float32 or torch.float64, got {dst_type}; inputs may be of any floating "
                "dtype, sums in half precision would lose samples"
            )

        def widened(value: Tensor) -> Tensor:
            return value.to(torch.promote_types(value.dtype, dst_type)) if value.is_floating_point() else value

        super()._apply(widened)
        return self

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Any | None = None) -> Any:
        """Plot a value, or a sequence of values over steps; needs matplotlib.

        Args:
            val: what `compute` or `forward` returned, or a sequence of these; `compute()` if None.
            ax: matplotlib axes to draw on; new ones if None.

        Returns:
            The figure (None where `ax` was given) and the axes.
        """
        return self._plot(val, ax)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        def keep_dtype(value: Tensor) -> Tensor:
            moved = fn(value)
            return moved if moved.dtype == value.dtype else value.to(moved.device)

        return super()._apply(keep_dtype, exclude_state)


def _shapes(state: Any) -> Any:
    """The shapes of the tensors in a state, and of other things what they are."""
    if not isinstance(state, dict):
        return state
    return {
        name: tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for name, value in state.items()
    }


def _all_reduced(value: Tensor, group: Any | None = None) -> list[Tensor]:
    """The sum over the ranks, in the form in which torchmetrics expects the values of all ranks."""
    # A copy, because torchmetrics keeps the local state to go on from.
    return [all_reduce_sum(value.detach().clone(memory_format=torch.contiguous_format), group)]
