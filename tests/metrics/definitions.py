"""Definitions in float64 numpy and scipy, written independently of the package."""

import numpy as np
import scipy.spatial.distance
import scipy.special
import scipy.stats

from tests.sketch.exact import centered, cka_biased, cka_unbiased, hsic_unbiased, nbs

__all__ = [
    "agreement",
    "cka_biased",
    "cka_minibatch",
    "cka_unbiased",
    "jensen_shannon",
    "mean_canonical_correlation",
    "nbs",
    "rank_correlation",
    "wcka",
]


def cka_minibatch(batches):
    """Sums of HSIC_1 over the batches that have the 4 samples it needs."""
    batches = [(centered(x), centered(y)) for x, y in batches if len(x) >= 4]
    cross, of_x, of_y = (
        sum(hsic_unbiased(*pair) for pair in pairs)
        for pairs in (batches, [(x, x) for x, _ in batches], [(y, y) for _, y in batches])
    )
    return cross / np.sqrt(of_x * of_y)


def canonical_correlations(x, y):
    """By singular vectors of the centred data, without covariances."""
    bases = []
    for z in (centered(x), centered(y)):
        u, s, _ = np.linalg.svd(z, full_matrices=False)
        bases.append(u[:, s > 1e-9 * s[0]])
    return np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)


def mean_canonical_correlation(x, y):
    return canonical_correlations(x, y).sum() / min(x.shape[1], y.shape[1])


def agreement(a, b):
    return np.mean(a.argmax(1) == b.argmax(1))


def jensen_shannon(a, b):
    """In nats; scipy returns square roots."""
    p, q = scipy.special.softmax(a, axis=1), scipy.special.softmax(b, axis=1)
    return np.mean(scipy.spatial.distance.jensenshannon(p, q, axis=1) ** 2)


def rank_correlation(a, b):
    """Of samples without ties over all classes, which have no rank correlation."""
    a, b = (ranks - ranks.mean(1, keepdims=True) for ranks in (scipy.stats.rankdata(z, axis=1) for z in (a, b)))
    return np.mean((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)))


def wcka(weights_a, weights_b):
    products = [[weights[0]] for weights in (weights_a, weights_b)]
    for chain, weights in zip(products, (weights_a, weights_b), strict=True):
        for weight in weights[1:]:
            chain.append(chain[-1] @ weight)
    return np.array([[cka_biased(p, q) for q in products[1]] for p in products[0]])
