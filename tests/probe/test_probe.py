"""The probe's samples, the guards, and capturing outputs."""

import random
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, TensorDataset

from lightning_sim.probe import Probe, call_network, evaluating, isolated_random_state
from lightning_sim.probe.capture import capture_outputs, first_tensor
from lightning_sim.probe.forward import find_logits, without_logits
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.sketch import Sketch


def numbered(count):
    return TensorDataset(torch.arange(count, dtype=torch.float32)[:, None])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(100))


@pytest.mark.parametrize(
    "source",
    [
        numbered(30),
        DataLoader(numbered(30), batch_size=7, shuffle=True),
        DataLoader(numbered(30), batch_sampler=BatchSampler(range(29, -1, -1), 4, drop_last=True)),
    ],
)
def test_the_first_samples_in_dataset_order_each_with_its_id(source):
    batches = list(Probe(source, 23, choice="first").batches())
    assert torch.cat([ids for ids, _ in batches]).tolist() == list(range(23))
    assert torch.cat([batch[0] for _, batch in batches])[:, 0].tolist() == list(range(23))


@pytest.mark.parametrize(("length", "size"), [(30, 30), (1000, 7), (1000, 999), (10_000, 1024)])
def test_spaced_samples_are_one_of_each_stretch_of_the_dataset(length, size):
    found = torch.cat([batch[0] for _, batch in Probe(numbered(length), size).batches()])[:, 0]
    stretch = (found + 0.5) * size / length
    assert (stretch - torch.arange(size) - 0.5).abs().max() <= 0.5 + size / length
    assert found.diff().min() > 0
    assert len(found) == size


@pytest.mark.parametrize("labels", [torch.arange(10_000) // 1000, torch.arange(10_000) % 10])
@pytest.mark.parametrize("choice", ["spaced", "random"])
def test_all_classes_are_there_whether_sorted_or_taking_turns(labels, choice):
    probe = Probe(TensorDataset(labels), 1000, choice=choice)
    counts = torch.bincount(torch.cat([batch[0] for _, batch in probe.batches()]), minlength=10)
    assert 70 <= counts.min() <= counts.max() <= 130


def test_a_random_choice_is_that_of_its_seed_and_moves_no_random_state():
    before = states()
    chosen = [Probe(numbered(1000), 50, choice="random", seed=seed).indices for seed in (3, 3, 4)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert states() == before
    with pytest.raises(ValueError, match="probe_choice"):
        Probe(Stream(), 8, choice="random")
    assert Probe(Stream(), 8).choice == "first"


class Worked(TensorDataset):
    """Says who loads a sample, and counts what is loaded in this process."""

    loaded = 0

    def __getitem__(self, index):
        self.loaded += 1
        worker = torch.utils.data.get_worker_info()
        return (*super().__getitem__(index), -1 if worker is None else worker.id)


def test_the_loader_s_workers_load_the_probe_and_none_are_started_for_the_first_batch():
    dataset = Worked(torch.arange(40))
    probe = Probe(DataLoader(dataset, batch_size=5, num_workers=2), 40)
    batches = list(probe.batches())
    assert torch.cat([ids for ids, _ in batches]).tolist() == list(range(40))
    assert torch.cat([batch[0] for _, batch in batches]).tolist() == list(range(40))
    assert {int(worker) for _, batch in batches for worker in batch[1]} == {0, 1}
    (only,) = probe.first_batch()
    assert only[1][1].tolist() == [-1] * 5
    assert dataset.loaded == 5


def test_kept_batches_are_loaded_once_and_survive_changes_in_place():
    dataset = Worked(torch.arange(12.0))
    probe = Probe(DataLoader(dataset, batch_size=5), 12, keep=True)
    for _, batch in probe.batches():
        batch[0].zero_()
    assert torch.cat([batch[0] for _, batch in probe.batches()]).tolist() == list(range(12))
    assert dataset.loaded == 12
    assert len(list(probe.batches(one_by_one=True))) == 12


@pytest.mark.parametrize(("size", "world"), [(23, 2), (23, 3), (4, 5)])
def test_shares_of_the_ranks_are_disjoint_and_complete(size, world):
    probe = Probe(DataLoader(numbered(30), batch_size=4), size)
    ids = []
    for rank in range(world):
        share = [ids for ids, _ in probe.batches(rank, world)]
        assert len(share) == probe.num_batches(rank, world)
        ids += torch.cat(share).tolist() if share else []
    assert sorted(ids) == list(range(size))


def test_an_iterable_dataset_is_read_once():
    probe = Probe(DataLoader(Stream(), batch_size=3), 8)
    assert [batch.tolist() for _, batch in probe.batches()] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [batch.tolist() for _, batch in probe.batches()] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_loaders_that_make_their_own_batches_are_refused():
    with pytest.raises(ValueError, match="batch_size=None"):
        Probe(DataLoader(numbered(30), batch_size=None), 8)


def test_fingerprint_tells_contents_and_sizes_apart():
    base = Probe(numbered(30), 20, choice="first").fingerprint()
    assert Probe(DataLoader(numbered(99), batch_size=5), 20, choice="first").fingerprint() == base
    assert Probe(DataLoader(numbered(99), batch_size=5), 20).fingerprint() != base
    assert Probe(numbered(30), 21, choice="first").fingerprint() != base
    assert Probe(TensorDataset(torch.ones(30, 1)), 20, choice="first").fingerprint() != base


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def draw():
    return torch.rand(2).tolist(), np.random.rand(), random.random()


def test_random_state_is_seeded_inside_and_restored_even_after_an_exception():
    before = states()
    with isolated_random_state(3):
        first = draw()
    assert states() == before

    def fail():
        with isolated_random_state(3):
            assert draw() == first
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert states() == before


def test_every_submodule_gets_its_own_flag_back():
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    network[1][1].eval()
    flags = [module.training for module in network.modules()]

    def fail():
        with evaluating(network):
            assert not any(module.training for module in network.modules())
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in network.modules()] == flags


class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.act, self.pair = nn.Linear(3, 3), nn.ReLU(inplace=True), nn.LSTM(3, 2, batch_first=True)

    def forward(self, x):
        x = self.act(self.linear(x))
        x = self.act(self.linear(x))
        return self.pair(x[:, None])[0]


def test_uses_are_counted_in_place_changes_come_later_and_tuples_are_opened():
    network, seen = Reused(), {}

    def receive(name, output):
        seen[name] = output.clone()

    with capture_outputs(network, ["linear", "pair"], receive) as capture:
        for _ in range(2):
            capture.new_forward()
            x = torch.randn(4, 3)
            network(x)
    assert list(seen) == ["linear", "linear[1]", "pair"]
    assert torch.equal(seen["linear"], network.linear(x))  # with its negative entries
    assert seen["pair"].shape == (4, 1, 2)
    assert not network.linear._forward_hooks


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_in_the_backward_pass_is_not_received(use_reentrant):
    network, names = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), []
    with capture_outputs(network, ["0"], lambda name, _: names.append(name)):
        x = torch.randn(4, 3, requires_grad=True)
        checkpoint(network, x, use_reentrant=use_reentrant).sum().backward()
    assert names == ["0"]


def test_hooks_are_removed_after_an_exception_and_an_unknown_layer():
    network = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(KeyError), capture_outputs(network, ["0", "7"], print):
        pass
    assert not network[0]._forward_hooks


@dataclass
class Output:
    loss: None
    logits: torch.Tensor


@dataclass
class Codes:
    rec: torch.Tensor
    z: torch.Tensor


Pair = namedtuple("Pair", ["hidden", "other"])


def test_tensors_are_found_in_what_layers_return():
    x = torch.ones(2)
    for output in (x, (None, [x]), {"a": {"b": x}}, Output(None, x), Pair(x, 0)):
        assert first_tensor(output) is x
    assert first_tensor("words") is None
    other = torch.zeros(2)
    assert find_logits({"hidden": other, "logits": x}) is x
    assert find_logits((x, other)) is x
    assert find_logits(Output(None, x)) is find_logits((None, [Output(None, x)])) is x


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"rec": torch.zeros(2, 3), "z": torch.zeros(2, 3)}, "holds no logits, its keys are rec, z"),
        ({"logits": None, "z": torch.zeros(2, 3)}, "holds no logits, its keys are logits, z"),
        ({}, "holds no logits, its keys are none"),
        (Codes(torch.zeros(2, 3), torch.zeros(2, 3)), "holds no logits, its fields are rec, z"),
        (({"rec": torch.zeros(2, 3)}, torch.zeros(2, 3)), "holds no logits, its keys are rec"),
        ([], "holds no logits, it is of type list"),
        (None, "holds no logits, it is of type NoneType"),
    ],
)
def test_a_tensor_that_nothing_calls_logits_is_not_taken_for_them(output, words):
    assert find_logits(output) is None
    assert without_logits(output) == words


