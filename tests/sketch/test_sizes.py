"""Sizes of sketches for small probes."""

import pytest

from lightning_sim.sketch import sizes_for


@pytest.mark.parametrize("num_buckets", [4, 64, 1024])
@pytest.mark.parametrize("num_projections", [2, 1000, 1024])
def test_the_memory_stays_and_the_samples_fit(num_buckets, num_projections):
    for num_samples in (4, 5, 30, 32, 33, 63, 64, 65, 512, 513, 1024, 5000):
        buckets, projections = sizes_for(num_samples, num_buckets, num_projections)
        assert buckets * projections == num_buckets * num_projections
        assert 4 <= buckets <= num_buckets
        assert buckets >= min(num_samples, num_buckets)
        assert buckets < 2 * num_samples or buckets == 4
        assert buckets & (buckets - 1) == 0
