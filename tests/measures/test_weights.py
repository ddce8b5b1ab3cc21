"""wCKA between measurements."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_sim.functional import open_gate_kernels, weight_centered_kernel_alignment
from lightning_sim.measures import Pairs, Side
from lightning_sim.measures.weights import WeightAlignment, _Untrained
from lightning_sim.probe import Snapshot
from tests.metrics import definitions


def chain(*widths, seed):
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(*pair) for pair in itertools.pairwise(widths)))


def weights(network):
    return [layer.weight.detach().T for layer in network]


def flops(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_the_side_of_the_reference_is_computed_once():
    widths = (40, *[30] * 8)
    networks = [chain(*widths, seed=seed) for seed in (0, 1)]
    names = [str(place) for place in range(len(networks[0]))]
    measure, pairs = WeightAlignment(), Pairs({name: name for name in names})
    runner = SimpleNamespace(find_chain=lambda network: names)
    mine, theirs = (Side(Snapshot(), runner, network, is_reference=i > 0) for i, network in enumerate(networks))
    assert measure.refuse(mine, theirs, pairs) is None
    theirs.kept(measure)
    chains = [weights(network) for network in networks]
    whole = flops(lambda: weight_centered_kernel_alignment(*chains))
    assert flops(lambda: measure.compare(mine, theirs, pairs)) < 0.75 * whole
    # The network's side is that of now.
    networks[0].load_state_dict(chain(*widths, seed=2).state_dict())
    (matrix,) = measure.compare(mine, theirs, pairs).matrices
    expected = definitions.wcka(*([w.double().numpy() for w in weights(network)] for network in networks))
    np.testing.assert_allclose(matrix.values, expected, atol=1e-6)


def convolutional(seed):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4))


def test_what_untrained_networks_share_is_taken_out():
    found = [open_gate_kernels(convolutional(seed), input_shape=(1, 16, 16)) for seed in range(20)]
    untrained = _Untrained(found[0].layers, torch.stack([kernels.kernels for kernels in found[:8]]))
    assert {"7", "9"} <= untrained.shared  # behind pooling
    place = found[0].layers.index("7")
    a, b = (torch.stack([kernels.kernels[place] for kernels in part]) for part in (found[8:14], found[14:]))
    plain = torch.einsum("rmn,smn->rs", a, b).numpy()
    partial = np.array([[untrained.partial(place, one, other) for other in b] for one in a])
    mean = np.stack([kernels.kernels[place].numpy() for kernels in found[:8]]).mean(0)
    assert plain.mean() > 0.2
    assert abs(partial.mean()) < 0.1
    products = [
        (found[i].kernels[place] * found[j].kernels[place]).sum().item() for i in range(8) for j in range(8) if i != j
    ]
    r_a, r_b = (float((k[0].numpy() * mean).sum() / np.sqrt(np.mean(products))) for k in (a, b))
    expected = (plain[0, 0] - r_a * r_b) / np.sqrt((1 - r_a**2) * (1 - r_b**2))
    np.testing.assert_allclose(partial[0, 0], expected)
