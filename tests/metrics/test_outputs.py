from __future__ import annotations

import math

import pytest
import torch

from lightning_sim.metrics import OutputDivergence, PredictionAgreement, RankCorrelation
from tests.golden import Golden, reference_rows
from tests.metrics.cases import logits


def fed(metric: torch.nn.Module, a: torch.Tensor, b: torch.Tensor, size: int = 7) -> torch.Tensor:
    for batch in zip(a.split(size), b.split(size), strict=True):
        metric.update(*batch)
    return metric.compute()


@pytest.mark.parametrize("row", reference_rows("agreement"), ids=str)
def test_golden_agreement(row: Golden) -> None:
    row.assert_reproduced_by(fed(PredictionAgreement(), *row.arrays()))


@pytest.mark.parametrize("row", reference_rows("jsd"), ids=str)
def test_golden_divergence(row: Golden) -> None:
    # One case has probabilities that are exactly zero, and so logarithms of -inf.
    a, b = (probabilities.log() for probabilities in row.arrays())
    row.assert_reproduced_by(fed(OutputDivergence(base=row.params["base"]), a, b))


@pytest.mark.parametrize("row", reference_rows("spearman_outputs"), ids=str)
def test_golden_rank_correlation(row: Golden) -> None:
    row.assert_reproduced_by(fed(RankCorrelation(), *row.arrays()))


def test_divergence_of_certain_and_different_predictions_is_one_bit() -> None:
    certain = torch.tensor([[0.0, -torch.inf]]).expand(10, 2)
    assert float(fed(OutputDivergence(), certain, certain.flip(1))) == pytest.approx(math.log(2), abs=1e-15)
    assert float(fed(OutputDivergence(base=2), certain, certain.flip(1))) == pytest.approx(1, abs=1e-15)
    assert float(fed(OutputDivergence(), certain, certain)) == 0


def test_rank_correlation_leaves_out_samples_that_rank_nothing() -> None:
    a, b = logits(30)
    expected = float(fed(RankCorrelation(), a[4:], b[4:]))
    a[:3], b[3] = 1, 0
    with pytest.warns(UserWarning, match="constant over the classes for 4 of 30 samples"):
        assert float(fed(RankCorrelation(), a, b)) == pytest.approx(expected, abs=1e-12)
    with (
        pytest.warns(UserWarning, match="for 3 of 3 samples"),
        pytest.warns(UserWarning, match="no samples.*returning NaN"),
    ):
        assert fed(RankCorrelation(), a[:3], b[:3]).isnan()


def test_float32_logits_are_summed_in_float64() -> None:
    # A float32 count of samples would stop at 2 ** 24.
    for metric in (PredictionAgreement(), OutputDivergence(), RankCorrelation()):
        metric.update(*(side.float() for side in logits(10)))
        assert {state.dtype for state in metric.metric_state.values()} == {torch.float64}


@pytest.mark.parametrize("make", [PredictionAgreement, OutputDivergence, RankCorrelation])
@pytest.mark.parametrize("shape", [(5, 1), (5, 0), (5,), (0,)])
def test_outputs_that_are_no_logits_of_classes_are_refused(make: type[torch.nn.Module], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`logits_a` must"):
        make().update(torch.ones(shape), torch.ones(shape))


def test_another_base_is_refused() -> None:
    with pytest.raises(ValueError, match="`base` must be one of 'e', 2, got 10"):
        OutputDivergence(base=10)
