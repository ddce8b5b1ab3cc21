"""Definitions in float64 numpy, written independently of the package."""

import numpy as np


def centered(x):
    x = np.asarray(x, dtype=np.float64)
    return x - x.mean(0)


def hsic_unbiased(x, y):
    """HSIC_1 of Song et al. 2012, eq. 5, of the linear kernels of centred x and y, whichever way is smaller."""
    n = len(x)
    diagonals = (x**2).sum(1), (y**2).sum(1)
    if x.shape[1] * y.shape[1] < n**2:
        trace = np.linalg.norm(x.T @ y) ** 2 - diagonals[0] @ diagonals[1]
    else:
        kernels = [z @ z.T - np.diag(d) for z, d in zip((x, y), diagonals, strict=True)]
        trace = (kernels[0] * kernels[1]).sum()
    # The rows of a centred kernel sum to zero, so those of the kernel without its diagonal to minus the diagonal.
    rows = -diagonals[0], -diagonals[1]
    total = trace + rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows[0] @ rows[1]
    return total / (n * (n - 3))


def cka_unbiased(x, y):
    x, y = centered(x), centered(y)
    return hsic_unbiased(x, y) / np.sqrt(hsic_unbiased(x, x) * hsic_unbiased(y, y))


def cka_biased(x, y):
    x, y = centered(x), centered(y)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def nbs(x, y):
    x, y = centered(x), centered(y)
    singular = np.linalg.svd(x.T @ y, compute_uv=False)
    return singular.sum() / (np.linalg.norm(x) * np.linalg.norm(y))
