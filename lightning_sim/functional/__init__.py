"""Similarity measures as pure functions: representations, weights and outputs of two networks."""

from lightning_sim.functional.canonical_correlation import canonical_correlation, pwcca, svcca
from lightning_sim.functional.carriers import Carriers, carriers
from lightning_sim.functional.centered_kernel_alignment import centered_kernel_alignment
from lightning_sim.functional.chance import Null, permutation_null
from lightning_sim.functional.correlation import (
    CorrelationResult,
    pearson_correlation,
    spearman_correlation,
)
from lightning_sim.functional.deconfounding import deconfounded_centered_kernel_alignment
from lightning_sim.functional.error_consistency import ErrorConsistencyResult, error_consistency
from lightning_sim.functional.estimate import Estimate, estimate
from lightning_sim.functional.fisher import fisher_rao_distance, fisher_rao_norm, task2vec, task2vec_similarity
from lightning_sim.functional.hsic import hsic
from lightning_sim.functional.linear_regression import linear_regression_r2
from lightning_sim.functional.mean_embedding import kernel_mean_embedding_norm
from lightning_sim.functional.minibatch import minibatch_centered_kernel_alignment
from lightning_sim.functional.neighbors import mutual_knn
from lightning_sim.functional.normalized_bures_similarity import normalized_bures_similarity
from lightning_sim.functional.open_gates import OpenGateKernels, open_gate_alignment, open_gate_kernels
from lightning_sim.functional.outputs import (
    jensen_shannon_divergence,
    prediction_agreement,
    rank_correlation,
)
from lightning_sim.functional.procrustes import angular_procrustes_distance, procrustes_distance
from lightning_sim.functional.product_kernel import product_kernel_similarity
from lightning_sim.functional.representational_similarity import representational_similarity_analysis
from lightning_sim.functional.stitching import LinearMap, stitching_map
from lightning_sim.functional.weights import weight_centered_kernel_alignment

__all__ = [
    "Carriers",
    "CorrelationResult",
    "ErrorConsistencyResult",
    "Estimate",
    "LinearMap",
    "Null",
    "OpenGateKernels",
    "angular_procrustes_distance",
    "canonical_correlation",
    "carriers",
    "centered_kernel_alignment",
    "deconfounded_centered_kernel_alignment",
    "error_consistency",
    "estimate",
    "fisher_rao_distance",
    "fisher_rao_norm",
    "hsic",
    "jensen_shannon_divergence",
    "kernel_mean_embedding_norm",
    "linear_regression_r2",
    "minibatch_centered_kernel_alignment",
    "mutual_knn",
    "normalized_bures_similarity",
    "open_gate_alignment",
    "open_gate_kernels",
    "pearson_correlation",
    "permutation_null",
    "prediction_agreement",
    "procrustes_distance",
    "product_kernel_similarity",
    "pwcca",
    "rank_correlation",
    "representational_similarity_analysis",
    "spearman_correlation",
    "stitching_map",
    "svcca",
    "task2vec",
    "task2vec_similarity",
    "weight_centered_kernel_alignment",
]
