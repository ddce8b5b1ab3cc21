from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from lightning_sim.functional import jensen_shannon_divergence, prediction_agreement, rank_correlation
from tests.golden import Golden, reference_rows

FUNCTIONS = [jensen_shannon_divergence, prediction_agreement, rank_correlation]
DIVERGENCES = reference_rows("jsd")
AGREEMENTS = reference_rows("agreement")
CORRELATIONS = reference_rows("spearman_outputs")


def logit_pair(n: int = 30, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return a, a + 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)


def divergence_by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    """Mean in nats; scipy returns square roots."""
    p, q = scipy.special.softmax(a, axis=1), scipy.special.softmax(b, axis=1)
    return float(np.mean(scipy.spatial.distance.jensenshannon(p, q, axis=1) ** 2))


@pytest.mark.parametrize("row", DIVERGENCES, ids=str)
def test_golden_divergence(row: Golden) -> None:
    def reproduce(row: Golden, dtype: torch.dtype) -> Tensor:
        # The probabilities of `f_saturated` hold exact zeros, and so their logarithms -inf.
        a, b = (probabilities.log().to(dtype) for probabilities in row.arrays())
        return jensen_shannon_divergence(a, b, base=row.params["base"])

    row.assert_reproduced_in_both_dtypes(reproduce, atol=row.atol)


@pytest.mark.parametrize("row", AGREEMENTS, ids=str)
def test_golden_agreement(row: Golden) -> None:
    row.assert_reproduced_in_both_dtypes(lambda row, dtype: prediction_agreement(*row.arrays(dtype)), rtol=1e-6)


@pytest.mark.parametrize("row", CORRELATIONS, ids=str)
def test_golden_rank_correlation(row: Golden) -> None:
    if row.case == "f_saturated" and row.params["on"] == "probs":
        row.assert_reproduced_by(rank_correlation(*row.arrays()))
        # Cast to float32 more of these probabilities are zero, which adds ties.
        a, b = row.arrays(torch.float32)
        expected = [scipy.stats.spearmanr(p, q).statistic for p, q in zip(a.numpy(), b.numpy(), strict=True)]
        assert float(rank_correlation(a, b)) == pytest.approx(np.mean(expected), rel=1e-6)
    else:
        row.assert_reproduced_in_both_dtypes(lambda row, dtype: rank_correlation(*row.arrays(dtype)), atol=row.atol)


@pytest.mark.parametrize("a", [0.0, 50.0, 1e4, 1e30, 3e38])
def test_divergence_of_certain_predictions(a: float) -> None:
    # From equal distributions to disjoint ones, through probabilities that underflow.
    logits = torch.tensor([[a, -a]])
    expected = 0.0 if a == 0 else math.log(2)
    assert float(jensen_shannon_divergence(logits, -logits)) == pytest.approx(expected, abs=1e-6)
    assert float(jensen_shannon_divergence(logits, logits)) == 0


def test_zero_probabilities() -> None:
    never = torch.tensor([[1.0, 2.0, -torch.inf], [-torch.inf, 0.0, -torch.inf]], requires_grad=True)
    other = torch.tensor([[0.5, -torch.inf, 1.0], [0.0, 0.0, -torch.inf]], requires_grad=True)
    expected = divergence_by_scipy(never.detach().double().numpy(), other.detach().double().numpy())
    value = jensen_shannon_divergence(never, other)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-6)
    value.backward()
    for logits in (never, other):
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert logits.grad[logits.isinf()].eq(0).all()
        assert logits.grad.any()
    assert float(prediction_agreement(never, other)) == 0
    # Ranks 2 3 1 against 2 1 3 give -1, and 1.5 3 1.5 against 2.5 2.5 1 give 1/2.
    assert float(rank_correlation(never, other)) == pytest.approx(-0.25)


