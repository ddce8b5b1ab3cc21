"""Sketches added up over real processes, with uneven and empty shares."""

import pytest
import torch
import torch.distributed as dist

from lightning_sim.sketch import Sketch, all_reduce_sketches
from tests.processes import folder_of_ranks
from tests.sketch.data import related, sketched

WORLD = 3
SETTINGS = {"num_buckets": 256, "num_projections": 128}


def shares():
    """Ids of 300 samples for each rank: many, none, few."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    return order[:280], order[:0], order[280:]


def layers():
    return related(300, 100, rank=5, correlation=0.8, seed=0) + related(300, 1000, rank=5, correlation=0.8, seed=1)


def products():
    """For each rank, layers' features, gradients and ids: in buckets of their own, in shared ones, given up on one."""
    f, g = related(300, 60, rank=5, correlation=0.8, seed=2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    few = order[order < 250]
    repeated = torch.cat([order[:100], order[:20] + 256])  # those share buckets
    splits = [
        (few[:200], few[:0], few[200:]),
        (order[:150], order[150:], order[:0]),
        (few[:0], repeated[:60], repeated[60:]),
        (repeated, few[:0], few[200:]),
    ]
    f, g = f.repeat(2, 1), g.repeat(2, 1)
    return [[(f[ids], g[ids], ids) for ids in split] for split in splits]


def product_sketch(features, gradients, ids):
    sketch = Sketch(**SETTINGS)
    sketch.update(features, ids, gradients=gradients)
    return sketch


def work(rank, world_size, results):
    assert dist.get_world_size() == WORLD
    ids = shares()[rank]
    sketches = [sketched(x[ids], ids=ids, **SETTINGS) for x in layers()] + [Sketch(**SETTINGS)]
    all_reduce_sketches(sketches)
    torch.save([sketch.state_dict() for sketch in sketches], f"{results}/{rank}.pt")
    sketches = [product_sketch(*shares[rank]) for shares in products()]
    all_reduce_sketches(sketches)
    torch.save([sketch.state_dict() for sketch in sketches], f"{results}/{rank}.products.pt")
    try:
        all_reduce_sketches([sketched(torch.randn(5, 8 + rank), ids=torch.arange(5))])
    except ValueError as error:
        torch.save(str(error), f"{results}/{rank}.error")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return folder_of_ranks(tmp_path_factory.mktemp("ranks"), work, WORLD)


def test_every_rank_holds_the_sketch_of_all_samples(results):
    whole = [sketched(x, **SETTINGS) for x in layers()]
    for rank in range(WORLD):
        sketches = [Sketch.from_state_dict(state) for state in torch.load(results / f"{rank}.pt", weights_only=True)]
        assert sketches.pop().count == 0
        for reduced, single in zip(sketches, whole, strict=True):
            assert reduced.count == 300
            for mine, theirs in zip(reduced.sums(), single.sums(), strict=True):
                assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
        assert float(sketches[0].cka(sketches[1])) == pytest.approx(float(whole[0].cka(whole[1])), abs=1e-6)
        assert float(sketches[2].nbs(sketches[3])) == pytest.approx(float(whole[2].nbs(whole[3])), abs=1e-6)


def test_products_are_exact_on_all_ranks_or_tensor_sketched_on_all(results):
    whole = [product_sketch(*(torch.cat(parts) for parts in zip(*shares, strict=True))) for shares in products()]
    assert [sketch.keeps_factors for sketch in whole] == [True, False, False, False]
    for rank in range(WORLD):
        states = torch.load(results / f"{rank}.products.pt", weights_only=True)
        for state, single in zip(states, whole, strict=True):
            reduced = Sketch.from_state_dict(state)
            assert reduced.keeps_factors == single.keeps_factors
            assert (reduced.count, reduced.fingerprint) == (single.count, single.fingerprint)
            for mine, theirs in zip(reduced.sums(), single.sums(), strict=True):
                assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_different_widths_are_refused_on_every_rank(results):
    for rank in range(WORLD):
        message = torch.load(results / f"{rank}.error")
        assert message == "the ranks saw features of different widths, [8, 9, 10], for sketch 0"
