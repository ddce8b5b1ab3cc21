"""The directions that the sketches of a pass follow are those of its first samples, on however many ranks it runs."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_sim.probe import Probe, Snapshot
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.probe.shards import _signature, leave_out_parts
from lightning_sim.sketch import Sketch
from tests.processes import folder_of_ranks

WORLD = 3
REPRESENTATIONS = ("features", "gradients", "elementwise")


class Uncertain(nn.Sequential):
    """Its features differ between ranks by more than rounding, as by the algorithms of their devices."""

    rank = 0

    def forward(self, x):
        return super().forward(x * (1 + 1e-4 * self.rank))


def taken(rank=0, world_size=1, kind=nn.Sequential, failed=False):
    """The snapshot of a network with a wide layer, on 41 samples in batches of 16."""
    torch.manual_seed(0)
    network = kind(nn.Linear(8, 300), nn.Tanh(), nn.Linear(300, 4))
    network.rank = rank
    probe = Probe(DataLoader(TensorDataset(torch.randn(41, 8)), batch_size=16), 41)
    forward = lambda network, batch: network(batch[0])  # noqa: E731
    options = {"representations": REPRESENTATIONS, "forward": forward}
    runner = ProbeRunner(probe, partial(Sketch, 64, 64), rank=rank, world_size=world_size, **options)
    snapshot = Snapshot() if failed else runner.snapshot(network, ["1"])
    return runner.snapshot(network, ["1"], recycled=snapshot)


def work(rank, world_size, results):
    snapshot = taken(rank, world_size)
    states = {name: snapshot.of(name)["1"].state_dict() for name in REPRESENTATIONS}
    torch.save(states, f"{results}/{rank}.pt")
    states = [taken(rank, world_size, failed=True), taken(rank, world_size, Uncertain)]
    torch.save([snapshot.of()["1"].state_dict() for snapshot in states], f"{results}/{rank}.others.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return folder_of_ranks(tmp_path_factory.mktemp("ranks"), work, WORLD)


def test_all_ranks_follow_those_of_one_process(results):
    expected = taken()
    for rank in range(WORLD):
        states = torch.load(results / f"{rank}.pt", weights_only=True)
        for name in REPRESENTATIONS:
            found, alone = Sketch.from_state_dict(states[name]), expected.of(name)["1"]
            assert found.num_directions == alone.num_directions > 0
            torch.testing.assert_close(found.kernel(), alone.kernel(), rtol=1e-4, atol=1e-5 * float(alone.scale) ** 2)


def test_after_a_failed_measurement_all_ranks_follow_the_same(results):
    failed, _ = torch.load(results / "1.others.pt", weights_only=True)
    expected = taken().of()["1"]
    assert float(Sketch.from_state_dict(failed).cka(expected)) == pytest.approx(1, abs=1e-4)


def test_ranks_whose_features_differ_follow_rank_zero(results):
    _, uncertain = torch.load(results / "2.others.pt", weights_only=True)
    assert float(Sketch.from_state_dict(uncertain).cka(taken().of()["1"])) == pytest.approx(1, abs=1e-4)


def test_made_batches_are_folded_alike_on_however_many_ranks():
    torch.manual_seed(0)
    probe = Probe(DataLoader(TensorDataset(torch.randn(41, 300)), batch_size=41), 41)
    made = probe.with_batches([(torch.arange(41), (torch.randn(41, 300),))])
    runner = ProbeRunner(made, partial(Sketch, 64, 64), forward=lambda network, batch: network(batch[0]))
    assert runner.snapshot(nn.Sequential(nn.Tanh()), ["0"]).of()["0"].num_directions == 0


def test_what_is_as_wide_as_the_features_is_let_go():
    assert all(taken().of(name)["1"].directions is None for name in REPRESENTATIONS)


def test_the_sign_of_a_direction_tells_no_replicas_apart(monkeypatch):
    turned = taken()
    sketch = turned.of()["1"]
    for value in sketch.sums()[::2]:  # sums over buckets, and over all samples
        value[..., -sketch.num_directions :] *= -1
    signatures = [{"1": _signature(taken().of()["1"])}, {"1": _signature(sketch)}]
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), signatures))
    leave_out_parts(turned, 2)
    assert not turned.problems
