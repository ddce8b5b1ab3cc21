"""Similarity measures as torchmetrics: accumulated over batches, added over ranks."""

from lightning_sim.metrics.canonical_correlation import CanonicalCorrelation
from lightning_sim.metrics.centered_kernel_alignment import CenteredKernelAlignment
from lightning_sim.metrics.error_consistency import ErrorConsistency
from lightning_sim.metrics.normalized_bures_similarity import NormalizedBuresSimilarity
from lightning_sim.metrics.outputs import OutputDivergence, PredictionAgreement, RankCorrelation
from lightning_sim.metrics.stitching import StitchingMap
from lightning_sim.metrics.weights import WeightCenteredKernelAlignment

__all__ = [
    "CanonicalCorrelation",
    "CenteredKernelAlignment",
    "ErrorConsistency",
    "NormalizedBuresSimilarity",
    "OutputDivergence",
    "PredictionAgreement",
    "RankCorrelation",
    "StitchingMap",
    "WeightCenteredKernelAlignment",
]
