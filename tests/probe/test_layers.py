import pytest
import torchmetrics
from torch import nn

from lightning_sim.probe import Pairing, pair_layers, select_layers


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm, self.conv2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)


class Residual(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(*[Block() for _ in range(depth)])
        self.layer2 = nn.ModuleList([Block() for _ in range(depth)])
        self.head = nn.Linear(4, 10)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=10)


class Wrapped(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.net = network


def test_names_and_globs_in_the_order_of_definition():
    network = Residual(2)
    assert select_layers(network, ["head", "stem"]) == ["stem", "head"]
    assert select_layers(network, "layer1.*.conv?") == [f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2)]
    assert select_layers(network, ["layer1.0", "*.0"]) == ["layer1.0", "layer2.0"]


def test_auto_takes_the_weighted_layers_of_a_small_network():
    assert select_layers(Residual(2), "auto") == [
        "stem",
        *(f"layer{i}.{j}.conv{k}" for i in (1, 2) for j in (0, 1) for k in (1, 2)),
        "head",
    ]


def test_auto_takes_the_blocks_of_a_deep_network():
    assert select_layers(Residual(5), "auto") == [
        "stem",
        *(f"layer1.{i}" for i in range(5)),
        *(f"layer2.{i}" for i in range(5)),
        "head",
    ]


def test_auto_thins_out_a_very_deep_network():
    chosen = select_layers(nn.Sequential(*[nn.Linear(2, 2) for _ in range(48)]), "auto")
    assert len(chosen) == 16
    assert (chosen[0], chosen[-1]) == ("0", "47")


def test_auto_does_not_look_inside_attention():
    encoder = nn.TransformerEncoderLayer(8, 2)
    assert select_layers(encoder, "auto") == ["self_attn", "linear1", "linear2"]


def test_auto_without_weighted_layers_names_what_there_is():
    with pytest.raises(ValueError, match="Available: 0, 1"):
        select_layers(nn.Sequential(nn.ReLU(), nn.Tanh()), "auto")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["stemm"], "no layer 'stemm' in the network. Nearest: stem. Available: stem, layer1"),
        (["layer9.*"], r"no layer matches the glob 'layer9\.\*'"),
        (["accuracy"], "no layer 'accuracy'"),
        ([], "empty"),
    ],
)
def test_what_does_not_match_is_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        select_layers(Residual(1), layers)


def test_pairs_by_name_by_ending_and_by_mapping():
    network = Residual(1)
    wrapped = Wrapped(network)
    assert pair_layers(network, Residual(1), ["stem"]).layers == {"stem": "stem"}
    assert pair_layers(wrapped, network, ["net.layer1.0.conv2"]).layers == {"net.layer1.0.conv2": "layer1.0.conv2"}
    assert pair_layers(network, wrapped, ["head"]).layers == {"head": "net.head"}
    crossed = {"stem": "net.head", "head": "net.stem"}
    assert pair_layers(network, wrapped, dict(reversed(crossed.items()))) == Pairing(crossed, "mapping", {*crossed})


@pytest.mark.parametrize("layers", [["0"], {"0": "1"}, {"1": "0"}, {}])
def test_layers_without_a_counterpart_are_refused(layers):
    with pytest.raises(ValueError, match=r"in the reference|in the network|empty mapping"):
        pair_layers(nn.Sequential(nn.Linear(2, 2)), nn.ModuleDict({"first": nn.Linear(2, 2)}), layers)
