"""The guards: random states of every device, and the network's own buffers, are as they were."""

import sys

import pytest
import torch
from torch import nn

from lightning_sim._guards import substituted_buffers, uncompiled
from lightning_sim.probe import Probe, isolated_random_state
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.sketch import Sketch
from tests.measures.test_fisher import FisherMeasures


class Device:
    """A backend with one generator, whose state is a seed and how often it was drawn from."""

    def __init__(self, in_use=True):
        self.state, self.in_use = ["user's", 5], in_use

    def is_initialized(self):
        return self.in_use

    is_available = is_initialized

    def get_rng_state_all(self):
        return list(self.state)

    get_rng_state = get_rng_state_all

    def set_rng_state_all(self, state):
        self.state = list(state)

    set_rng_state = set_rng_state_all

    def manual_seed_all(self, seed):
        self.state = [seed, 0]

    manual_seed = manual_seed_all

    def draw(self):
        self.state[1] += 1
        return list(self.state)


def put_in(monkeypatch, backend, device):
    """Make torch believe in a device of this kind."""
    names = ["get_rng_state", "set_rng_state", "manual_seed"]
    if backend == "mps":
        monkeypatch.setattr(torch.backends.mps, "is_available", device.is_available)
    else:
        names = ["is_initialized", *(f"{name}_all" for name in names)]
    for name in names:
        monkeypatch.setattr(getattr(torch, backend), name, getattr(device, name))


@pytest.mark.parametrize("backend", ["cuda", "xpu", "mps"])
def test_random_state_of_every_kind_of_device_is_seeded_inside_and_restored(monkeypatch, backend):
    device = Device()
    put_in(monkeypatch, backend, device)
    for _ in range(2):
        with isolated_random_state(3):
            assert device.draw() == [3, 1]
            with isolated_random_state(4):
                assert device.draw() == [4, 1]
            assert device.draw() == [3, 2]
        assert device.state == ["user's", 5]


@pytest.mark.parametrize("backend", ["cuda", "xpu", "mps"])
def test_a_device_that_is_not_in_use_is_not_seeded_now_or_later(monkeypatch, backend):
    device = Device(in_use=False)
    put_in(monkeypatch, backend, device)
    queued = []
    monkeypatch.setattr(torch.cuda.random, "_lazy_call", lambda call, **options: queued.append(options))
    with isolated_random_state(3):
        pass
    assert device.state == ["user's", 5]
    assert queued == []  # torch seeds CUDA by it when CUDA is first used


class InPlace(nn.Module):
    """Keeps a mean of what it sees, in place; `view` shares its memory."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(2, 4))
        self.register_buffer("view", self.mean[1])
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.view.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.linear(x - self.mean[1])


class Rebound(nn.Module):
    """Replaces, deletes, adds and fills buffers, one of them not persistent."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("mean", torch.zeros(4), persistent=False)
        self.register_buffer("deleted", torch.ones(4))
        self.register_buffer("became_plain", torch.ones(4))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if self.nothing is None:
            del self.deleted, self.became_plain
            self.became_plain = 3
            self.register_buffer("added", torch.ones(3), persistent=False)
            self.nothing = torch.ones(3)
        return self.linear(x - self.mean)


