"""Folders that torch.distributed.checkpoint has written: read as a whole file is, and nothing in them executed."""

import pickle
import shutil

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from lightning_sim import Reference
from lightning_sim._checkpoints import load_state_dict
from tests.test_checkpoints import Touch, network, refusal

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")  # not initialized


def saved(folder, state):
    dcp.save(state, checkpoint_id=folder)
    return folder


@pytest.mark.parametrize("around", [None, "state_dict", "model"])
def test_the_weights_of_a_folder_are_those_of_its_whole_network(tmp_path, around):
    weights = network().state_dict() | {"half": torch.randn(3).bfloat16()}
    optimizer = {"state": {"0.weight": {"exp_avg": torch.ones(4, 3)}}, "param_groups": [{"lr": 0.1}]}
    state = weights if around is None else {around: weights, "optimizer_0": optimizer, "step": 3}
    found = load_state_dict(saved(tmp_path / "folder.ckpt", state))
    assert found.keys() == weights.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in weights.items())


def test_a_folder_is_known_by_the_content_of_its_shards(tmp_path):
    folder = saved(tmp_path / "folder", network().state_dict())
    before = Reference(folder).describe()["sha256"]
    assert Reference(shutil.copytree(folder, tmp_path / "copy")).describe()["sha256"] == before
    shards = folder / "__0_0.distcp"
    shards.write_bytes(shards.read_bytes()[:-1])
    assert Reference(folder).describe()["sha256"] != before


@pytest.mark.parametrize("within", [lambda code: code, lambda code: Metadata({}, storage_data={"at": code})])
def test_code_in_the_metadata_is_refused_and_not_run(tmp_path, within):
    folder = saved(tmp_path / "folder", network().state_dict())
    (folder / ".metadata").write_bytes(pickle.dumps(within(Touch(tmp_path / "made"))))
    assert "would run code stored in it (posix.mkdir)" in refusal(folder)
    assert not (tmp_path / "made").exists()


def test_code_in_the_shards_is_refused_and_not_run(tmp_path):
    folder = saved(tmp_path / "folder", {"weight": torch.ones(200)})
    size = (folder / "__0_0.distcp").stat().st_size
    torch.save(Touch(tmp_path / "made"), folder / "__0_0.distcp")
    with (folder / "__0_0.distcp").open("ab") as file:
        file.truncate(size)
    refusal(folder)
    assert not (tmp_path / "made").exists()


def changed(folder, **values):
    """The folder with other values in what its metadata says of the weight."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    for name, value in values.items():
        setattr(metadata.state_dict_metadata["0.weight"], name, value)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:-50]),
        lambda folder: (folder / "__0_0.distcp").write_bytes((folder / "__0_0.distcp").read_bytes()[:-50]),
        lambda folder: changed(folder, chunks=[]),
        lambda folder: changed(folder, size=torch.Size([2, 3])),
        lambda folder: changed(folder, size=torch.Size([8, 3])),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage):
    folder = saved(tmp_path / "folder", network().state_dict())
    damage(folder)
    assert "damaged" in refusal(folder)


def test_a_file_that_is_missing_is_named(tmp_path):
    folder = saved(tmp_path / "folder", network().state_dict())
    (folder / "__0_0.distcp").unlink()
    assert "__0_0.distcp, which is not there" in refusal(folder)
