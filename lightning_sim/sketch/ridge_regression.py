"""Kernel ridge regression from sketches: what a layer knows about labels, without the samples at hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sim._arguments import check_number
from lightning_sim.sketch.folding import fold, num_folds
from lightning_sim.sketch.sketch import Sketch

__all__ = ["RidgeRegression", "kernel_ridge_regression"]


@dataclass(frozen=True)
class RidgeRegression:
    """A fitted regression; see :func:`kernel_ridge_regression`.

    Args:
        weights: (columns, outputs) of the folded, centred features.
        feature_means: (columns,).
        label_means: (outputs,), the intercept.
        width: p of the features.
        num_projections: k of the sketches.
        seed: of the sketches.
    """

    weights: Tensor
    feature_means: Tensor
    label_means: Tensor
    width: int
    num_projections: int
    seed: int

    def predict(self, features: Tensor) -> Tensor:
        """Labels (b, outputs) in float64 for the features (b, ...) of new samples; the arg max is the class.

        Raises:
            ValueError: when the features are not of the fitted width.
        """
        features = features.detach().flatten(1)
        if features.shape[1] != self.width:
            raise ValueError(
                f"`features` must have the width {self.width} of the sketched ones, got shape {tuple(features.shape)}"
            )
        folded = fold(features.to(self.weights.device), self.num_projections, self.seed, torch.float64)
        columns = torch.cat(list(folded), dim=1) / len(folded) ** 0.5
        predicted: Tensor = (columns - self.feature_means) @ self.weights + self.label_means
        return predicted


def kernel_ridge_regression(features: Sketch, labels: Sketch, *, regularization: float = 0.1) -> RidgeRegression:
    r"""Ridge regression of labels on a layer's features, both given as sketches of the same samples.

    With :math:`Z = S(X - 1\mu')R` and :math:`T = S(Y - 1\nu')` of one and the same hash S,

    .. math:: W = Z'(ZZ' + \lambda I)^{-1} T = (Z'Z + \lambda I)^{-1} Z'T, \quad
        \hat y(x) = (R'x - R'\mu)' W + \nu, \quad \lambda = r \, \|Z\|_F^2 / N

    with r the `regularization` relative to the mean of the kernel's diagonal. Exactly kernel ridge regression with the
    linear kernel of centred data while nothing collides or is folded (N <= M, p <= k); beyond that it solves the
    sketched problem, whose answer comes near while M and k are several times the features' effective rank.

    Cost: O(M k min(M, k)), whatever N.

    Args:
        features: of a layer, sketched without gradients.
        labels: made with ``labels.update(one_hot.float(), sample_ids)``, or of any targets (b, outputs), with the sizes
            and seed of `features`.
        regularization: r, positive.

    Returns:
        The regression, in float64.

    Raises:
        ValueError: when the sketches are of different samples, seeds or sizes, the labels are folded, one of them
            holds NaN or is constant, or `regularization` is not positive.

    References:
        Tang et al. 2020, *Similarity of Neural Networks with Gradients*, appendix G.

    Example:
        >>> import torch
        >>> from lightning_sim.sketch import Sketch, kernel_ridge_regression
        >>> x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
        >>> classes = (x[:, 0] > 0).long()
        >>> features, labels = Sketch(num_buckets=256), Sketch(num_buckets=256)
        >>> features.update(x, torch.arange(200))
        >>> labels.update(torch.nn.functional.one_hot(classes).float(), torch.arange(200))
        >>> predicted = kernel_ridge_regression(features, labels).predict(x).argmax(1)
        >>> bool((predicted == classes).float().mean() > 0.95)
        True
    """
    if check_number(regularization, "regularization") <= 0:
        raise ValueError(f"`regularization` must be positive, got {regularization}")
    if type(features) is not Sketch or features.gradient_width:
        raise ValueError(f"`features` must be a Sketch made without gradients, got {features!r}")
    if features.num_directions:
        raise ValueError(f"`features` must be a Sketch of folds alone, as new samples will be folded, got {features!r}")
    features.require_comparable(labels)
    for sketch, name in ((features, "features"), (labels, "labels")):
        if (problem := sketch.problem()) is not None:
            raise ValueError(f"the sketch of the {name} {problem}")
    if num_folds(labels.width, labels.num_projections) > 1:
        raise ValueError(
            f"the labels have {labels.width} columns and were folded into {labels.num_projections}: sketch both with "
            "more `num_projections`"
        )
    columns, feature_means = _unfolded(features)
    targets, label_means = _unfolded(labels)
    penalty = regularization * float(columns.square().sum()) / features.count
    if len(columns) < columns.shape[1]:
        weights = columns.T @ _solve(columns @ columns.T, targets, penalty)
    else:
        weights = _solve(columns.T @ columns, columns.T @ targets, penalty)
    return RidgeRegression(
        weights, feature_means, label_means, features.width, features.num_projections, features.seed
    )


def _unfolded(sketch: Sketch) -> tuple[Tensor, Tensor]:
    """Sketched, centred data (M, columns) with the folds side by side, and the means (columns,), in float64."""
    centered = sketch.centered()[0].double()
    means = sketch.uncentered()[2]
    scale = len(centered) ** -0.5  # so that the Gram is the mean of the folds' Grams
    return torch.cat(list(centered), dim=1) * scale, means.flatten() * scale


def _solve(gram: Tensor, right: Tensor, penalty: float) -> Tensor:
    gram.diagonal().add_(penalty)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
