"""Standard errors: by definition, by the jackknife that leaves one sample out, and by their coverage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_sim.functional import (
    Estimate,
    centered_kernel_alignment,
    error_consistency,
    estimate,
    jensen_shannon_divergence,
    normalized_bures_similarity,
    prediction_agreement,
    rank_correlation,
)
from tests.digits import features, logits, shifted_digits
from tests.functional.representations import correlated_pair

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "cka": centered_kernel_alignment,
    "nbs": normalized_bures_similarity,
    "agreement": prediction_agreement,
    "jsd": jensen_shannon_divergence,
    "rank_correlation": rank_correlation,
}


def row_sums_by_definition(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Entry by entry, as U-centring is written."""
    kernels = []
    n = len(x)
    for z in (x, y):
        k = z @ z.T
        np.fill_diagonal(k, 0)
        r, s = k.sum(1), k.sum()
        u = k - r[:, None] / (n - 2) - r[None] / (n - 2) + s / ((n - 1) * (n - 2))
        np.fill_diagonal(u, 0)
        kernels.append(u)
    a, b = kernels
    return [(a * b).sum(1), (a * a).sum(1), (b * b).sum(1)]


@pytest.mark.parametrize(("n", "p1", "p2"), [(50, 5, 3), (30, 80, 4), (6, 9, 9)])
def test_error_of_cka_is_its_formula(n: int, p1: int, p2: int) -> None:
    x, y = correlated_pair(n, p1, p2)
    found = estimate(x, y)
    a, b, c = row_sums_by_definition(x.numpy(), y.numpy())
    cka = a.sum() / np.sqrt(b.sum() * c.sum())
    influences = 2 * a / a.sum() - b / b.sum() - c / c.sum()
    assert float(found.value) == pytest.approx(cka, abs=1e-12)
    assert float(found.standard_error) == pytest.approx(
        abs(cka) * np.sqrt(n / (n - 1) * (influences**2).sum()), rel=1e-9
    )


def test_error_of_nbs_is_its_formula() -> None:
    x, y = (z.numpy() - z.numpy().mean(0) for z in correlated_pair(40, 6, 70))
    for a, b in ((x, y), (y, x), (x, x[:, :4])):
        u, s, vt = np.linalg.svd(a.T @ b, full_matrices=False)
        share = np.einsum("ip,pk,kq,iq->i", a, u, vt, b) / s.sum()
        influences = share - (a**2).sum(1) / (2 * (a**2).sum()) - (b**2).sum(1) / (2 * (b**2).sum())
        nbs = s.sum() / (np.linalg.norm(a) * np.linalg.norm(b))
        expected = nbs * np.sqrt(40 / 39 * (influences**2).sum())
        found = estimate(torch.from_numpy(a), torch.from_numpy(b), measure="nbs")
        assert float(found.value) == pytest.approx(nbs, abs=1e-12)
        assert float(found.standard_error) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("measure", ["cka", "nbs", "agreement", "jsd", "rank_correlation", "error_consistency"])
def test_errors_are_near_those_that_leave_out_one_sample(measure: str) -> None:
    n = 300
    if measure in ("cka", "nbs"):
        arguments = (features()["f"][:n], features()["h"][:n])
    else:
        arguments = tuple(z[::50][:n] for z in (*logits(), shifted_digits()[1]))
    labels = arguments[2:] if measure == "error_consistency" else ()
    function = FUNCTIONS.get(measure, lambda *args: error_consistency(*args).value)
    without = []
    for index in range(n):
        rest = [torch.cat([z[:index], z[index + 1 :]]) for z in (*arguments[:2], *labels)]
        without.append(float(function(*rest)))
    expected = np.sqrt((n - 1) ** 2 / n * np.var(without, ddof=1))
    found = estimate(*arguments[:2], measure=measure, labels=labels[0] if labels else None)
    assert float(found.value) == pytest.approx(float(function(*arguments[:2], *labels)), abs=1e-12)
    assert float(found.standard_error) == pytest.approx(expected, rel=0.02)


def test_means_over_samples_have_the_error_of_a_mean() -> None:
    a, b = (z[::40] for z in logits())
    agreements = (a.argmax(1) == b.argmax(1)).double().numpy()
    found = estimate(a, b, measure="agreement")
    assert float(found.standard_error) == pytest.approx(agreements.std(ddof=1) / len(a) ** 0.5, rel=1e-12)


def test_identical_networks_have_no_error_and_constants_none_to_speak_of() -> None:
    x, y = correlated_pair(30, 4, 3)
    assert float(estimate(x, 2 * x + 1).standard_error) == pytest.approx(0, abs=1e-9)
    with pytest.warns(UserWarning, match="`y` has no variance"):
        found = estimate(x, torch.ones_like(y))
    assert isinstance(found, Estimate)
    assert found.value.isnan()
    assert found.standard_error.isnan()
    assert estimate(x.float(), y.float()).standard_error.dtype == torch.float32
    with pytest.raises(ValueError, match="`measure` must be one of 'cka', 'nbs'"):
        estimate(x, y, measure="mmd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`labels` must be a torch\.Tensor"):
        estimate(x, x, measure="error_consistency")


def coverage(measure: str, pair: str, n: int, draws: int) -> float:
    """Share of draws of n samples whose interval holds the population's value; of NBS, the mean at this n."""
    population = logits() if pair == "logits" else tuple(features()[name] for name in pair)
    generator = torch.Generator().manual_seed(n)
    found = []
    for _ in range(draws):
        rows = torch.randperm(len(population[0]), generator=generator)[:n]
        found.append(torch.stack(estimate(*(z[rows] for z in population), measure=measure)))  # type: ignore[arg-type]
    values, errors = torch.stack(found).T
    truth = values.mean() if measure == "nbs" else FUNCTIONS[measure](*population)
    share = float(((values - truth).abs() <= 1.96 * errors).double().mean())
    print(
        f"{measure} {pair} n={n}: {truth:.3f}, sd {values.std():.4f}, mean SE {errors.mean():.4f}, coverage {share:.3f}"
    )
    return share


def test_intervals_cover() -> None:
    # Of 60 draws of 95 in 100, fewer than 52 come up once in 200.
    for measure, pair in (("cka", "fh"), ("cka", "hk"), ("nbs", "hk"), ("jsd", "logits"), ("agreement", "logits")):
        assert coverage(measure, pair, 128, 60) >= 52 / 60, measure


@pytest.mark.study
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("measure", "pair", "n"),
    [("cka", pair, n) for pair in ("fh", "fk", "hk") for n in (128, 512)]
    + [("nbs", pair, 512) for pair in ("fh", "fk", "hk")]
    + [(measure, "logits", n) for measure in ("agreement", "jsd", "rank_correlation") for n in (128, 512)],
)
def test_two_hundred_intervals_cover(measure: str, pair: str, n: int) -> None:
    assert 0.90 <= coverage(measure, pair, n, 200) <= 0.99
