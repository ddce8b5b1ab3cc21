"""wCKA between measurements."""

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_sim.functional import weight_centered_kernel_alignment
from lightning_sim.measures import Pairs, Side
from lightning_sim.measures.weights import WeightAlignment
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
