"""Shards: forwards in step, what a rank holds while it measures, and what it sends."""

import gc
import json
from contextlib import ExitStack
from functools import partial
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from lightning_sim import SimilarityEngine, compare_networks
from lightning_sim.probe import Probe
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.probe.shards import share_of_batches
from lightning_sim.sketch import Sketch
from tests.processes import start_ranks

WIDTH, BLOCKS = 256, 6
BLOCK = 4 * WIDTH**2  # bytes


@pytest.mark.parametrize(("num_samples", "shares"), [(41, 2), (4, 7), (40, 2)])
def test_every_share_has_as_many_batches_and_no_sample_counts_twice(num_samples, shares):
    probe = Probe(torch.arange(num_samples), num_samples)
    found = [list(share_of_batches(probe, rank, shares, in_step=True)) for rank in range(shares)]
    assert {len(batches) for batches in found} == {len(found[0])}
    assert sorted(int(id_) for batches in found for ids, _ in batches for id_ in ids) == list(range(num_samples))
    assert all(len(batch) for batches in found for _, batch in batches)


@pytest.fixture
def mesh(tmp_path):
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def small():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.filterwarnings("ignore:lightning_sim. not measured")
@pytest.mark.parametrize("reference", ["whole.pt", "part.pt"])
@pytest.mark.parametrize(
    ("policy", "error"),
    [
        ({}, 1e-6),
        ({"offload_policy": CPUOffloadPolicy(pin_memory=False)}, 1e-6),
        ({"mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16)}, 5e-3),
    ],
)
def test_weights_of_a_file_go_into_the_shards_and_the_network_s_own_back(tmp_path, mesh, policy, error, reference):
    weights = small().state_dict()
    torch.save(weights, tmp_path / "whole.pt")
    torch.save({name: value for name, value in weights.items() if name.startswith("0")}, tmp_path / "part.pt")
    network, samples = small(), torch.randn(60, 6)
    plain = SimilarityEngine(network, tmp_path / reference, samples).measure().values
    before = [value.detach().clone() for value in network.parameters()]
    for block in (network[0], network[2], network):
        fully_shard(block, mesh=mesh, **policy)
    engine = SimilarityEngine(network, tmp_path / reference, samples)
    for _ in range(2):
        values = engine.measure().values
        assert values["cka/features/0"] == pytest.approx(plain["cka/features/0"], abs=error)
        assert ("cka/features/2" in values) == (reference == "whole.pt")
    network.reshard()
    assert all(torch.equal(a, b.to_local()) for a, b in zip(before, network.parameters(), strict=True))


def test_a_layer_that_is_split_over_one_rank_is_whole(mesh):
    network, samples = small(), torch.randn(40, 6)
    other = small()
    expected = SimilarityEngine(network, other, samples).measure().values
    parallelize_module(network, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    found = SimilarityEngine(network, other, samples).measure().values
    assert found["cka/features/2"] == pytest.approx(expected["cka/features/2"], abs=1e-6)


def test_attacks_on_sharded_networks_are_refused(mesh):
    network = small()
    fully_shard(network, mesh=mesh)
    with pytest.raises(ValueError, match=r"attacks need networks that are whole on every rank.*leave out pgd_0.1 from"):
        SimilarityEngine(network, "init", torch.randn(40, 6), conditions=["pgd_0.1", "fog"])


def test_a_reference_in_shards_is_what_it_is_whole(mesh):
    network, reference, samples = small(), small(), torch.randn(60, 6)
    expected = compare_networks(network, reference, samples, measures="cka")
    for block in (reference[0], reference):
        fully_shard(block, mesh=mesh)
    found = compare_networks(network, reference, samples, measures="cka")
    torch.testing.assert_close(found.matrix("cka").values, expected.matrix("cka").values, rtol=0, atol=1e-6)
    assert found.metadata["reference"]["sha256"] == expected.metadata["reference"]["sha256"]


@pytest.mark.parametrize("measure", ["wcka", "fisher_rao_norm", "fisher_rao_distance", "task2vec", "stitching"])
def test_measures_of_whole_weights_are_refused_by_name(mesh, measure):
    network = small()
    fully_shard(network, mesh=mesh)
    with pytest.raises(ValueError, match=rf"{measure} \(needs whole weights, which are sharded over the ranks\)"):
        SimilarityEngine(network, "init", torch.randn(40, 6), measures=measure)


def test_a_split_embedding_is_measured_whole(mesh):
    network = nn.Sequential(nn.Embedding(12, 6), nn.Flatten(), nn.Linear(18, 4))
    words = Probe(torch.randint(12, (20, 3)), 20)
    runner = ProbeRunner(words, partial(Sketch, 32, 32))
    expected = runner.snapshot(network, ["0", "2"])
    parallelize_module(network, mesh, {"0": RowwiseParallel(input_layouts=Replicate()), "2": ColwiseParallel()})
    found = runner.snapshot(network, ["0", "2"])
    assert not found.problems
    torch.testing.assert_close(found.logits, expected.logits)
    for layer in ("0", "2"):
        assert float(found.of()[layer].cka(expected.of()[layer])) == pytest.approx(1)


def live_bytes():
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor) and not hasattr(found, "device_mesh"):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def refusals(mesh):
    """What is said of tensor-parallel networks outside of the strategy that says which ranks run the same batches."""
    split = parallelize_module(small(), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    said = []
    for network, reference in ((split, "init"), (small(), split)):
        try:
            SimilarityEngine(network, reference, torch.randn(40, 6))
        except ValueError as error:
            said.append(str(error))
    return said


def measure(rank, world_size, root):
    """What is alive in a block beyond what was before, with and without measuring; what is sent; and what refused."""
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{root}/store", rank=rank, world_size=world_size)
    mesh = init_device_mesh("cpu", (world_size,))
    network = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(BLOCKS)))
    for block in network:
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    probe = Probe(torch.randn(32, WIDTH), 32)
    runner = ProbeRunner(probe, partial(Sketch, 16, 16), rank=rank, world_size=world_size)
    names = [str(index) for index in range(BLOCKS)]
    runner.snapshot(network, names)
    sent, alive = [], {}

    def counted(collective, position):
        def call(*arguments, **options):
            sent.append(arguments[position].nbytes)
            return collective(*arguments, **options)

        return call

    for block in network:
        block.register_forward_hook(lambda *_: alive[kind].append(live_bytes()), prepend=True)
    for kind in ("forward", "measurement"):
        alive[kind] = [live_bytes()]
        with torch.no_grad(), ExitStack() as stack:
            for place in (dist, dist.distributed_c10d):
                for name, position in {"all_reduce": 0, "broadcast": 0, "all_gather": 1}.items():
                    stack.enter_context(mock.patch.object(place, name, counted(getattr(place, name), position)))
            network(probe.dataset) if kind == "forward" else runner.snapshot(network, names)
    more = {kind: max(found) - found[0] for kind, found in alive.items()}
    with open(f"{root}/{rank}.json", "w") as file:
        json.dump({"sent": sent, "refused": refusals(mesh), **more}, file)
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    found = {}
    for world_size in (1, 2, 4):
        root = tmp_path_factory.mktemp("ranks")
        start_ranks(measure, world_size, str(root))
        found[world_size] = [json.loads((root / f"{rank}.json").read_text()) for rank in range(world_size)]
    return found


def test_a_rank_holds_one_block_at_a_time(measured):
    for rank in (*measured[1], *measured[2], *measured[4]):
        assert BLOCK <= rank["forward"] < 3 * BLOCK  # the block before may not be freed yet
        assert rank["measurement"] - rank["forward"] < BLOCK / 2  # sketches, and one batch's activations


def test_what_is_sent_does_not_grow_with_the_ranks(measured):
    assert measured[1][0]["sent"] == []
    sent = {ranks: measured[ranks][0]["sent"] for ranks in (2, 4)}
    assert sent[2][:-1] == sent[4][:-1]
    assert len(sent[2]) == 8 + 3
    assert sent[2][2] == BLOCKS * 2 * 4 * WIDTH  # four directions
    assert sum(sent[2][7:9]) == BLOCKS * (4 * (16 * 16 + 16) + 8 * 16)  # sketches
    assert [sent[ranks][-1] for ranks in (2, 4)] == [4 * WIDTH * 32 / ranks for ranks in (2, 4)]  # outputs
    assert sum(sent[2][:2]) + sum(sent[2][3:7]) + sent[2][9] < 500


def test_tensor_parallel_networks_in_loops_of_one_s_own_are_refused(measured):
    assert not measured[1][0]["refused"]
    for rank in (*measured[2], *measured[4]):
        assert len(rank["refused"]) == 2
        assert all("Sequential is tensor-parallel" in said for said in rank["refused"])
