"""What is told of a measurement beside its numbers: figures, and what could not be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from lightning_sim.record import Key, Measurement, SimilarityHistory
from lightning_sim.views import correlation_figure, interchange_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["by_problem", "figures_of"]


def figures_of(
    measurement: Measurement, correlations: Mapping[Key, float], history: SimilarityHistory, monitor: str
) -> dict[str, Callable[[], Figure]]:
    """How to make each figure, by the name under which loggers have it."""
    figures: dict[str, Callable[[], Figure]] = {
        f"{monitor}/matrix/{matrix.key.title.replace(', ', '/')}": partial(
            matrix.plot,
            f"{matrix.measure} of {matrix.representation}, epoch {measurement.epoch}",
            scale=history.scale(matrix.measure),
        )
        for matrix in measurement.matrices
    }
    if any(key.representation == "features" for key in correlations):
        figures[f"{monitor}/correlation/cka_jsd/features"] = partial(correlation_figure, history)
    measured = {key.measure for key in measurement.by_key}
    if {"cka", "stitching"} <= measured:
        figures[f"{monitor}/scatter/cka_stitching"] = partial(interchange_figure, history)
    return figures


def by_problem(problems: Mapping[Key, str]) -> dict[str, str]:
    """Problem -> what it is about: the layers, or else the measures."""
    about: dict[str, dict[str, None]] = {}
    for key, problem in problems.items():
        about.setdefault(problem, {})[key.measure if key.layer is None else key.layer] = None
    return {problem: ", ".join(names) for problem, names in about.items()}
