import pytest
import torch
from torch import nn

from lightning_sim import Reference
from lightning_sim.reference import load_state_dict


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 2)
        self.head2 = self.head  # tied
        self.loss = nn.CrossEntropyLoss()


def saved(state, tmp_path, name="weights.pt"):
    torch.save(state, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"model.{name}",
        lambda name: name.replace("body", "body._orig_mod"),
    ],
)
def test_names_that_wrapping_leaves_do_not_matter(tmp_path, rename):
    network = Net()
    path = saved({rename(name): value for name, value in network.state_dict().items()}, tmp_path)
    weights = Reference(path).weights_for(Net())
    assert weights.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(weights[name], value)


def test_weights_take_the_precision_of_the_network(tmp_path):
    network = Net()
    weights = Reference(saved(network.state_dict(), tmp_path)).weights_for(Net().double())
    assert weights["head.weight"].dtype == torch.float64


def test_describing_identifies_the_weights(tmp_path):
    network = Net()
    path = saved(network.state_dict(), tmp_path)
    described = Reference(path).describe()
    assert described["kind"] == "checkpoint"
    module = Reference(network).describe()
    assert module["class"] == "Net"
    nn.init.zeros_(network.head.weight)
    assert Reference(network).describe()["sha256"] != module["sha256"]
    assert Reference(saved(network.state_dict(), tmp_path)).describe()["sha256"] != described["sha256"]
    assert Reference(Reference("previous")).describe() == {"kind": "previous"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "no state dict of tensors, its keys are: epoch"),
        ([1, 2], "holds a list"),
        ({"state_dict": {"a": 1}}, "no state dict of tensors"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_state_dict(saved(content, tmp_path))


@pytest.mark.parametrize("name", ["broken.pt", "broken.ckpt", "broken.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 64])
def test_damaged_files_are_refused_by_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        load_state_dict(tmp_path / name)


def test_truncated_checkpoints_are_refused(tmp_path):
    path = saved(Net().state_dict(), tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"weights\.pt"):
        load_state_dict(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ValueError, match=r"weights\.h5.*\.ckpt, \.safetensors"):
        Reference(tmp_path / "weights.h5")
