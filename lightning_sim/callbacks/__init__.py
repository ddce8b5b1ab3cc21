"""Lightning callbacks: when to measure, nothing about how."""

from lightning_sim.callbacks.similarity_monitor import SimilarityMonitor

__all__ = ["SimilarityMonitor"]
