"""Watch how similar a network is to a reference while it trains."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_sim.callbacks import SimilarityMonitor
    from lightning_sim.engine import SimilarityEngine, compare_networks
    from lightning_sim.metrics import (
        CanonicalCorrelation,
        CenteredKernelAlignment,
        NormalizedBuresSimilarity,
        OutputDivergence,
        PredictionAgreement,
        RankCorrelation,
        StitchingMap,
        WeightCenteredKernelAlignment,
    )
    from lightning_sim.record import SimilarityHistory, read_history
    from lightning_sim.reference import Reference
    from lightning_sim.sketch import Sketch

from lightning_sim._version import __version__

__all__ = [
    "CanonicalCorrelation",
    "CenteredKernelAlignment",
    "NormalizedBuresSimilarity",
    "OutputDivergence",
    "PredictionAgreement",
    "RankCorrelation",
    "Reference",
    "SimilarityEngine",
    "SimilarityHistory",
    "SimilarityMonitor",
    "Sketch",
    "StitchingMap",
    "WeightCenteredKernelAlignment",
    "__version__",
    "compare_networks",
    "read_history",
]

_HOME = {
    "CanonicalCorrelation": "lightning_sim.metrics",
    "CenteredKernelAlignment": "lightning_sim.metrics",
    "NormalizedBuresSimilarity": "lightning_sim.metrics",
    "OutputDivergence": "lightning_sim.metrics",
    "PredictionAgreement": "lightning_sim.metrics",
    "RankCorrelation": "lightning_sim.metrics",
    "StitchingMap": "lightning_sim.metrics",
    "WeightCenteredKernelAlignment": "lightning_sim.metrics",
    "SimilarityEngine": "lightning_sim.engine",
    "compare_networks": "lightning_sim.engine",
    "Reference": "lightning_sim.reference",
    "SimilarityHistory": "lightning_sim.record",
    "SimilarityMonitor": "lightning_sim.callbacks",
    "Sketch": "lightning_sim.sketch",
    "read_history": "lightning_sim.record",
}


def __getattr__(name: str) -> Any:
    # Looked up on first use: the functions and metrics must be importable without Lightning.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
