"""Sketches added up over real processes, with uneven and empty shares."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_sim.sketch import Sketch, all_reduce_sketches
from tests.sketch.data import related, sketched

WORLD = 3
SETTINGS = {"num_buckets": 256, "num_projections": 128}


def shares():
    """Ids of 300 samples for each rank: many, none, few."""
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    return order[:280], order[:0], order[280:]


def layers():
    return related(300, 100, rank=5, correlation=0.8, seed=0) + related(300, 1000, rank=5, correlation=0.8, seed=1)


def work(rank, address, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=WORLD)
    assert dist.get_world_size() == WORLD
    ids = shares()[rank]
    sketches = [sketched(x[ids], ids=ids, **SETTINGS) for x in layers()] + [Sketch(**SETTINGS)]
    all_reduce_sketches(sketches)
    torch.save([sketch.state_dict() for sketch in sketches], f"{results}/{rank}.pt")
    try:
        all_reduce_sketches([sketched(torch.randn(5, 8 + rank), ids=torch.arange(5))])
    except ValueError as error:
        torch.save(str(error), f"{results}/{rank}.error")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (path / "rendezvous", path), nprocs=WORLD)
    return path


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


def test_different_widths_are_refused_on_every_rank(results):
    for rank in range(WORLD):
        message = torch.load(results / f"{rank}.error")
        assert message == "the ranks saw features of different widths, [8, 9, 10], for sketch 0"
