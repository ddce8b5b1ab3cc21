"""Networks whose weights are sharded over the ranks: FSDP2, tensor parallelism and both, by gloo processes."""

import re
import time
from functools import cache

import pytest
import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint

from lightning_sim import read_history
from tests.callbacks.launching import ranks
from tests.callbacks.sharded_script import Whole, doubled, main, train
from tests.test_examples import run

SETUPS = {"fsdp2": (2, 1), "tensor parallel": (2, 2), "both": (4, 2)}
CONDITIONS = {"conditions": {"doubled": doubled}, "layers_under_conditions": True}
TRAININGS = {
    "plain": {"monitored": False},
    "init": {},
    "file": {},
    "folder": {},
    "previous": {"reference": "previous", "every_n_train_steps": 2},
    "module": {"reference": "module"},
    "sharded module": {"reference": "module", "shard_reference": True},
    "conditions": CONDITIONS | {"measures": ["cka", "agreement"]},
    "gradients": CONDITIONS
    | {"reference": "module", "representations": ["features", "gradients"], "measures": ["cka"]},
    "between": {"layers": ["net.1.between"]},
    "weights": {"measures": ["cka", "wcka"]},
}
SEVERAL = ("init", "file", "folder", "previous", "module", "sharded module", "conditions")
MEASURED = [*((setup, name) for setup in SETUPS for name in SEVERAL), ("fsdp2", "gradients")]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "whole.ckpt"
    torch.save({"state_dict": Whole().state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def sharded(file, tmp_path_factory):
    """setup -> training -> what every rank found."""
    TRAININGS["file"]["reference"] = file

    @cache
    def trained(setup):
        root = tmp_path_factory.mktemp("sharded")
        folder = {"plain": {"checkpoint": root / "shards"}, "folder": {"reference": root / "shards"}}
        names = ["plain", *SEVERAL] if setup == "both" else TRAININGS
        trainings = {name: TRAININGS[name] | folder.get(name, {}) for name in names}
        return launched(root, *SETUPS[setup], trainings) | {"root": root}

    return trained


@pytest.fixture(scope="module")
def one(sharded, tmp_path_factory):
    """setup and training -> what one process found, by the whole weights of what is sharded there."""

    @cache
    def trained(setup, name):
        root, options = tmp_path_factory.mktemp("one"), {}
        if name == "folder":
            torch.save(_load_distributed_checkpoint(sharded(setup)["root"] / "shards"), root / "whole.ckpt")
            options = {"reference": root / "whole.ckpt"}
        return train(root, "auto", **TRAININGS[name] | options)

    return lambda setup, name: trained(setup if name == "folder" else None, name)


def launched(root, devices, tensor_parallel, trainings):
    with ranks(root, devices, tensor_parallel, trainings, run=main) as processes:
        found = processes[0].hear(timeout=240)
        for process in processes:
            process.finish()
    return found


@pytest.mark.parametrize(("setup", "name"), MEASURED)
def test_every_rank_has_the_values_of_one_process(sharded, one, setup, name):
    expected = one(setup, name)["values"]
    assert len(expected) >= 2
    for rank in sharded(setup)[name]:
        assert len(rank["values"]) == len(expected)
        assert all(mine == pytest.approx(e, abs=1e-5) for mine, e in zip(rank["values"], expected, strict=True))


@pytest.mark.parametrize(("setup", "name"), MEASURED)
def test_training_goes_on_bit_for_bit(sharded, setup, name):
    for monitored, plain in zip(sharded(setup)[name], sharded(setup)["plain"], strict=True):
        assert monitored["held"] == plain["held"]
        assert len(plain["held"]) > 3 * 16


@pytest.mark.parametrize(("setup", "batches", "directions"), [("fsdp2", 5, 2), ("tensor parallel", 9, 0)])
def test_ranks_with_fewer_batches_run_as_many_forwards(sharded, setup, batches, directions):
    # A trial, the reference, and measurements before the training and after both epochs. Until it is known that nothing
    # is folded, ranks that share the samples run the first ones for the directions as well.
    assert [rank["forwards"] for rank in sharded(setup)["init"]] == 2 * [1 + batches * 4 + directions]


def test_an_output_of_which_ranks_have_parts_is_refused_by_name(sharded):
    refusals = sharded("tensor parallel")["between"]
    assert all("net.1.between (is a part of its output on each" in refusal for refusal in refusals)


@pytest.mark.parametrize("setup", ["fsdp2", "tensor parallel"])
def test_measures_of_whole_weights_are_refused_by_name(sharded, setup):
    assert all("wcka (needs whole weights, which are sharded" in rank for rank in sharded(setup)["weights"])


def test_gradients_of_split_layers_are_refused(sharded):
    assert all("under tensor parallelism" in rank for rank in sharded("tensor parallel")["gradients"])


@pytest.mark.parametrize(("setup", "name"), MEASURED)
def test_nothing_is_said_but_by_the_monitor(sharded, setup, name):
    for monitored, plain in zip(sharded(setup)[name], sharded(setup)["plain"], strict=True):
        assert all(message.startswith("SimilarityMonitor: ") for message in monitored["said"] - plain["said"])


def test_a_training_resumed_from_lightning_s_checkpoints_continues_its_record(tmp_path):
    def parts(name, **options):
        path = str(tmp_path / name)
        return {f"{name} 1": {"epochs": 1, "checkpoint": path, **options}, name: {"resume": path, **options}}

    one = [train(tmp_path, "auto", **options) for options in parts("one").values()][-1]
    found = launched(tmp_path, 2, 1, parts("distributed", distributed=True) | parts("whole", distributed=False))
    for resumed in (*found["distributed"], *found["whole"]):
        assert len(one["values"]) == 3
        assert resumed["values"] == [pytest.approx(values, abs=1e-5) for values in one["values"]]


def test_a_training_that_was_killed_continues_its_record_from_a_distributed_checkpoint(tmp_path):
    options = {"epochs": 3, "conditions": {"doubled": doubled}}
    unbroken = train(tmp_path, "auto", name="unbroken", **options)["values"]
    root = tmp_path / "run"
    with ranks(tmp_path, 2, 1, {"run": options | {"killed": True}}, run=main) as processes:
        until = time.monotonic() + 60
        while len(list(root.glob("waits-*"))) < 2:
            assert time.monotonic() < until, "the processes do not get there"
            time.sleep(0.1)
        for process in processes:
            process.kill()
    assert len(read_history(root).measurements) == 3
    for resumed in launched(tmp_path, 2, 1, {"run": options | {"resume": root / "saved.ckpt"}})["run"]:
        assert resumed["values"] == [pytest.approx(values, abs=1e-5) for values in unbroken]
    recorded = [m.values | {"seconds": 0} for m in read_history(root).measurements]
    assert recorded == [pytest.approx(values, abs=1e-5) for values in unbroken]
    assert {path.name for path in (root / "similarity").iterdir()} >= {"record.jsonl", "record-1.jsonl"}


def test_the_example(tmp_path):
    values = re.search("CKA of dense with the start: (.*)", run("sharded.py", tmp_path))[1].split(", ")
    assert [float(value) > 0.999 for value in values] == [True, False, False]
