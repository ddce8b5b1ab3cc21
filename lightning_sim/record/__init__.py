"""The record of a monitored run: what one measurement yields, the history of all, the file, and reading it back."""

from lightning_sim.record.history import SimilarityHistory
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement, SimilarityMatrix
from lightning_sim.record.saved_run import read_history
from lightning_sim.record.scale import Scale
from lightning_sim.record.statistics import STATISTICS
from lightning_sim.record.trajectory import Trajectory

__all__ = [
    "STATISTICS",
    "Key",
    "Measurement",
    "Scale",
    "SimilarityHistory",
    "SimilarityMatrix",
    "Trajectory",
    "read_history",
]
