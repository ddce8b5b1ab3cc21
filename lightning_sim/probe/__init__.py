"""Running a network over a fixed set of samples without leaving a trace on it."""

from lightning_sim._guards import evaluating, isolated_random_state
from lightning_sim.probe.forward import call_network
from lightning_sim.probe.layers import select_layers
from lightning_sim.probe.pairing import Pairing, pair_layers
from lightning_sim.probe.ranks import LostRanksError
from lightning_sim.probe.samples import Probe
from lightning_sim.probe.snapshot import Snapshot, take_snapshot

__all__ = [
    "LostRanksError",
    "Pairing",
    "Probe",
    "Snapshot",
    "call_network",
    "evaluating",
    "isolated_random_state",
    "pair_layers",
    "select_layers",
    "take_snapshot",
]
