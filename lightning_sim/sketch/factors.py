"""Features and gradients side by side, whose product kernel is exact while every bucket holds at most one sample."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_sim.sketch.hashing import HashedSamples
from lightning_sim.sketch.tensor_sketch import tensor_sketch

__all__ = ["add_factors", "factors_kept", "factors_sum", "no_factors", "share_a_bucket", "tensor_sketched"]

_ROWS_PER_BLOCK = 128


def factors_kept(width: int, gradient_width: int, num_projections: int) -> bool:
    """Whether a product is kept as its two factors: their outer products do not fit into k columns, but they do."""
    return width * gradient_width > num_projections >= width + gradient_width > width


def no_factors(
    num_buckets: int, width: int, gradient_width: int, dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """The state without samples: signed features (M, p_f), gradients (M, p_g) and signs (M,) in their buckets."""
    return {
        "bucket_features": torch.zeros(num_buckets, width, dtype=dtype, device=device),
        "bucket_gradients": torch.zeros(num_buckets, gradient_width, dtype=dtype, device=device),
        "bucket_ones": torch.zeros(num_buckets, dtype=dtype, device=device),
    }


def add_factors(sums: dict[str, Tensor], features: Tensor, gradients: Tensor, samples: HashedSamples) -> None:
    """Add samples that lie in empty buckets, all different."""
    # One of the factors carries the sign, so that their product has it.
    if samples.run is not None:
        places: slice | Tensor = samples.run
        torch.mul(features, samples.signs[:, None], out=sums["bucket_features"][places])
    else:
        places = samples.buckets
        sums["bucket_features"][places] = features * samples.signs[:, None]
    sums["bucket_gradients"][places] = gradients
    sums["bucket_ones"][places] = samples.signs


def share_a_bucket(sums: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether a bucket holds a sample on both sides."""
    return bool(((sums["bucket_ones"] != 0) & (others["bucket_ones"].to(sums["bucket_ones"].device) != 0)).any())


def factors_sum(sums: dict[str, Tensor]) -> Tensor:
    """Sum over the samples of the outer products f (x) g, (p_f, p_g) in float64."""
    signed = sums["bucket_features"].double() * sums["bucket_ones"].double()[:, None]
    return signed.T @ sums["bucket_gradients"].double()


def tensor_sketched(sums: dict[str, Tensor], num_projections: int, seed: int) -> dict[str, Tensor]:
    """The same samples as sums of tensor sketches, which more samples can be added to."""
    features, gradients, ones = sums["bucket_features"], sums["bucket_gradients"], sums["bucket_ones"]
    num_buckets, columns = len(ones), num_projections // 2
    bucket_sums = torch.empty(2, num_buckets, columns, dtype=features.dtype, device=features.device)
    feature_sums = torch.zeros(2, columns, dtype=torch.float64, device=features.device)
    for start in range(0, num_buckets, _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        folds = tensor_sketch(features[rows], gradients[rows], num_projections, seed, features.dtype)
        bucket_sums[:, rows] = folds
        feature_sums += (folds * ones[rows, None]).sum(1, dtype=torch.float64)
    return {"bucket_sums": bucket_sums, "bucket_ones": ones.clone(), "feature_sums": feature_sums}
