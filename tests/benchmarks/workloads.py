"""Networks with inputs in memory, and the two ways to run them: bare, and as the monitor does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_sim.probe.representations import sketched
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.probe.samples import Probe
from lightning_sim.probe.snapshot import Snapshot
from lightning_sim.sketch import Sketch, sizes_for
from tests.benchmarks.networks import MLP, Transformer, resnet18, resnet50
from tests.benchmarks.settings import Settings

__all__ = ["NETWORKS", "InMemory", "Workload", "loader", "workload"]

NETWORKS = ("ResNet-18", "MLP", "transformer")


@dataclass(frozen=True)
class Workload:
    """A network, the layers that are measured, and what it is run on."""

    name: str
    network: nn.Module
    inputs: Tensor
    batch_size: int

    @property
    def layers(self) -> list[str]:
        return self.network.measured

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    def of(self, num_samples: int) -> Workload:
        """The same on the first samples only."""
        return Workload(self.name, self.network, self.inputs[:num_samples], self.batch_size)

    def probe(self) -> Probe:
        return Probe(loader(self.inputs, self.batch_size), len(self.inputs))

    def runner(self, representations: Sequence[str] = ("features",), num_samples: int | None = None) -> ProbeRunner:
        """As the monitor makes it by default, with sketches for so many samples."""
        sizes = sizes_for(num_samples or len(self.inputs), 1024, 1024)
        return ProbeRunner(
            self.probe(), lambda: Sketch(*sizes), device=self.device, representations=sketched(representations)
        )

    def monitored_pass(self, runner: ProbeRunner, network: nn.Module | None = None) -> Callable[[], Snapshot]:
        """The pass of a later epoch, in the memory of the one before, as it is for CKA and NBS of layers."""
        last: Snapshot | None = None

        def run() -> Snapshot:
            nonlocal last
            last = runner.snapshot(network or self.network, self.layers, recycled=last)
            return last

        return run

    def forward(self) -> None:
        """The network over the probe's batches, and nothing else."""
        self.network.eval()
        with torch.no_grad():
            for _, (inputs,) in self.probe().batches():
                self.network(inputs)

    def changed(self, scale: float = 0.1, seed: int = 1) -> nn.Module:
        """A copy of the network with noise on its weights, as after some training."""
        network = copy.deepcopy(self.network)
        generator = torch.Generator(self.device).manual_seed(seed)
        with torch.no_grad():
            for value in network.parameters():
                noise = torch.randn(value.shape, generator=generator, device=value.device)
                value.add_((scale * value.float().std(correction=0) * noise).to(value.dtype))
        return network


def workload(name: str, settings: Settings, num_samples: int | None = None, *, whole: bool = False) -> Workload:
    """One of `NETWORKS`, ``"deep chain"`` or ``"ResNet-50"``, of a size for this run; `whole`: of 1024 samples."""
    torch.manual_seed(0)
    tiny = settings.size == "tiny"
    whole &= not tiny
    batch_size = 16 if tiny else 128
    if name == "ResNet-18":
        count = 1024 if settings.cuda or whole else settings.choose(tiny=48, quick=128, full=512)
        network, inputs = resnet18(4 if tiny else 64), _images(count, 32)
    elif name == "MLP":
        network, inputs = (MLP(4, 32), _vectors(48, 32)) if tiny else (MLP(), _vectors(1024, 512))
    elif name == "deep chain":
        network, inputs = (MLP(4, 16, 32), _vectors(48, 32)) if tiny else (MLP(inputs=3072), _vectors(1024, 3072))
    elif name == "transformer":
        network = Transformer(2, 16, 2, 8) if tiny else Transformer()
        count = 1024 if whole else 512 if settings.cuda else settings.choose(tiny=48, quick=32, full=128)
        inputs = _tokens(count, 8 if tiny else 128)
    else:
        batch_size = 16 if tiny else 256
        network, inputs = resnet50(4 if tiny else 64).bfloat16(), _images(4 * batch_size, 224).bfloat16()
    network.eval().requires_grad_(True)
    return Workload(name, network.to(settings.device), inputs[:num_samples].to(settings.device), batch_size)


class InMemory(Dataset[Any]):
    """Batches are slices, so that loading them costs nothing on any side."""

    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(column[index] for column in self.columns)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(column[indices[0] : indices[-1] + 1] for column in self.columns)


def loader(inputs: Tensor, batch_size: int) -> DataLoader[Any]:
    return DataLoader(InMemory(inputs), batch_size, collate_fn=_as_it_is)


def _as_it_is(batch: Any) -> Any:
    return batch


def _images(count: int, size: int) -> Tensor:
    # Blurred prototypes and noise: of pure noise layers have nothing to share, and CKA is 0 / 0 but for the noise.
    prototypes = torch.nn.functional.interpolate(torch.randn(10, 3, 4, 4), size=size, mode="bilinear")
    return prototypes[torch.arange(count) % 10] + 0.5 * torch.randn(count, 3, size, size)


def _tokens(count: int, length: int) -> Tensor:
    random = torch.randint(1000, (count, length))
    return random.where(torch.rand(count, length) < 0.5, torch.randint(1000, (10, length))[torch.arange(count) % 10])


def _vectors(count: int, width: int) -> Tensor:
    return torch.randn(10, width)[torch.arange(count) % 10] + 0.5 * torch.randn(count, width)
