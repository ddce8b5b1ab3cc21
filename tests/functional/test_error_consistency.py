"""Error consistency against scikit-learn's kappa, and where it has no value."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from lightning_sim.functional import error_consistency
from tests.digits import logits, shifted_digits


@pytest.mark.parametrize("step", [2, 37, 700])
def test_kappa_is_that_of_scikit_learn(step: int) -> None:
    a, b, labels = (z[::step] for z in (*logits(), shifted_digits()[1]))
    found = error_consistency(a.float(), b.float(), labels)
    right_a, right_b = (z.argmax(1) == labels for z in (a, b))
    assert float(found.value) == pytest.approx(cohen_kappa_score(right_a, right_b), abs=1e-12)
    assert float(found.accuracy_a) == pytest.approx(float(right_a.double().mean()), abs=1e-12)
    assert float(found.accuracy_b) == pytest.approx(float(right_b.double().mean()), abs=1e-12)
    assert float(found.observed) == pytest.approx(float((right_a == right_b).double().mean()), abs=1e-12)
    accuracies = found.accuracy_a * found.accuracy_b, (1 - found.accuracy_a) * (1 - found.accuracy_b)
    assert float(found.expected) == pytest.approx(float(sum(accuracies)), abs=1e-12)


def test_opposite_errors_are_less_than_chance() -> None:
    a = torch.eye(2)[[0, 0, 1, 1]]
    labels = torch.tensor([0, 1, 1, 0])
    assert float(error_consistency(a, -a, labels).value) == -1.0
    assert float(error_consistency(a, a, labels).value) == 1.0


def test_networks_without_errors_or_hits_have_no_consistency() -> None:
    a = torch.eye(3)
    for labels, how in ((torch.tensor([0, 1, 2]), "right"), (torch.tensor([1, 2, 0]), "wrong")):
        with pytest.warns(UserWarning, match=f"both networks are {how} on all samples") as caught:
            found = error_consistency(a, a, labels)
        assert [warning.filename for warning in caught] == [__file__]
        assert found.value.isnan()
        assert float(found.expected) == float(found.observed) == 1.0
    # One of them alone makes no common error, and chance expects none.
    found = error_consistency(a, a[[0, 2, 1]], torch.tensor([0, 1, 2]))
    assert float(found.value) == 0.0


def test_labels_must_be_classes() -> None:
    a = torch.eye(3)
    with pytest.raises(ValueError, match="`labels` must be classes from 0 to 2, got 0 to 3"):
        error_consistency(a, a, torch.tensor([0, 3, 1]))
    with pytest.raises(ValueError, match="`labels` must be 3 integers, one for each row of `logits_a`"):
        error_consistency(a, a, torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match="`labels` must be 3 integers"):
        error_consistency(a, a, torch.tensor([0, 1]))
