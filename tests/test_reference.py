import pytest
import torch
from torch import nn

from lightning_sim import Reference


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


def test_other_files_are_refused(tmp_path):
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ValueError, match=r"weights\.h5.*\.ckpt, \.safetensors"):
        Reference(tmp_path / "weights.h5")
