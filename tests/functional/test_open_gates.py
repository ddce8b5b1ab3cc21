"""wCKA of networks of any layers."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import transformers
from torch import nn

from lightning_sim.functional import open_gate_alignment, open_gate_kernels, weight_centered_kernel_alignment
from tests.functional.test_centered_kernel_alignment import cka_by_definition


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(F.dropout(y)))  # in training mode, as functions are
        y += x
        return torch.relu(y)


class Residual(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.block, self.fc = Block(8), nn.Linear(8, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -1, 1)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.uniform_(module.bias, -1, 1)

    def forward(self, x):
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


def linear_part(network, x):
    """The residual network with open gates, written out."""

    def layer(x, conv, bn):
        scale = bn.weight / (bn.running_var + bn.eps).sqrt()
        return F.conv2d(x, conv.weight, padding=conv.padding) * scale[:, None, None]

    found = {}
    conv, bn = network.stem[:2]
    found["stem.0"] = F.conv2d(x, conv.weight)
    x = F.avg_pool2d(layer(x, conv, bn), 2)
    found["block.conv1"] = F.conv2d(x, network.block.conv1.weight, padding=1)
    y = layer(x, network.block.conv1, network.block.bn1)
    found["block.conv2"] = F.conv2d(y, network.block.conv2.weight, padding=1)
    x = x + layer(y, network.block.conv2, network.block.bn2)
    found["fc"] = x.mean((2, 3)) @ network.fc.weight.T
    return {name: value.detach().double().flatten(1).numpy() for name, value in found.items()}


def test_a_residual_network_is_what_is_left_of_it_with_open_gates():
    networks = [Residual(seed).double() for seed in (0, 1)]
    basis = torch.eye(3 * 8 * 8, dtype=torch.float64).view(-1, 3, 8, 8)
    ours, theirs = (linear_part(network, basis) for network in networks)
    expected = [[cka_by_definition(a, b, "unbiased") for b in theirs.values()] for a in ours.values()]
    value = weight_centered_kernel_alignment(*networks, input_shape=(3, 8, 8), coordinates=None)
    assert value.dtype == torch.float64
    np.testing.assert_allclose(value, expected, atol=1e-9)
    assert open_gate_kernels(networks[0], input_shape=(3, 8, 8)).layers == tuple(ours)


@pytest.mark.parametrize("widths", [(20, 16, 12, 5), (6, 16, 3)])
def test_a_chain_has_the_values_of_its_weights(widths):
    torch.manual_seed(0)
    a, b = (
        nn.Sequential(*(part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())))
        for _ in range(2)
    )
    a, b = a.double(), b.double()
    expected = weight_centered_kernel_alignment(a, b)
    found = weight_centered_kernel_alignment(a, b, input_shape=widths[:1], estimator="biased", coordinates=None)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_permuted_and_rescaled_channels_of_a_block():
    network, other = Residual(0), Residual(1)
    changed = copy.deepcopy(network)
    order, scale = torch.randperm(8), torch.logspace(-1, 1, 8)
    block = changed.block
    with torch.no_grad():
        for tensor in (block.conv1.weight, block.conv1.bias, *block.bn1.parameters(), *block.bn1.buffers()):
            if tensor.ndim:
                tensor.copy_(tensor[order])
        block.bn1.weight *= scale
        block.bn1.bias *= scale
        block.conv2.weight.copy_(block.conv2.weight[:, order] / scale[:, None, None])
    expected, found = (
        weight_centered_kernel_alignment(net, other, input_shape=(3, 8, 8)) for net in (network, changed)
    )
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_sketched_coordinates_err_as_they_say():
    networks = [Residual(seed) for seed in (0, 1)]
    networks[1].load_state_dict(
        {name: (value + networks[1].state_dict()[name]) / 2 for name, value in networks[0].state_dict().items()}
    )

    def both(**options):
        return open_gate_alignment(*(open_gate_kernels(n, input_shape=(3, 16, 16), **options) for n in networks))

    exact, _ = both(coordinates=None)
    values, errors = (torch.stack(part) for part in zip(*(both(seed=seed) for seed in range(10)), strict=True))
    scatter = (values - exact).square().mean().sqrt()
    assert 0.4 < scatter / errors.square().mean().sqrt() < 2.5
    assert (values.mean(0) - exact).abs().max() < 3 * scatter / 10**0.5 + 0.02


def test_nothing_of_the_network_changes():
    network = Residual(0).train()
    network.block.bn1.eval()
    before, flags = copy.deepcopy(network.state_dict()), [module.training for module in network.modules()]
    state = torch.get_rng_state()
    open_gate_kernels(network, input_shape=(3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert torch.backends.mha.get_fastpath_enabled()


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.value(x) * F.silu(self.gate(x)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Gated(), r"1 \(Gated\) is not linear with open gates"),
        (nn.GLU(), r"1 \(GLU\) is not linear"),
        (nn.BatchNorm1d(8, track_running_stats=False), r"1 \(BatchNorm1d\) normalises by the statistics of its batch"),
        (nn.Linear(9, 2), r"1 \(Linear\) mat1 and mat2"),
    ],
    ids=["product", "GLU", "BatchNorm", "wrong"],
)
def test_what_is_not_linear_is_refused_with_its_layer(layer, message):
    network = nn.Sequential(nn.Linear(6, 8), layer, nn.Linear(4 if isinstance(layer, Gated | nn.GLU) else 8, 3))
    with pytest.raises(ValueError, match=message):
        open_gate_kernels(network, input_shape=(6,))


def test_what_is_given_must_fit():
    network = Residual(0)
    with pytest.raises(ValueError, match="either `input_shape`"):
        open_gate_kernels(network)
    with pytest.raises(ValueError, match=r"no layer fc1 .*available: stem, .*fc"):
        open_gate_kernels(network, input_shape=(3, 8, 8), layers=["fc1"])
    with pytest.raises(ValueError, match="same coordinates, got 64 sums of 192, seed 0 and 64 sums of 192, seed 1"):
        open_gate_alignment(*(open_gate_kernels(network, input_shape=(3, 8, 8), seed=seed) for seed in (0, 1)))
    with pytest.raises(ValueError, match="`coordinates` needs `input_shape`"):
        weight_centered_kernel_alignment(network, network, coordinates=4)


def attention_written_out(layer, x):
    """A post-norm encoder layer with open gates: uniform attention, and normalisation that takes off the mean."""

    def norm(x, of):
        return (x - x.mean(-1, keepdim=True)) * of.weight

    value = layer.self_attn.in_proj_weight[-x.shape[-1] :]
    mixed = (x @ value.T).mean(1, keepdim=True).expand_as(x) @ layer.self_attn.out_proj.weight.T
    x = norm(x + mixed, layer.norm1)
    return norm(x + x @ layer.linear1.weight.T @ layer.linear2.weight.T, layer.norm2)


@pytest.mark.parametrize("batch_first", [True, False])
def test_an_encoder_layer(batch_first):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True, dtype=torch.float64)
    other = nn.TransformerEncoderLayer(12, 3, 16, batch_first=batch_first, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    nn.init.uniform_(layer.norm1.weight)
    other.norm1.load_state_dict(layer.norm1.state_dict())
    basis = torch.eye(60, dtype=torch.float64).view(60, 5, 12)
    expected = attention_written_out(layer, basis).detach().flatten(1)
    expected = expected - expected.mean(0)
    network = nn.Sequential(other) if batch_first else _Turned(other)
    kernel = open_gate_kernels(
        network, input_shape=(5, 12), layers=["0"], coordinates=None, estimator="biased"
    ).kernels[0]
    gram = expected @ expected.T
    torch.testing.assert_close(kernel, gram / gram.norm(), atol=1e-10, rtol=0)


class _Turned(nn.Sequential):
    def forward(self, x):
        return self[0](x.transpose(0, 1))


def bert(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.BertModel(transformers.BertConfig(vocab_size=200, **sizes))


def vit(seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **sizes))


@pytest.mark.parametrize("make", [bert, vit])
def test_transformers(make):
    ids = torch.arange(20).view(2, 10)
    images = {"pixel_values": torch.randn(2, 3, 32, 32)}
    example = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} if make is bert else images
    networks = [make(seed) for seed in range(4)]
    found = [open_gate_kernels(network, example) for network in networks]
    random = torch.stack([open_gate_alignment(a, b)[0].diagonal() for a, b in itertools.combinations(found, 2)])
    assert random.mean().abs() < 0.05
    assert random.mean(0).abs().max() < 0.15
    network = networks[0].train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    network(**example).last_hidden_state.square().mean().backward()
    optimizer.step()
    assert open_gate_alignment(found[0], open_gate_kernels(network, example))[0].diagonal().min() > 0.99


def test_half_precision_and_a_default_device():
    network = Residual(0)
    expected = open_gate_kernels(copy.deepcopy(network).bfloat16().float(), input_shape=(3, 8, 8))
    with torch.device("meta"):
        found = open_gate_kernels(copy.deepcopy(network).bfloat16(), input_shape=(3, 8, 8))
    torch.testing.assert_close(found.kernels, expected.kernels, atol=1e-5, rtol=0)


def test_what_is_no_network_and_what_no_kernels_are_refused():
    with pytest.raises(ValueError, match=r"`network` must be a torch\.nn\.Module, got .*Tensor"):
        open_gate_kernels(torch.rand(3, 4), input_shape=(4,))
    kernels = open_gate_kernels(nn.Linear(4, 3), input_shape=(4,))
    with pytest.raises(ValueError, match="`b` must be what open_gate_kernels gives"):
        open_gate_alignment(kernels, torch.rand(3, 4))
