"""Every metric with data in uneven batches, and the value by an independent definition in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_sim.metrics import (
    CanonicalCorrelation,
    CenteredKernelAlignment,
    NormalizedBuresSimilarity,
    OutputDivergence,
    PredictionAgreement,
    RankCorrelation,
    WeightCenteredKernelAlignment,
)
from tests.metrics import definitions

Batch = tuple[Any, ...]

SIZES = (200, 1, 59, 140, 3, 97)  # 500 samples
WIDTHS = (12, 8)
# As many buckets as the samples need, so that any id given twice collides.
SKETCH = {"num_buckets": 512, "num_projections": 16}
EXACT = {"accumulate": "exact", "num_features_x": WIDTHS[0], "num_features_y": WIDTHS[1]}


@dataclass(frozen=True)
class Case:
    make: Callable[..., Metric]
    batches: list[Batch]
    expected: Callable[[list[Batch]], Any]  # of any of the batches

    def fed(self, batches: Sequence[Batch] | None = None, **kwargs: Any) -> Metric:
        """A metric in float64 that was given the batches, all of them by default."""
        metric = self.make(**kwargs).set_dtype(torch.float64)
        for batch in self.batches if batches is None else batches:
            metric.update(*batch)
        return metric


def representations(samples: int, widths: Sequence[int] = WIDTHS, seed: int = 0, mean: float = 3.0) -> list[Tensor]:
    """Two float64 representations of moderate similarity, with means that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    latent = draw(samples, 4)
    return [latent @ draw(4, width) + draw(samples, width) + mean * draw(width) for width in widths]


def logits(samples: int, classes: int = 6, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, noise = (torch.randn(samples, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return [2 * a, 2 * a + 3 * noise]


def layers(widths: Sequence[int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in itertools.pairwise(widths)]


def batched(pair: Sequence[Tensor], sizes: Sequence[int] = SIZES) -> list[Batch]:
    return list(zip(*(side.split(list(sizes)) for side in pair), strict=True))


def on_samples(definition: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[list[Batch]], float]:
    return lambda batches: definition(*(torch.cat(side).numpy() for side in list(zip(*batches, strict=True))[:2]))


def with_ids(batches: list[Batch]) -> list[Batch]:
    """Ids far from zero, in an order that has nothing to do with the batches."""
    ids = torch.randperm(sum(SIZES), generator=torch.Generator().manual_seed(0)) + 10**12
    return [(*batch, part) for batch, part in zip(batches, ids.split(list(SIZES)), strict=True)]


_PAIRS, _LOGITS = batched(representations(sum(SIZES))), batched(logits(sum(SIZES)))
_WIDTHS_A, _WIDTHS_B = (40, 8, 8, 6, 5), (40, 7, 9)
_WEIGHTS = [
    (weight_a, weight_b, layer)
    for layer, (weight_a, weight_b) in enumerate(itertools.zip_longest(layers(_WIDTHS_A, 0), layers(_WIDTHS_B, 1)))
]

CASES = {
    "cka sketch": Case(partial(CenteredKernelAlignment, **SKETCH), _PAIRS, on_samples(definitions.cka_unbiased)),
    "cka sketch biased": Case(
        partial(CenteredKernelAlignment, estimator="biased", **SKETCH), _PAIRS, on_samples(definitions.cka_biased)
    ),
    "cka sketch with ids": Case(
        partial(CenteredKernelAlignment, **SKETCH), with_ids(_PAIRS), on_samples(definitions.cka_unbiased)
    ),
    "cka exact": Case(partial(CenteredKernelAlignment, **EXACT), _PAIRS, on_samples(definitions.cka_unbiased)),
    "cka exact biased": Case(
        partial(CenteredKernelAlignment, estimator="biased", **EXACT), _PAIRS, on_samples(definitions.cka_biased)
    ),
    "cka minibatch": Case(
        partial(CenteredKernelAlignment, "minibatch"),
        _PAIRS,
        lambda batches: definitions.cka_minibatch([(x.numpy(), y.numpy()) for x, y in batches]),
    ),
    "nbs sketch": Case(partial(NormalizedBuresSimilarity, **SKETCH), _PAIRS, on_samples(definitions.nbs)),
    "nbs exact": Case(partial(NormalizedBuresSimilarity, **EXACT), _PAIRS, on_samples(definitions.nbs)),
    "cca": Case(partial(CanonicalCorrelation, *WIDTHS), _PAIRS, on_samples(definitions.mean_canonical_correlation)),
    "agreement": Case(PredictionAgreement, _LOGITS, on_samples(definitions.agreement)),
    "divergence": Case(OutputDivergence, _LOGITS, on_samples(definitions.jensen_shannon)),
    "rank correlation": Case(RankCorrelation, _LOGITS, on_samples(definitions.rank_correlation)),
    "wcka": Case(
        partial(WeightCenteredKernelAlignment, _WIDTHS_A, _WIDTHS_B),
        _WEIGHTS,
        lambda batches: definitions.wcka(
            *([batch[side].numpy() for batch in batches if batch[side] is not None] for side in (0, 1))
        ),
    ),
}
WITH_ERRORS = [name for name in CASES if not name.endswith(("exact", "exact biased")) and name not in ("cca", "wcka")]
PAIR_CASES = [name for name, case in CASES.items() if case.batches is _PAIRS]

# The states that the value follows from. HSIC_1 does not depend on how data are centred, so on no mean; other states
# decide what counts as rounding, what is warned of, and how parts are brought into line before they add.
DECISIVE = {
    "cka sketch": ("bucket_sums", "bucket_ones", "width_sums", "count", "counted_ids"),
    "cka sketch biased": ("bucket_sums", "bucket_ones", "feature_sums", "width_sums", "count", "counted_ids"),
    "cka sketch with ids": ("bucket_sums", "bucket_ones", "width_sums", "count"),
    "cka exact": ("count", "covariances", "norms_norms"),
    "cka exact biased": ("covariances",),
    "cka minibatch": ("hsic_terms",),
    "nbs sketch": ("bucket_sums", "bucket_ones", "feature_sums", "width_sums", "count", "counted_ids"),
    "nbs exact": ("covariances",),
    "cca": ("covariances",),
    "agreement": ("agreements", "count"),
    "divergence": ("divergences", "count"),
    "rank correlation": ("correlations", "count"),
    "wcka": ("weight_a_0", "weight_a_1", "weight_a_2", "weight_b_0", "weight_b_1"),
}
