"""Similarity that is 0 / 0 is NaN with its reason, and similarity that is not keeps its value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sim import functional
from lightning_sim.functional import centered_kernel_alignment
from lightning_sim.metrics import CenteredKernelAlignment, NormalizedBuresSimilarity

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# On both routes of the function, by kernels and by cross-covariances, and from 4 samples to 2,000.
SIZES = [(4, 1), (4, 9), (16, 3), (64, 8), (64, 512), (300, 8), (300, 300), (2000, 8)]


def draws(seed: int) -> Callable[..., Tensor]:
    return partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_differs(n: int, width: int, seed: int) -> Tensor:
    draw = draws(seed)
    x = draw(width).expand(n, width).clone()
    x[seed % n] = draw(width)
    return x


def one_is_alive(n: int, width: int, seed: int) -> Tensor:
    x = torch.zeros(n, width, dtype=torch.float64)
    x[seed % n] = draws(seed)(width).relu() + 0.1
    return x


def equidistant(n: int, width: int, seed: int) -> Tensor:
    """One-hot rows, scaled and moved."""
    return 0.7 * torch.eye(n, max(n, width), dtype=torch.float64) + 0.3


def equidistant_and_turned(n: int, width: int, seed: int) -> Tensor:
    draw, width = draws(seed), max(n, width)
    return 3 * torch.eye(n, width, dtype=torch.float64) @ torch.linalg.qr(draw(width, width)).Q + 10 * draw(width)


def alignments(n: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    def metric(x: Tensor, y: Tensor, *settings: str) -> Tensor:
        made = CenteredKernelAlignment(*settings, num_features_x=x.shape[1], num_features_y=y.shape[1])
        parts = [n] if settings == ("minibatch",) else [n // 3, n - n // 3]
        for batch in zip(x.split(parts), y.split(parts), strict=True):
            made.update(*batch)
        return made.compute()

    return {
        "function": centered_kernel_alignment,
        "rbf": partial(centered_kernel_alignment, kernel="rbf"),
        "minibatch": partial(functional.minibatch_centered_kernel_alignment, batch_size=n),
        "product": lambda x, y: functional.product_kernel_similarity(
            x, torch.ones_like(x[:, :1]), y, torch.ones_like(y[:, :1])
        ),
        "metric minibatch": lambda x, y: metric(x, y, "minibatch"),
        "metric exact": lambda x, y: metric(x, y, "exact"),
    }


@pytest.mark.parametrize(
    ("n", "width", "dtype"),
    [(*size, dtype) for size in SIZES for dtype in (DTYPES if size[0] < 300 else DTYPES[2:])],
    ids=str,
)
@pytest.mark.parametrize("degenerate", [one_differs, one_is_alive, equidistant, equidistant_and_turned])
def test_no_unbiased_similarity_is_nan(
    degenerate: Callable[[int, int, int], Tensor], n: int, width: int, dtype: torch.dtype
) -> None:
    if "equidistant" in degenerate.__name__ and n > 64:
        n, width = 64, 2 * n if n < 1000 else 1500
    if degenerate is equidistant_and_turned and dtype not in (torch.float32, torch.float64):
        dtype = torch.float32  # the rows of a half would not be equally far apart
    for seed in range(3 if n < 1000 else 1):
        x = degenerate(n, width, seed).to(dtype)
        y = draws(seed)(n, 5).to(dtype)
        for name, alignment in alignments(len(x)).items():
            if n > 500 and name in ("rbf", "minibatch", "product"):
                continue  # seconds for the same route
            if x.shape[1] > 600 and "metric" in name:
                continue
            for pair, side in (((x, x), "x"), ((x, y), "x"), ((y, x), "y")):
                with pytest.warns(UserWarning, match=f"{side}.*returning NaN"):
                    assert alignment(*pair).isnan(), (name, seed, side)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "width"), [(8, 5), (64, 4), (300, 8)])
def test_constants_that_were_computed_are_no_similarity(n: int, width: int, dtype: torch.dtype) -> None:
    # All rows but one are the same number but for one unit in the last place, as a product of matrices leaves them.
    for seed in range(5):
        draw = draws(seed)
        x = draw(width).expand(n, width).clone()
        x[0] = 1000 * draw(width)
        x = x.to(dtype) * (1 + torch.finfo(dtype).eps * draw(n, width).sign().to(dtype))
        for name in ("function", "rbf", "minibatch", "metric minibatch", "metric exact"):
            with pytest.warns(UserWarning, match="returning NaN"):
                assert alignments(n)[name](x, x).isnan(), name


def exact_alignment(x: Tensor, y: Tensor, estimator: str) -> float:
    """By the U-centred kernel, in the widest floats that numpy has."""
    kernels = []
    for z in (x, y):
        rows = z.double().numpy().astype(np.longdouble)
        rows = rows - rows.mean(0)
        kernel, n = rows @ rows.T, len(rows)
        if estimator == "unbiased":
            np.fill_diagonal(kernel, 0)
            means = kernel.sum(0) / (n - 2)
            kernel = kernel - means - means[:, None] + means.sum() / (n - 1)
            np.fill_diagonal(kernel, 0)
        kernels.append(kernel)
    k, m = kernels
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def honest(n: int, width: int, seed: int) -> dict[str, Tensor]:
    draw = draws(seed)
    base = draw(n, width)
    found = {"one direction": draw(n, 1) @ draw(1, width), "clusters": draw(3, width)[torch.arange(n) % 3]}
    found["clusters with noise"] = found["clusters"] + 1e-6 * draw(n, width)
    for size in (1e2, 1e4, 1e6):
        found[f"one sample larger by {size:g}"] = base.clone()
        found[f"one sample larger by {size:g}"][0] *= size
        found[f"mean {size:g}"] = base + size * draw(width).sign()
    found["a large column"] = base * torch.tensor([1e4, *[1] * (width - 1)])
    found["a large constant column"] = base.clone()
    found["a large constant column"][:, 0] = 1e8
    found["two that differ"] = torch.zeros(n, width, dtype=torch.float64)
    found["two that differ"][:2] = draw(2, width)
    found["two that differ"][1] += found["two that differ"][0]
    found["very small"] = 1e-30 * base
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "width"), [(8, 3), (30, 100), (100, 4)])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_what_float64_can_tell_keeps_its_value(n: int, width: int, estimator: str, dtype: torch.dtype) -> None:
    for seed in range(3):
        y = draws(100 + seed)(n, 4).to(dtype)
        for name, wide in honest(n, width, seed).items():
            x = wide.to(dtype)
            for other in (x, y):
                value = float(centered_kernel_alignment(x, other, estimator=estimator))
                assert value == pytest.approx(exact_alignment(x, other, estimator), abs=1e-6), (name, seed)
                assert abs(value) <= 1


@pytest.mark.parametrize("mean", [1e3, 1e5, 5e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exact_metrics_at_large_means(dtype: torch.dtype, mean: float) -> None:
    # At 5e6 the standard deviation of 2 is still that of 4 units in the last place of float32.
    draw = draws(0)
    latent = draw(400, 3)
    x, y = ((latent @ draw(3, p) + draw(400, p) + mean).to(dtype) for p in (6, 4))
    cka = CenteredKernelAlignment("exact", num_features_x=6, num_features_y=4)
    nbs = NormalizedBuresSimilarity("exact", num_features_x=6, num_features_y=4)
    for batch in zip(x.split(90), y.split(90), strict=True):
        cka.update(*batch)
        nbs.update(*batch)
    assert float(cka.compute()) == pytest.approx(exact_alignment(x, y, "unbiased"), abs=1e-7)
    centred = [(z.double() - z.double().mean(0)).numpy() for z in (x, y)]
    expected = np.linalg.norm(centred[0].T @ centred[1], "nuc") / np.prod([np.linalg.norm(z) for z in centred])
    assert float(nbs.compute()) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("project_psd", [True, False])
def test_inputs_turned_in_float32_explain_everything(project_psd: bool) -> None:
    draw = draws(0)
    inputs, y = draw(60, 8).float(), draw(60, 5).float()
    x = inputs @ torch.linalg.qr(draw(8, 8)).Q.float()  # equal kernels up to the rounding of float32
    with pytest.warns(UserWarning, match="`x` has no variance that `inputs` do not explain"):
        assert functional.deconfounded_centered_kernel_alignment(x, y, inputs, project_psd=project_psd).isnan()


@pytest.mark.parametrize("measure", ["cka", "nbs"])
def test_a_product_kernel_of_computed_constants_is_nan(measure: str) -> None:
    draw = draws(0)
    constants = [(1 + 1e-7 * draw(50, 6).sign()).float() for _ in range(4)]
    with pytest.warns(UserWarning, match="`features_x` times `gradients_x`.*has no variance above rounding"):
        assert functional.product_kernel_similarity(*constants, measure=measure).isnan()


@pytest.mark.parametrize("compare", ["spearman", "pearson"])
@pytest.mark.parametrize("dissimilarity", ["correlation", "euclidean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equally_dissimilar_pairs_up_to_rounding(dtype: torch.dtype, dissimilarity: str, compare: str) -> None:
    x = equidistant_and_turned(30, 40, 0) if dissimilarity == "euclidean" else torch.eye(30, 40, dtype=torch.float64)
    x, y = (x * 0.7).to(dtype), draws(1)(30, 5).to(dtype)
    measure = functional.representational_similarity_analysis
    with pytest.warns(UserWarning, match="`x` has only equally dissimilar pairs"):
        assert measure(x, y, dissimilarity=dissimilarity, compare=compare).isnan()


@pytest.mark.parametrize(
    ("metric", "x"),
    [
        ("cosine", torch.arange(1.0, 13.0)[:, None] * torch.tensor([0.3, 0.4])),
        ("euclidean", 0.7 * torch.eye(12) + 0.3),
        ("inner_product", torch.eye(12)),
        ("cosine", torch.eye(12)[:, :1]),
    ],
)
def test_samples_without_nearest_ones_are_nan(metric: str, x: Tensor) -> None:
    y = draws(0)(12, 3).float()
    for pair, side in (((x, x), "`x` and `y`"), ((x, y), "`x`"), ((y, x), "`y`")):
        with pytest.warns(UserWarning, match=f"no sample of {side} has others that are nearer"):
            assert functional.mutual_knn(*pair, k=3, metric=metric).isnan()


def test_a_chain_of_weights_that_cancels_is_no_layer() -> None:
    # The second layer takes what the first does not give: the product is zero but for the rounding of float32.
    draw = draws(0)
    half, mixture = draw(30, 8), draw(8, 8)
    first = torch.cat([half, half @ mixture], 1).float()
    chain = [first, torch.cat([mixture, -torch.eye(8, dtype=torch.float64)]).float()]
    with pytest.warns(UserWarning, match=r"product of `weights_a` up to \[1\] has no variance"):
        value = functional.weight_centered_kernel_alignment(chain, [half.float()])
    assert value[0].isfinite().all()
    assert value[1].isnan().all()