def test_nearly_equal_distributions_keep_digits_in_float32() -> None:
    a = torch.tensor([[0.0, 0.0]])
    b = torch.tensor([[1e-3, -1e-3]])
    # p = 1/2 + d with d = 5e-4, and the divergence is d^2 / 2 to fourth order.
    assert float(jensen_shannon_divergence(a, b)) == pytest.approx(5e-4**2 / 2, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_half_precision(dtype: torch.dtype, mean: float, scale: float) -> None:
    a, b = ((mean + scale * z / z.abs().max()).to(dtype) for z in logit_pair())
    wide_a, wide_b = a.double().numpy(), b.double().numpy()
    value = jensen_shannon_divergence(a, b)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(divergence_by_scipy(wide_a, wide_b), rel=5e-3, abs=1e-9)
    assert float(prediction_agreement(a, b)) == pytest.approx(np.mean(wide_a.argmax(1) == wide_b.argmax(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [scipy.stats.spearmanr(p, q).statistic for p, q in zip(wide_a, wide_b, strict=True)]
        assert float(rank_correlation(a, b)) == pytest.approx(np.nanmean(expected), rel=1e-5, nan_ok=True)


def test_first_of_equal_largest_logits_counts() -> None:
    tied = torch.tensor([[0.0, 5.0, 5.0, 1.0]])
    assert float(prediction_agreement(tied, torch.tensor([[0.0, 1.0, 0.0, 0.0]]))) == 1
    assert float(prediction_agreement(tied, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))) == 0


def test_rank_correlation_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(4, (50, 9), generator=generator).double() for _ in range(2))
    expected = [scipy.stats.spearmanr(p, q).statistic for p, q in zip(a.numpy(), b.numpy(), strict=True)]
    assert float(rank_correlation(a, b)) == pytest.approx(np.mean(expected), rel=1e-12)


def test_columns_in_memory_order_raise_no_warning() -> None:
    a, b = logit_pair()
    assert torch.equal(rank_correlation(a.T.contiguous().T, b[:, ::1]), rank_correlation(a, b))


def test_samples_without_a_ranking_are_left_out() -> None:
    a, b = logit_pair(10)
    expected = float(rank_correlation(a[2:], b[2:]))
    a[0], b[1] = 0.7, 0.7
    message = "`logits_a` and `logits_b` has no variance over the classes for 2 of 10 samples, left out"
    with pytest.warns(UserWarning, match=message) as caught:
        assert float(rank_correlation(a, b)) == pytest.approx(expected, rel=1e-12)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize("side", ["logits_a", "logits_b"])
def test_no_sample_with_a_ranking(side: str) -> None:
    a, b = logit_pair(10)
    given = {"logits_a": a, "logits_b": b, side: torch.full_like(a, 0.7)}
    message = f"^`{side}` has no variance over the classes for 10 of 10 samples.*NaN"
    with pytest.warns(UserWarning, match=message) as caught:
        assert rank_correlation(**given).isnan()
    assert [warning.filename for warning in caught] == [__file__]


def test_gradients_of_divergence() -> None:
    a, b = (z.requires_grad_() for z in logit_pair(4, 5))
    for base in ("e", 2):
        assert torch.autograd.gradcheck(partial(jensen_shannon_divergence, base=base), (a, b))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_input_is_refused(function) -> None:  # type: ignore[no-untyped-def]
    a, b = logit_pair()
    with pytest.raises(ValueError, match=r"`logits_a` and `logits_b`.*\(30, 7\) and \(29, 7\)"):
        function(a, b[:29])
    with pytest.raises(ValueError, match=r"`logits_a` and `logits_b`.*\(30, 7\) and \(30, 6\)"):
        function(a, b[:, :6])
    with pytest.raises(ValueError, match=r"`logits_b` must have shape.*\(30, 1, 7\)"):
        function(a, b[:, None])
    with pytest.raises(ValueError, match=r"`logits_a` must be floating-point.*int64.*\(30, 7\)"):
        function(a.long(), b)
    with pytest.raises(ValueError, match=r"`logits_a` must hold.* at least 2 classes.*\(30, 1\)"):
        function(a[:, :1], b[:, :1])
    with pytest.raises(ValueError, match=r"need at least 1 sample.*\(0, 7\)"):
        function(a[:0], b[:0])
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match=r"`logits_b` of shape \(30, 7\) holds NaN or infinite"):
            function(a, b.masked_fill(b == b.max(), bad))
    with pytest.raises(ValueError, match=r"`logits_b` of shape \(30, 7\) holds a sample with all"):
        function(a, torch.cat([b[:-1], torch.full_like(b[:1], -torch.inf)]))
    with pytest.raises(ValueError, match=r"`logits_a` must be a torch.Tensor"):
        function(a.numpy(), b)


def test_unknown_base_is_refused() -> None:
    with pytest.raises(ValueError, match="`base` must be one of 'e', 2, got 10"):
        jensen_shannon_divergence(*logit_pair(), base=10)
