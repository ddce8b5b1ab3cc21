"""Networks whose weights are sharded over the ranks: FSDP2, tensor parallelism and both, by gloo processes."""

import re
from functools import cache

import pytest
import torch

from tests.callbacks.launching import ranks
from tests.callbacks.sharded_script import Whole, main, train
from tests.test_examples import run

SETUPS = {"fsdp2": (2, 1), "tensor parallel": (2, 2), "both": (4, 2)}
TRAININGS = {
    "plain": {"monitored": False},
    "init": {},
    "file": {},
    "previous": {"reference": "previous", "every_n_train_steps": 2},
    "module": {"reference": "module"},
    "gradients": {"reference": "module", "representations": ["features", "gradients"], "measures": ["cka"]},
    "between": {"layers": ["net.1.between"]},
    "weights": {"measures": ["cka", "wcka"]},
}
SEVERAL = [(setup, name) for setup in ("fsdp2", "tensor parallel") for name in ("init", "file", "previous", "module")]
MEASURED = [*SEVERAL, ("fsdp2", "gradients"), ("both", "file")]


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
        names = ["plain", "file"] if setup == "both" else list(TRAININGS)
        return launched(tmp_path_factory.mktemp("sharded"), *SETUPS[setup], {name: TRAININGS[name] for name in names})

    return trained


@pytest.fixture(scope="module")
def one(file, tmp_path_factory):
    """training -> what one process found."""
    return cache(lambda name: train(tmp_path_factory.mktemp("one"), "auto", **TRAININGS[name]))


def launched(root, devices, tensor_parallel, trainings):
    with ranks(root, devices, tensor_parallel, trainings, run=main) as processes:
        found = processes[0].hear(timeout=240)
        for process in processes:
            process.finish()
    return found


@pytest.mark.parametrize(("setup", "name"), MEASURED)
def test_every_rank_has_the_values_of_one_process(sharded, one, setup, name):
    expected = one(name)["values"]
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


@pytest.mark.parametrize("name", ["init", "previous"])
def test_nothing_is_said_but_by_the_monitor(sharded, name):
    for monitored, plain in zip(sharded("fsdp2")[name], sharded("fsdp2")["plain"], strict=True):
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


def test_the_example(tmp_path):
    values = re.search("CKA of dense with the start: (.*)", run("sharded.py", tmp_path))[1].split(", ")
    assert [float(value) > 0.999 for value in values] == [True, False, False]
