"""Measuring without a Trainer: in one call, or from a training loop of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import is_wrapped
from lightning.fabric.utilities import move_data_to_device
from lightning.fabric.utilities.apply_func import apply_to_collection  # type: ignore[attr-defined]
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from tqdm.auto import tqdm

from lightning_sim.measures import DEFAULT_MEASURES, as_measures
from lightning_sim.monitored_run import MonitoredRun
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.record import Measurement, SimilarityHistory
from lightning_sim.reference import Reference
from lightning_sim.run_directory import checked_directory, checked_name
from lightning_sim.settings import Settings, check_saving

__all__ = ["SimilarityEngine", "compare_networks", "prepared"]


class SimilarityEngine:
    """Measures how similar a network is to a reference whenever it is told to, in a training loop of one's own.

    It is what :class:`lightning_sim.SimilarityMonitor` measures with. The network runs in evaluation mode where its
    parameters are; nothing of it and of the random state is changed. Wrappers of Fabric, DistributedDataParallel and
    ``torch.compile`` are taken off; where ``torch.distributed`` is initialised, its ranks share the probe, and all of
    them must call `measure`.

    Args:
        network: the one that is to be measured.
        reference: ``"init"``, the network as it is now; ``"previous"``, the network at the measurement before; a file;
            or another network (:class:`lightning_sim.Reference`).
        probe: a DataLoader or Dataset.
        directory: of the run, in which ``<name>/record.jsonl`` is written; None writes none.
        name: of the record's directory, and of the run in tables.
        save_sketches: write the sketches of every measurement (of every n-th) beside the record.
        progress: show a bar over the batches of a measurement.
        state: the `state_dict` of an engine whose run is to be continued.
        **settings: as for :class:`lightning_sim.SimilarityMonitor`: `layers`, `measures`, `representations`,
            `num_samples`, `probe_choice`, `cache_probe`, `num_buckets`, `num_projections`, `estimator`, `forward`,
            `beta`, `loss`, `sketch`, `pool`, `matrices`, `seed`,
            `on_error`, `conditions`, `layers_under_conditions`.

    Raises:
        ValueError: for settings that cannot work, with what would.

    Example:
        >>> import torch
        >>> from lightning_sim import SimilarityEngine
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> engine = SimilarityEngine(network, "init", torch.randn(64, 4, generator=torch.manual_seed(0)))
        >>> round(engine.measure(epoch=0, step=0).values["cka/features/0"], 3)
        1.0
        >>> _ = torch.nn.init.normal_(network[0].weight)  # here you train
        >>> engine.measure(epoch=1, step=100).values["cka/features/0"] < 1
        True
        >>> len(engine.history)
        2
    """

    def __init__(
        self,
        network: nn.Module,
        reference: str | Path | nn.Module | Reference,
        probe: Any,
        *,
        directory: str | Path | None = None,
        name: str = "similarity",
        save_sketches: bool | int = False,
        progress: bool = False,
        state: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        checked_name(name)
        checked_directory(directory)
        known = [field.name for field in fields(Settings)]
        for unknown in settings.keys() - set(known):
            raise TypeError(f"there is no setting {unknown!r}; there are {', '.join(known)}")
        self._network = _unwrapped(network)
        if isinstance(reference, nn.Module):
            reference = _unwrapped(reference)
        asked = Settings(
            reference=Reference(reference),
            probe=probe,
            measures=as_measures(settings.pop("measures", DEFAULT_MEASURES)),
            **settings,
        )
        self._save_every = check_saving(save_sketches, asked.sketch)
        if self._save_every and directory is None:
            raise ValueError("`save_sketches` needs a `directory` to save them in")
        self._said: set[str] = set()
        runner = _runner(asked, self._network)
        self._run = MonitoredRun(
            asked,
            runner,
            self._network,
            before=state or {},
            beside=[] if directory is None else [Path(directory) / name],
            metadata={"run": name, "weights": "current"},
            bar=partial(_bar, name if progress and runner.rank == 0 else None),
            warn=self._warn if runner.rank == 0 else lambda message: None,
        )
        if directory is not None and runner.rank == 0:
            self._run.record_in(Path(directory) / name)

    @property
    def history(self) -> SimilarityHistory:
        """All that was measured so far."""
        return self._run.history

    @property
    def directory(self) -> Path | None:
        """Where the record lies; None where there is none, or before the first measurement."""
        return self._run.directory

    def measure(self, network: nn.Module | None = None, *, epoch: int = 0, step: int = 0) -> Measurement:
        """Compare the network as it is now with the reference.

        Args:
            network: as given when the engine was made, if that is another object by now.
            epoch: of the training, for trajectories.
            step: of the training, likewise.
        """
        measured = self._network if network is None else _unwrapped(network)
        return self._run.measure(measured, epoch, step, save_every=self._save_every)

    def state_dict(self) -> dict[str, Any]:
        """Primitives and tensors for a checkpoint, from which `state` continues: history, and an early reference."""
        return self._run.state_dict()

    def close(self) -> None:
        """Let another process continue the record."""
        self._run.close()

    def __enter__(self) -> SimilarityEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _warn(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            warnings.warn(f"SimilarityEngine: {message}", UserWarning, stacklevel=3)


def compare_networks(
    network: nn.Module,
    reference: str | Path | nn.Module | Reference,
    data: Any,
    *,
    epoch: int = 0,
    step: int = 0,
    progress: bool = True,
    **settings: Any,
) -> SimilarityHistory:
    """Compare two networks on some samples, in one call.

    Args:
        network: the one that is compared; its parameters' device is where both run.
        reference: another network of any architecture, or the file of its weights or sketches
            (:class:`lightning_sim.Reference`).
        data: a DataLoader or Dataset, of which `num_samples` = 1024 samples are used.
        epoch: of the network, for the record.
        step: likewise.
        progress: show a bar over the batches.
        **settings: as for :class:`SimilarityEngine`, also `directory`, `name` and `on_error`.

    Returns:
        A history of this one measurement, as a monitored run has it:
        ``history.matrix("cka").plot()``, ``history.to_pandas()``, ``history.save("teacher-and-student")``, and
        ``lightning-sim report`` on what that wrote.

    Raises:
        ValueError: for what cannot be compared, with what can.

    Example:
        >>> import torch
        >>> from lightning_sim import compare_networks
        >>> torch.manual_seed(0) and None
        >>> first, second = (torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Linear(9, 3)) for _ in range(2))
        >>> history = compare_networks(first, second, torch.randn(64, 4), progress=False)
        >>> history.matrix("cka").values.shape
        (2, 2)
        >>> round(history.measurements[0].values["cka/features/0"], 1)
        0.8
    """
    with SimilarityEngine(network, reference, data, progress=progress, **settings) as engine:
        engine.measure(epoch=epoch, step=step)
    return engine.history


def prepared(network: nn.Module, batch: Any) -> Any:
    """The batch with its numbers in the network's precision."""
    dtype = next((value.dtype for value in network.parameters() if value.is_floating_point()), torch.float32)
    return apply_to_collection(batch, Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x)


def _runner(settings: Settings, network: nn.Module) -> ProbeRunner:
    """Runs networks where the network's parameters are, each rank its share."""
    device = next((value.device for value in network.parameters()), torch.device("cpu"))
    several = distributed.is_available() and distributed.is_initialized()
    return settings.make_runner(
        settings.probe,
        device=device,
        rank=distributed.get_rank() if several else 0,
        world_size=distributed.get_world_size() if several else 1,
        prepare=lambda network, batch: prepared(network, move_data_to_device(batch, device)),
    )


def _unwrapped(network: nn.Module) -> nn.Module:
    """The network inside of what Fabric, DistributedDataParallel and torch.compile put around it."""
    wrapped = is_wrapped(network) or isinstance(network, DistributedDataParallel | DataParallel)
    inner = getattr(network, "module" if wrapped else "_orig_mod", None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else network


@contextmanager
def _bar(name: str | None, total: int) -> Iterator[Callable[[], None]]:
    """A bar that disappears afterwards; none without a name."""
    with tqdm(desc=f"Measuring {name}", total=total, leave=False, disable=name is None) as bar:
        yield lambda: bar.update() and None
