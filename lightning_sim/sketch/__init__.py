"""Constant-memory summaries of one network on one probe, and the similarities of such summaries."""

from lightning_sim.sketch.alignment_errors import Alignments
from lightning_sim.sketch.hashing import HashedSamples, hash_samples
from lightning_sim.sketch.mean_embedding import mean_embedding_norm
from lightning_sim.sketch.ridge_regression import RidgeRegression, kernel_ridge_regression
from lightning_sim.sketch.shared_subspace import SharedSubspace, shared_subspace
from lightning_sim.sketch.similarity import (
    alignments,
    centered_kernel_alignment_matrix,
    normalized_bures_similarity,
)
from lightning_sim.sketch.sizes import sizes_for
from lightning_sim.sketch.sketch import Sketch
from lightning_sim.sketch.sketch_set import SketchSet
from lightning_sim.sketch.storage import load_sketch, load_sketches, save_sketch, save_sketches
from lightning_sim.sketch.synchronization import all_reduce_sketches
from lightning_sim.sketch.tang2020 import Tang2020Sketch
from lightning_sim.sketch.transport_map import TransportMap, transport_map_kernel
from lightning_sim.sketch.unpaired import compare_unpaired

__all__ = [
    "Alignments",
    "HashedSamples",
    "RidgeRegression",
    "SharedSubspace",
    "Sketch",
    "SketchSet",
    "Tang2020Sketch",
    "TransportMap",
    "alignments",
    "all_reduce_sketches",
    "centered_kernel_alignment_matrix",
    "compare_unpaired",
    "hash_samples",
    "kernel_ridge_regression",
    "load_sketch",
    "load_sketches",
    "mean_embedding_norm",
    "normalized_bures_similarity",
    "save_sketch",
    "save_sketches",
    "shared_subspace",
    "sizes_for",
    "transport_map_kernel",
]
