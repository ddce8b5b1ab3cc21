from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from lightning_sim.probe.targets import find_targets

LOGITS, CLASSES = torch.zeros(3, 300), [0, 2, 299]


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("name", ["labels", "label", "targets", "target", "y", 1])
def test_classes_of_any_integers_under_every_name_fit_a_loss(name, dtype):
    classes = torch.tensor(CLASSES, dtype=dtype)
    batch = (LOGITS, classes, "more") if name == 1 else {"x": LOGITS, name: classes}
    found = find_targets(batch, LOGITS)
    assert found.tolist() == CLASSES
    assert float(F.cross_entropy(LOGITS, found)) == pytest.approx(np.log(300))


def test_bytes_are_classes():
    assert find_targets([LOGITS, torch.tensor([0, 2, 255], dtype=torch.uint8)], LOGITS).tolist() == [0, 2, 255]


@pytest.mark.parametrize(
    "given",
    [
        torch.tensor([0.0, 1.0, 2.0]),
        torch.tensor([True, False, True]),
        torch.tensor([0, 2, 300]),
        torch.tensor([0, -100, 2]),
        torch.tensor([[0], [1], [2]]),
        torch.tensor([0, 2]),
        ["cat", "dog", "bird"],
    ],
    ids=["regression", "flags", "too large", "ignored", "columns", "too few", "words"],
)
def test_what_is_no_class_for_every_sample_is_none(given):
    assert find_targets((LOGITS, given), LOGITS) is None
    assert find_targets({"labels": given}, LOGITS) is None


def test_batches_without_targets():
    for batch in (LOGITS, (LOGITS,), {"x": LOGITS}):
        assert find_targets(batch, LOGITS) is None
