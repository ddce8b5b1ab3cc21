"""The measures that are found by name; a new one is one line here."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from lightning_sim import functional
from lightning_sim._arguments import described
from lightning_sim.measures.fisher import FisherRaoDistance, FisherRaoNorm, Task2Vec
from lightning_sim.measures.layers import LayerFunction
from lightning_sim.measures.mean_embedding import MeanEmbedding
from lightning_sim.measures.measure import Measure
from lightning_sim.measures.outputs import ErrorConsistency, OutputFunction, output_statistics
from lightning_sim.measures.sketches import CenteredKernelAlignmentOfLayers, NormalizedBuresSimilarityOfLayers
from lightning_sim.measures.stitching import Stitching
from lightning_sim.measures.weights import WeightAlignment
from lightning_sim.record.scale import Scale

__all__ = ["DEFAULT_MEASURES", "MEASURES", "OneMeasure", "as_measures"]

OneMeasure = str | Measure | Callable[[Tensor, Tensor], object]

_SHARE = Scale(low=0, high=1, same=1)

_BUILT_IN: tuple[Measure, ...] = (
    CenteredKernelAlignmentOfLayers(),
    NormalizedBuresSimilarityOfLayers(),
    WeightAlignment(),
    OutputFunction(functional.prediction_agreement, "agreement", _SHARE, partial(output_statistics, "agreement")),
    OutputFunction(
        functional.jensen_shannon_divergence,
        "jsd",
        Scale(low=0, high=math.log(2), same=0, unit="nats"),
        partial(output_statistics, "jsd"),
    ),
    OutputFunction(
        functional.rank_correlation,
        scale=Scale(low=-1, high=1, same=1),
        beside=partial(output_statistics, "rank_correlation"),
    ),
    ErrorConsistency(),
    MeanEmbedding(),
    FisherRaoNorm(),
    FisherRaoDistance(),
    Task2Vec(),
    Stitching(),
    LayerFunction(functional.hsic, scale=Scale()),
    LayerFunction(functional.canonical_correlation, scale=_SHARE),
    LayerFunction(functional.svcca, scale=_SHARE),
    LayerFunction(functional.pwcca, scale=_SHARE),
    LayerFunction(functional.linear_regression_r2, scale=_SHARE),
    LayerFunction(functional.procrustes_distance, scale=Scale(low=0, high=math.sqrt(2), same=0)),
    LayerFunction(functional.angular_procrustes_distance, scale=Scale(low=0, high=math.pi / 2, same=0, unit="rad")),
    LayerFunction(functional.mutual_knn, scale=_SHARE),
    LayerFunction(functional.representational_similarity_analysis, scale=Scale(low=-1, high=1, same=1)),
)
MEASURES = {measure.name: measure for measure in _BUILT_IN}
DEFAULT_MEASURES = ("cka", "nbs", "wcka", "agreement", "jsd", "rank_correlation")


def as_measures(given: Any) -> tuple[Measure, ...]:
    """Measures from names, functions of two feature matrices, torchmetrics metrics, and measures; one or several.

    Raises:
        ValueError: for what is none of these, none at all, or two of one name, with the names that there are.
    """
    if isinstance(given, bytes | Mapping):
        raise ValueError(_refusal(given))
    # Networks and collections of metrics can be called, and iterated over as well.
    several = given if isinstance(given, Iterable) and not (isinstance(given, str) or callable(given)) else (given,)
    # The ranks of a training must agree on the order, which sets of text have not.
    several = sorted(several, key=str) if isinstance(several, set | frozenset) else several
    once = {item if isinstance(item, str) else id(item): item for item in several}
    found = tuple(_as_measure(item) for item in once.values())
    names = [measure.name for measure in found]
    if not found:
        raise ValueError(f"`measures` is empty; pass some of {', '.join(MEASURES)}, or functions of two matrices")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`measures` must have different names, got {', '.join(twice)} more than once; give name=")
    return found


def _as_measure(item: Any) -> Measure:
    if isinstance(item, Measure):
        return item
    if isinstance(item, str) and item in MEASURES:
        return copy.copy(MEASURES[item])  # a measure may keep what it finds out before training
    if not callable(item) or isinstance(item, type):
        raise ValueError(_refusal(item))
    return LayerFunction(item)


def _refusal(given: Any) -> str:
    return f"`measures` must be of {', '.join(MEASURES)}, functions, metrics or Measures, got {described(given)}"
