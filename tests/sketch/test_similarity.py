"""What a similarity by singular values costs, in decompositions."""

import pytest
import torch

from tests.functional.test_nuclear_norm import Decompositions
from tests.sketch import exact
from tests.sketch.data import related, sketched


def decompositions(a, b):
    with Decompositions() as counted:
        value = float(a.nbs(b))
    return value, counted.found


def test_the_triangle_of_the_reference_is_kept():
    x, y = related(64, 100, rank=20, correlation=0.7, seed=0)
    now, reference = (sketched(z, num_buckets=64, num_projections=128) for z in (x, y))
    reference.keep_cores = True
    expected = pytest.approx(exact.nbs(x, y), abs=1e-6)
    values = [decompositions(now, reference) for _ in range(2)]
    assert [value for value, _ in values] == [expected, expected]
    assert [sum("qr" in name for name, _ in found) for _, found in values] == [2, 1]
    reference.update(torch.zeros(0, 100), torch.arange(0))  # nothing
    assert float(now.nbs(reference)) == expected


def test_folded_layers_are_decomposed_in_the_precision_of_the_sketch():
    x, y = related(600, 2000, rank=300, correlation=0.7, seed=0)
    a, b = (sketched(z, num_projections=600) for z in (x, y))
    with Decompositions() as counted:
        value = a.nbs(b)
    assert [(name, shape) for name, shape in counted.found] == [("_linalg_eigh", (n, n)) for n in (600, 300, 300)]
    wide = [sketched(z, num_projections=600, dtype=torch.float64) for z in (x, y)]
    assert float(value) == pytest.approx(float(wide[0].nbs(wide[1])), abs=1e-3)
