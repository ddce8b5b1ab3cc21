"""What is measured: the measures found by name, and what one of your own is made from."""

from lightning_sim.measures.layers import LayerFunction, LayerMeasure
from lightning_sim.measures.measure import Measure, Pairs, Side, Values
from lightning_sim.measures.outputs import ErrorConsistency, OutputFunction
from lightning_sim.measures.sketches import NormalizedBuresSimilarityOfLayers
from lightning_sim.measures.stitching import Stitching
from lightning_sim.measures.table import DEFAULT_MEASURES, MEASURES, OneMeasure, as_measures
from lightning_sim.record import Key, Scale, SimilarityMatrix

__all__ = [
    "DEFAULT_MEASURES",
    "MEASURES",
    "ErrorConsistency",
    "Key",
    "LayerFunction",
    "LayerMeasure",
    "Measure",
    "NormalizedBuresSimilarityOfLayers",
    "OneMeasure",
    "OutputFunction",
    "Pairs",
    "Scale",
    "Side",
    "SimilarityMatrix",
    "Stitching",
    "Values",
    "as_measures",
]
