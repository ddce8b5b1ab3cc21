"""Constant-memory summaries of one network on one probe, and the similarities of such summaries."""

from lightning_sim.sketch.similarity import centered_kernel_alignment_matrix, normalized_bures_similarity
from lightning_sim.sketch.sketch import Sketch
from lightning_sim.sketch.synchronization import all_reduce_sketches

__all__ = ["Sketch", "all_reduce_sketches", "centered_kernel_alignment_matrix", "normalized_bures_similarity"]
