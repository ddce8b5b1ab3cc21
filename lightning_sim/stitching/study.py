"""Analyses of one place to stitch: how low the rank may be, how sparse the map, and what lies between two stitches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_sim.figures.style import OUTPUT_COLORS, axis_label, label, new_figure, set_title, style_axes
from lightning_sim.functional import LinearMap
from lightning_sim.probe.forward import call_network
from lightning_sim.stitching.fitting import StitchingSums
from lightning_sim.stitching.network import Stitch, Stitched
from lightning_sim.stitching.scores import Scores, score_stitched
from lightning_sim.stitching.training import StitchingTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Found", "StitchingStudy", "profile_figure"]

Profile = dict[float, "Found"]


class Found(NamedTuple):
    """One stitch of a study.

    Args:
        scores: on the samples to evaluate.
        sparsity: share of the entries of its weight that are zero.
    """

    scores: Scores
    sparsity: float


class StitchingStudy:
    """Stitches of every kind at one place, found on some samples and scored on others.

    Args:
        front: as of :class:`lightning_sim.stitching.Stitched`, like what follows.
        layer: of the front.
        back: the other network.
        back_layer: of the back.
        fit: batches to find stitches with; iterated again for every one that is trained, so give a DataLoader.
        evaluation: batches of other samples to score them with.
        forward: ``forward(network, batch)`` runs either network.
        sums: of the samples to fit, where they are at hand for all layers; by a pass of its own if None.
        trainer: makes the Trainer of every stitch that is trained; one epoch without any output if None.
    """

    def __init__(
        self,
        front: nn.Module,
        layer: str,
        back: nn.Module,
        back_layer: str,
        fit: Iterable[Any],
        evaluation: Iterable[Any],
        *,
        forward: Callable[[nn.Module, Any], Any] = call_network,
        sums: StitchingSums | None = None,
        trainer: Callable[[], Trainer] | None = None,
    ) -> None:
        self._place = front, layer, back, back_layer
        self._fit, self._evaluation, self._forward = fit, evaluation, forward
        self._trainer = trainer or _quiet_trainer
        if sums is None:
            sums = StitchingSums(front, back, {layer: back_layer}, forward=forward)
            sums.add(fit)
        self._sums = sums

    def map(self, **options: Any) -> LinearMap:
        """The map of a kind, as :func:`lightning_sim.functional.stitching_map` has them."""
        return self._sums.map(self._place[1], **options)

    def stitched(self, stitch: LinearMap | nn.Module | None) -> Stitched:
        """The network with this stitch."""
        return Stitched(*self._place, stitch, forward=self._forward)

    def score(self, stitch: LinearMap | nn.Module | None) -> Found:
        """How well the network with this stitch does on the samples to evaluate."""
        stitched = self.stitched(stitch)
        weight = getattr(stitched.stitch, "weight", None)
        sparsity = 0.0 if weight is None else float((weight.detach() == 0).float().mean())
        return Found(score_stitched(stitched, self._evaluation), sparsity)

    def r2(self, stitch: LinearMap | Stitch) -> float:
        """Share of the variance of the back's features that a stitch explains, on the samples to fit."""
        return self._sums.r2(self._place[1], stitch)

    def train(self, stitch: LinearMap | Stitch, **options: Any) -> Stitch:
        """A stitch trained from this start, the least-squares map as a rule.

        Args:
            stitch: where it starts.
            options: of :class:`lightning_sim.stitching.training.StitchingTask`.
        """
        started = stitch if isinstance(stitch, Stitch) else Stitch(stitch)
        self._trainer().fit(StitchingTask(self.stitched(started), **options), self._fit)
        return started

    def low_rank_profile(self, ranks: Sequence[int], *, train: bool = True, **options: Any) -> dict[str, Profile]:
        """Scores over the rank, of least squares and of two factors trained from it (Figure 7 of the paper)."""
        found: dict[str, Profile] = {name: {} for name in ("least squares", "task loss")[: 1 + train]}
        for rank in ranks:
            start = self.map(kind="reduced_rank", rank=rank)
            found["least squares"][rank] = self.score(start)
            if train:
                found["task loss"][rank] = self.score(self.train(Stitch(start, rank=rank), **options))
        return found

    def sparsity_profile(self, alphas: Sequence[float], l1: Sequence[float] = (), **options: Any) -> dict[str, Profile]:
        """Scores and sparsity over the weight of the L1 norm, of lasso and of the task loss (Figure 8 of the paper)."""
        return {
            "lasso": {alpha: self.score(self.map(kind="lasso", alpha=alpha)) for alpha in alphas},
            "task loss": {weight: self.score(self.train(self.map(), l1=weight, **options)) for weight in l1},
        }

    def mode_connectivity(self, points: int = 5, *, seed: int = 0, **options: Any) -> Profile:
        """Scores on the line between two stitches trained from random starts, over the share of the second."""
        generator = torch.Generator().manual_seed(seed)
        weight, bias, r2 = self.map()
        ends = []
        for _ in range(2):
            drawn = torch.randn(weight.shape, generator=generator) / weight.shape[0] ** 0.5
            ends.append(self.train(LinearMap(drawn, torch.zeros_like(bias), r2), **options))
        shares = torch.linspace(0, 1, points).tolist()
        between = {}
        for share in shares:
            first, second = ((end.weight.detach(), end.bias.detach()) for end in ends)
            mixed = [torch.lerp(a, b, share) for a, b in zip(first, second, strict=True)]
            between[share] = self.score(LinearMap(mixed[0], mixed[1], r2))
        return between


def profile_figure(
    title: str,
    curves: Mapping[str, Mapping[float, float]],
    axis_labels: tuple[str, str] = ("rank", "relative accuracy"),
) -> Figure:
    """Numbers over a setting, a line each; needs the extra ``plot``.

    Args:
        title: above it.
        curves: name -> setting -> value.
        axis_labels: what settings and values are.
    """
    figure = new_figure(5.2, 3.4)
    axes = figure.subplots()
    for index, (name, points) in enumerate(curves.items()):
        color = OUTPUT_COLORS[index % len(OUTPUT_COLORS)]
        axes.plot(list(points), list(points.values()), marker="o", markersize=3.5, color=color, label=label(name))
    style_axes(axes)
    set_title(axes, title)
    axis_label(axes.set_xlabel, axis_labels[0])
    axis_label(axes.set_ylabel, axis_labels[1])
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    return figure


def _quiet_trainer() -> Trainer:
    return Trainer(
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