class Normalised(nn.Module):
    """Normalises by the batch and moves the statistics on whatever the mode, and shares them between two modules."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.same = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.same.running_mean = self.norm.running_mean

    def forward(self, x):
        # One sample has no variance.
        x = torch.cat([self.linear(x), torch.zeros(1, 3)])
        x = nn.functional.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True)
        assert self.same.running_mean is self.norm.running_mean
        return x[:-1]


class Fails(InPlace):
    def forward(self, x):
        super().forward(x)
        raise KeyError("inside")


MOVING = [InPlace, Rebound, Normalised]


def buffers(network):
    """Every buffer: the tensor itself, its version and value, where it stands, and what else the module holds."""
    found = []
    for name, module in network.named_modules():
        for key, value in module._buffers.items():
            version, copy = (None, None) if value is None else (value._version, value.tolist())
            found.append((name, key, id(value), version, copy))
        found.append((name, sorted(module._non_persistent_buffers_set), sorted(module.__dict__)))
    return found


def runner(**options):
    draw = torch.Generator().manual_seed(0)
    probe = Probe([torch.randn(4, generator=draw) + 1 for _ in range(12)], 12)
    return ProbeRunner(probe, lambda: Sketch(16, 16), **options)


@pytest.mark.parametrize("kind", MOVING)
@pytest.mark.parametrize("representations", [("features",), ("features", "gradients")])
def test_a_snapshot_leaves_every_buffer_as_it_was(kind, representations):
    network, made = kind(), runner(representations=representations)
    before = buffers(network)
    made.try_first_batch(network, ["linear"])
    assert buffers(network) == before
    first, second = (made.snapshot(network, ["linear"]) for _ in range(2))
    assert buffers(network) == before
    assert torch.equal(first.logits, second.logits)  # the second started where the first did
    state = {name: value.clone() + 1 for name, value in network.state_dict().items()}
    given = {name: value.clone() for name, value in state.items()}
    made.snapshot(network, ["linear"], weights=given)
    assert buffers(network) == before
    assert all(torch.equal(given[name], value) for name, value in state.items())


@pytest.mark.parametrize("kind", MOVING)
def test_fisher_measures_leave_every_buffer_as_it_was(kind):
    network, other = kind(), kind()
    measures = FisherMeasures(runner(), ("fisher_rao_norm", "fisher_rao_distance", "task2vec"))
    before, reference = buffers(network), buffers(other)
    assert measures.problems(network, other) == {}
    taken = measures.runner.snapshot(other, ["linear"])
    measures.complete(taken, other)
    weights = taken.kept["fisher_rao_distance"]
    kept = {name: value.clone() for name, value in weights.items()}
    current = measures.runner.snapshot(network, ["linear"])
    values = measures.measure(network, current, other, taken)
    assert sorted(values) == ["fisher_rao_distance", "fisher_rao_norm", "task2vec"]
    assert (buffers(network), buffers(other)) == (before, reference)
    assert all(torch.equal(weights[name], value) for name, value in kept.items())


def test_buffers_are_put_back_when_the_forward_raises():
    network = Fails()
    before = buffers(network)
    with pytest.raises(KeyError):
        runner().snapshot(network, ["linear"])
    assert buffers(network) == before


def test_a_graph_that_holds_a_buffer_can_still_be_differentiated():
    network = InPlace()
    loss = (network.linear.weight[0] * network.mean[1]).sum()
    runner().snapshot(network, ["linear"])
    loss.backward()


def test_buffers_made_in_inference_mode_are_measured():
    network = Rebound()
    with torch.inference_mode():
        network.mean = torch.ones(4)
        before = id(network.mean)
        runner().snapshot(network, ["linear"])
    assert id(network.mean) == before
    assert network.mean.is_inference()


def test_buffers_of_scripted_parts_are_put_back():
    network = nn.Sequential(torch.jit.script(nn.BatchNorm1d(4)), nn.Linear(4, 3))
    network.train()
    with substituted_buffers(network):
        network(torch.ones(5, 4) + torch.arange(5.0)[:, None])
    assert network[0].running_mean.tolist() == [0] * 4
    assert network[0].num_batches_tracked == 0


def test_given_values_take_the_place_of_the_networks_own():
    network = nn.BatchNorm1d(2)
    given = {"running_mean": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    with substituted_buffers(network, given):
        assert network.running_mean.tolist() == [1, 2]
        assert network.running_mean.dtype == torch.float32
        network.running_mean.zero_()
    assert given["running_mean"].tolist() == [1, 2]
    assert network.running_mean.tolist() == [0, 0]


def test_what_compiles_is_not_imported_to_be_switched_off(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with uncompiled():
        assert "torch._dynamo" not in sys.modules
