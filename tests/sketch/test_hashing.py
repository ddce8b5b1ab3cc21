import torch

from lightning_sim.sketch.hashing import column_signs, fingerprint, hash_samples, sample_buckets, sample_signs, wrapped

MASK = (1 << 64) - 1


def splitmix(value):
    """SplitMix64's step in Python integers, as Steele, Lea & Flood 2014 give it."""
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def test_signs_follow_the_published_hash():
    seed, stream = 7, 2
    key = splitmix(splitmix(seed * 1_000_003 + stream))
    expected = [1 - 2 * ((splitmix((i + key) & MASK) >> 40) & 1) for i in range(100)]
    assert sample_signs(torch.arange(100), seed).tolist() == expected


def test_buckets_do_not_collide_while_there_are_enough_of_them():
    for first in (0, 12345, -500, 2**62):
        buckets = sample_buckets(torch.arange(first, first + 1024), 1024)
        assert buckets.unique().tolist() == list(range(1024))


def test_buckets_are_balanced_beyond():
    counts = torch.bincount(sample_buckets(torch.arange(10_240), 1024), minlength=1024)
    assert counts.tolist() == [10] * 1024


def test_hashed_samples_know_the_slice_that_their_buckets_are():
    for ids, run in (
        (torch.arange(100, 164), slice(100, 164, 1)),
        (torch.arange(1027, 1200, 3), slice(3, 175, 3)),
        (torch.arange(1000, 1030), None),  # around the end
        (torch.tensor([3, 2, 1]), None),
        (torch.tensor([1, 1, 1]), None),
        (torch.tensor([1, 2, 4]), None),
    ):
        hashed = hash_samples(ids, 1024, seed=0)
        assert torch.equal(hashed.signs.long(), sample_signs(ids, 0))
        assert hashed.fingerprint == fingerprint(ids)
        assert hashed.run == run
        if run is not None:
            assert torch.equal(torch.arange(1024)[hashed.run], hashed.buckets)
        parts = list(hashed.blocks(2))
        assert torch.equal(torch.cat([part.signs for _, part in parts]), hashed.signs)
        assert all(torch.equal(ids[rows], part.ids) for rows, part in parts)
        assert all(part.run is None or torch.equal(torch.arange(1024)[part.run], part.buckets) for _, part in parts)


def test_seeds_give_other_signs():
    ids = torch.arange(256)
    assert not torch.equal(sample_signs(ids, 0), sample_signs(ids, 1))


def test_signs_are_balanced_and_uncorrelated():
    # The mean of n signs has standard deviation n ** -0.5; five of them are the tolerance.
    n, tolerance = 100_000, 5 * 100_000**-0.5
    signs = sample_signs(torch.arange(n), 0).double()
    columns = list(column_signs(n, (0, 1), 0, torch.device("cpu"), torch.float64)[:, 0])
    for values in (signs, *columns, columns[0] * columns[1], signs * columns[0], signs[1:] * signs[:-1]):
        assert abs(values.mean()) < tolerance


def test_hashes_draw_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    sample_signs(torch.arange(10), 0)
    column_signs(77, (1,), 5, torch.device("cpu"), torch.float32)
    assert torch.equal(torch.get_rng_state(), before)


def test_fingerprint_adds_and_ignores_order_but_tells_sets_apart():
    ids = torch.arange(100)
    whole = fingerprint(ids)
    assert fingerprint(ids.flip(0)) == whole
    assert wrapped(fingerprint(ids[:40]) + fingerprint(ids[40:])) == whole
    assert fingerprint(torch.arange(1, 101)) != whole
