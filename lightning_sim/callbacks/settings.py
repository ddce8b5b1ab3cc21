"""What a user asks of a monitor, checked as far as it can be before a training is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_sim.probe.fisher import FISHER_MEASURES
from lightning_sim.probe.gradients import Objective, expected_loss, total_loss
from lightning_sim.probe.pooling import POOLS
from lightning_sim.probe.representations import REPRESENTATIONS, needs_gradients, sketched
from lightning_sim.reference import Reference
from lightning_sim.sketch import Sketch, Tang2020Sketch, sizes_for

__all__ = ["DEFAULT_MEASURES", "MEASURES", "Settings"]

DEFAULT_MEASURES = ("cka", "nbs", "wcka", "agreement", "jsd", "rank_correlation")
MEASURES = (*DEFAULT_MEASURES, "mean_embedding", *FISHER_MEASURES)


@dataclass(frozen=True)
class Settings:
    """What the user asked for; see :class:`lightning_sim.SimilarityMonitor`."""

    reference: Reference
    probe: Any
    layers: str | Sequence[str] | Mapping[str, str]
    measures: tuple[str, ...]
    representations: tuple[str, ...]
    num_samples: int
    num_buckets: int
    num_projections: int
    estimator: str
    forward: Callable[[nn.Module, Any], Any]
    seed: int
    beta: float = 0.5
    loss: Callable[[Any, Any], Tensor] | None = None
    sketch: str = "default"
    pool: str = "flatten"

    def __post_init__(self) -> None:
        if not self.measures or not set(self.measures) <= set(MEASURES):
            raise ValueError(f"`measures` must be of {', '.join(MEASURES)}, got {list(self.measures)}")
        if not self.representations or not set(self.representations) <= set(REPRESENTATIONS):
            known = ", ".join(f"{name!r} ({meaning})" for name, meaning in REPRESENTATIONS.items())
            raise ValueError(f"`representations` must be of {known}; got {list(self.representations)}")
        if self.estimator not in ("unbiased", "biased"):
            raise ValueError(f'`estimator` must be "unbiased" or "biased", got {self.estimator!r}')
        if self.num_samples < 4:
            raise ValueError(f"`num_samples` must be at least 4, got {self.num_samples}")
        if self.sketch not in ("default", "tang2020"):
            raise ValueError(f'`sketch` must be "default" or "tang2020", got {self.sketch!r}')
        if self.pool not in POOLS:
            raise ValueError(f"`pool` must be of {', '.join(POOLS)}, got {self.pool!r}")
        if "mean_embedding" in self.measures and self.sketch == "tang2020":
            raise ValueError('"mean_embedding" needs a sum of samples, which sketch="tang2020" lacks; leave one out')
        if "mean_embedding" in self.measures and "transport_map" in self.representations:
            raise ValueError('"mean_embedding" is not defined for the representation "transport_map"; leave one out')
        self.make_sketch()  # refuses sizes that do not work
        self.make_objective()

    def make_sketch(self, num_samples: int | None = None) -> Sketch:
        """An empty sketch of these sizes, or of those that use the same memory better for so many samples."""
        if self.sketch == "tang2020":
            return Tang2020Sketch(self.num_buckets, seed=self.seed)
        sizes = self.num_buckets, self.num_projections
        tokens = self.pool == "tokens"  # which are more than the samples of the probe
        if num_samples is not None and not tokens and not self._saved_with(*sizes):
            sizes = sizes_for(num_samples, *sizes)
        return Sketch(*sizes, self.seed)

    def _saved_with(self, num_buckets: int, num_projections: int) -> bool:
        """Whether the reference is of sketches made with just these sizes, as by hand."""
        saved = self.reference.saved
        sketches = [] if saved is None else [s for layers in saved.sketches.values() for s in layers.values()]
        return any((s.num_buckets, s.num_projections) == (num_buckets, num_projections) for s in sketches)

    def make_objective(self) -> Objective:
        """Whose gradients are taken."""
        return expected_loss(self.beta) if self.loss is None else total_loss(self.loss)

    @property
    def sketched(self) -> tuple[str, ...]:
        """The representations that are sketched for those asked for."""
        return sketched(self.representations)

    @property
    def needs_gradients(self) -> bool:
        """Whether any representation does."""
        return any(map(needs_gradients, self.representations))
