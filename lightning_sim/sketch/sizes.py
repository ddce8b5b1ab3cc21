"""Sizes of sketches for a probe whose number of samples is known."""

from __future__ import annotations

__all__ = ["sizes_for"]


def sizes_for(num_samples: int, num_buckets: int, num_projections: int) -> tuple[int, int]:
    """Buckets and projections whose product, hence the state, is as asked for, with as few buckets as hold the samples.

    A small probe leaves buckets empty; as columns they make wider layers exact, or their folds less noisy.

    Example:
        >>> sizes_for(450, 1024, 1024), sizes_for(1024, 1024, 1024)
        ((512, 2048), (1024, 1024))
    """
    while num_samples <= num_buckets // 2 and num_buckets > 4:
        num_buckets, num_projections = num_buckets // 2, 2 * num_projections
    return num_buckets, num_projections
