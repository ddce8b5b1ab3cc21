"""Which networks are chains of linear layers, found from what runs and not from how they are written down."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from lightning_sim.probe.chain import chain_weights, find_chain
from lightning_sim.probe.forward import call_network


class Three(nn.Module):
    """Three linear layers of one width; how they are joined is `join(self, x)`."""

    def __init__(self, join, **others):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.join = join
        for name, module in others.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.join(self, x)


def chain_of(join, **others):
    torch.manual_seed(0)
    return find_chain(Three(join, **others).eval(), (torch.randn(5, 6), None), call_network)


ELEMENTWISE = {
    "nothing": lambda x: x,
    "relu": torch.relu,
    "in place": lambda x: functional.relu_(x),
    "gelu": functional.gelu,
    "swish by hand": lambda x: x * torch.sigmoid(x),
    "mish": functional.mish,
    "dropout": lambda x: functional.dropout(x, training=False),
    "flatten": lambda x: x.unsqueeze(1).flatten(1),
    "scaled": lambda x: 3 * x.tanh() - 1,
    "prelu": lambda x: functional.prelu(x, torch.full((6,), 0.1)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_what_acts_element_by_element_may_stand_between_layers(name):
    between = ELEMENTWISE[name]
    assert chain_of(lambda net, x: net.c(between(net.b(between(net.a(x)))))) == ["a", "b", "c"]
    assert chain_of(lambda net, x: net.c(net.b(input=between(net.a(x))))) == ["a", "b", "c"]


def test_the_order_is_that_of_the_forward():
    assert chain_of(lambda net, x: net.a(net.c(net.b(x)).relu())) == ["b", "c", "a"]


def gated(net, x):
    hidden = net.a(x)
    return net.c(hidden.relu() * net.b(hidden))


def recovered(net, x):
    hidden = net.b(net.a(x))
    return net.c(hidden.detach() * 0 + x)


NO_CHAINS = {
    "skipped": (lambda net, x: net.c(net.a(x)), "forward skips b"),
    "twice": (lambda net, x: net.c(net.b(net.a(net.a(x)))), "forward runs a more than once"),
    "residual": (lambda net, x: net.c((h := net.a(x)) + net.b(h)), "c takes more than what b.*a skip connection"),
    "residual from the input": (lambda net, x: net.c(net.b(net.a(x)) + x), "c takes more than what b"),
    "parallel": (lambda net, x: net.c(net.a(x) + net.b(x)), "b takes more than what a.*skip"),
    "gated": (gated, "c takes more than what b"),
    "past a detached one": (recovered, "c takes more than what b"),
    "detached": (lambda net, x: net.c(net.b(net.a(x)).detach()), "c does not take what b"),
    "without gradients": (torch.no_grad()(lambda net, x: net.c(net.b(net.a(x)))), "b does not take what a"),
    "softmax": (lambda net, x: net.c(net.b(net.a(x).softmax(1))), "what a gives is mixed or normalised before b"),
    "layer norm": (lambda net, x: net.c(functional.layer_norm(net.b(net.a(x)), (6,))), "what b gives is mixed"),
    "permuted": (lambda net, x: net.c(net.b(net.a(x).flip(1))), "what a gives is mixed"),
    "pooled": (lambda net, x: net.c(net.b(net.a(x).cummax(1)[0])), "what a gives is mixed"),
    "other samples": (lambda net, x: net.c(net.b(net.a(x).roll(1, 0))), "what a gives is mixed"),
    "another product": (
        lambda net, x: net.c(net.b(functional.linear(net.a(x), net.a.weight))),
        "what a gives is mixed",
    ),
    "re-entrant checkpoint": (
        lambda net, x: net.c(checkpoint(lambda y: net.b(net.a(y)), x, use_reentrant=True)),
        "does not take what|could not be followed",
    ),
}


@pytest.mark.parametrize("name", NO_CHAINS)
def test_what_is_no_chain_says_why(name):
    join, reason = NO_CHAINS[name]
    with pytest.raises(ValueError, match=reason):
        chain_of(join)


class Low(nn.Linear):
    def forward(self, x):
        return super().forward(x).sign()


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (nn.Conv1d(1, 1, 1), "d.weight belongs to none"),
        (nn.BatchNorm1d(6), "d.weight belongs to none"),
        (nn.BatchNorm1d(6, affine=False), "d, of type BatchNorm1d"),
        (Low(6, 6), "d, of type Low, is no plain linear layer"),
        (weight_norm(nn.Linear(6, 6)), "d, of type ParametrizedLinear"),
        (nn.Linear(6, 6), "forward skips d"),
    ],
)
def test_other_layers_with_weights_are_named(part, reason):
    with pytest.raises(ValueError, match=reason):
        chain_of(lambda net, x: net.c(net.b(net.a(x))), d=part)
    with pytest.raises(ValueError, match="there is none"):
        find_chain(nn.ReLU(), torch.randn(5, 6), call_network)


def test_nothing_is_left_on_the_network():
    torch.manual_seed(0)
    network, batch = Three(lambda net, x: net.c(net.b(net.a(x.sub_(1))))), torch.randn(5, 6)
    before = batch.clone()
    with torch.no_grad():
        find_chain(network, batch, call_network)
    assert torch.equal(batch, before)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_compiled_parts_have_their_own_names():
    torch.manual_seed(0)
    network = nn.Sequential(torch.compile(nn.Sequential(nn.Linear(6, 4), nn.ReLU()), backend="eager"), nn.Linear(4, 2))
    given = {"0._orig_mod.0.weight": torch.ones(4, 6)}
    weights = chain_weights(network, ["0.0", "1"], given)
    assert list(weights) == ["0.0", "1"]
    assert torch.equal(weights["0.0"], torch.ones(6, 4))
    assert torch.equal(weights["1"], network[1].weight.T)
