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


def changed(folder, change):
    """The folder with other metadata."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_code_in_the_shards_is_refused_and_not_run(tmp_path):
    folder = saved(tmp_path / "folder", {"weight": torch.ones(200)})
    torch.save(Touch(tmp_path / "made"), folder / "__0_0.distcp")
    size = (folder / "__0_0.distcp").stat().st_size
    changed(folder, lambda metadata: [vars(at).update(length=size) for at in metadata.storage_data.values()])
    assert "would run code stored in it (posix.mkdir)" in refusal(folder)
    assert not (tmp_path / "made").exists()


def weight(**values):
    """Other values in what the metadata says of the weight."""
    return lambda folder: changed(folder, lambda m: vars(m.state_dict_metadata["0.weight"]).update(values))


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50])


@pytest.mark.parametrize(
    "damage",
    [
        cut(".metadata"),
        cut("__0_0.distcp"),
        weight(chunks=[]),
        weight(size=torch.Size([2, 3])),
        weight(size=torch.Size([8, 3])),
        lambda folder: (folder / "__0_0.distcp").unlink(),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage):
    folder = saved(tmp_path / "folder", network().state_dict())
    damage(folder)
    assert "is a folder of shards that is damaged, or lacks some of its files" in refusal(folder)
