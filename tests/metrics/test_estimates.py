"""Standard errors of metrics, and the one with labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lightning_sim import functional
from lightning_sim.metrics import ErrorConsistency, OutputDivergence
from tests.metrics.cases import CASES, WITH_ERRORS
from tests.metrics.processes import consistency_batches

MEASURES = {
    "cka sketch": "cka",
    "cka sketch with ids": "cka",
    "nbs sketch": "nbs",
    "agreement": "agreement",
    "divergence": "jsd",
    "rank correlation": "rank_correlation",
}


@pytest.mark.parametrize("name", MEASURES)
def test_errors_are_those_of_all_samples_at_once(name: str) -> None:
    metric = CASES[name].fed()
    x, y = (torch.cat(side) for side in list(zip(*CASES[name].batches, strict=True))[:2])
    expected: Any = functional.estimate(x, y, measure=MEASURES[name])  # type: ignore[arg-type]
    assert [float(part) for part in metric.estimate()] == pytest.approx([float(part) for part in expected], rel=1e-6)
    assert metric.estimate().value == metric.compute()


def test_minibatches_are_the_samples_of_their_error() -> None:
    batches = [(x, y) for x, y in CASES["cka minibatch"].batches if len(x) >= 4]
    terms = torch.stack(
        [torch.stack([functional.hsic(u, v) for u, v in ((x, y), (x, x), (y, y))]) for x, y in batches]
    ).numpy()
    total = terms.sum(0)
    value = total[0] / np.sqrt(total[1] * total[2])
    influences = value * (terms[:, 0] / total[0] - terms[:, 1] / (2 * total[1]) - terms[:, 2] / (2 * total[2]))
    count = len(batches)
    found = CASES["cka minibatch"].fed().estimate()
    expected = np.sqrt(count / (count - 1) * (influences**2).sum())
    assert [float(part) for part in found] == pytest.approx([value, expected], rel=1e-9)
    assert CASES["cka minibatch"].fed(batches[:1]).estimate().standard_error.isnan()


def test_bits_have_the_error_of_bits() -> None:
    nats, bits = (CASES["divergence"].make(base=base) for base in ("e", 2))
    for batch in CASES["divergence"].batches:
        nats.update(*batch)
        bits.update(*batch)
    scale = float(torch.tensor(2.0, dtype=torch.float64).log())
    assert isinstance(nats, OutputDivergence)
    assert [scale * float(part) for part in bits.estimate()] == pytest.approx([float(part) for part in nats.estimate()])


@pytest.mark.parametrize("name", sorted(set(CASES) - set(WITH_ERRORS)))
def test_metrics_that_keep_too_little_say_so(name: str) -> None:
    with pytest.raises(NotImplementedError, match="keeps too little of its samples to know a standard error"):
        CASES[name].fed().estimate()


@pytest.mark.parametrize("name", WITH_ERRORS)
def test_nothing_has_no_error(name: str) -> None:
    with pytest.warns(UserWarning, match="returning NaN"):
        found = CASES[name].make().estimate()
    assert found.value.isnan()
    assert found.standard_error.isnan()


def test_error_consistency_of_batches_is_that_of_all_samples() -> None:
    whole, parts = ErrorConsistency(), ErrorConsistency()
    a, b, labels = (torch.cat(side) for side in zip(*consistency_batches(), strict=True))
    whole.update(a, b, labels)
    for batch in consistency_batches():
        if len(batch[0]) < 50:  # too few for a value of their own
            parts.update(*batch)
        else:
            assert parts(*batch).accuracy_a == (batch[0].argmax(1) == batch[2]).double().mean()
    expected = functional.error_consistency(a, b, labels)
    torch.testing.assert_close(tuple(parts.compute()), tuple(expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(tuple(parts.compute()), tuple(whole.compute()), rtol=0, atol=1e-12)
    parts.update(a[:0], b[:0], labels[:0])
    assert int(parts.counts[3]) == len(a)
    merged = ErrorConsistency()
    merged.merge_state(whole)
    assert tuple(merged.compute()) == tuple(whole.compute())
    empty = ErrorConsistency()
    empty.update(a[:0], b[:0], labels[:0])
    with pytest.warns(UserWarning, match="no samples were given"):
        assert empty.compute().value.isnan()
    with pytest.raises(ValueError, match="`labels` must be classes from 0 to 5"):
        whole.update(a, b, labels + 1)