def test_hidden_states_of_transformers_are_no_logits():
    from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

    hidden = BaseModelOutput(last_hidden_state=torch.zeros(2, 5, 3))
    assert find_logits(hidden) is None
    assert without_logits(hidden) == "holds no logits, its keys are last_hidden_state"
    logits = torch.zeros(2, 3)
    assert find_logits(SequenceClassifierOutput(loss=torch.zeros(()), logits=logits)) is logits


class Words(nn.Module):
    def forward(self, ids, mask=None):
        return ids if mask is None else ids * mask


class Anything(nn.Module):
    def forward(self, **inputs):
        return inputs


def test_batches_are_passed_as_networks_take_them():
    x, mask = torch.ones(2), torch.zeros(2)
    assert call_network(Words(), (x, "label")) is x
    assert call_network(Words(), x) is x
    assert torch.equal(call_network(Words(), {"ids": x, "mask": mask, "labels": x}), mask)
    assert call_network(nn.Identity(), {"image": x}) == {"image": x}
    assert call_network(Anything(), {"image": x}) == {"image": x}


class Sized(nn.Linear):
    """Takes batches of one size alone, and counts the samples."""

    only: int | None = None
    seen = 0

    def forward(self, x):
        if self.only not in (None, len(x)):
            raise RuntimeError(f"made for batches of {self.only}")
        self.seen += len(x)
        return super().forward(x)


@pytest.mark.parametrize(("only", "seen"), [(None, 7), (64, 64)])
def test_a_network_is_tried_on_a_few_samples_and_else_on_a_whole_batch(only, seen):
    runner = ProbeRunner(Probe(DataLoader(torch.randn(128, 5), 64), 128), lambda: Sketch(16, 16))
    network = Sized(5, 3)
    network.only = only
    tried = runner.try_first_batch(nn.Sequential(network), ["0"])
    assert list(tried.of("features")) == ["0"]
    assert network.seen == seen


class InRows(nn.Sequential):
    """Made for batches of 64."""

    def forward(self, x):
        return super().forward(x.view(64, -1))


def test_a_chain_is_followed_on_a_whole_batch_where_that_is_needed():
    runner = ProbeRunner(Probe(DataLoader(torch.randn(128, 5), 64), 128), lambda: Sketch(16, 16))
    network = InRows(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2))
    assert runner.find_chain(network) == ["0", "2"]
