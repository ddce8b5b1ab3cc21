"""Logging values on which all ranks agree already, at the moments of a training in which there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

from lightning_sim.loggers import log_scalars

__all__ = ["LogScalars", "log_at_end_of_epoch", "log_at_step", "log_before_training"]

#: logs values of a network under a step
LogScalars = Callable[[LightningModule, Mapping[str, float], int], None]


def log_before_training(network: LightningModule, values: Mapping[str, float], step: int) -> None:
    """Give values to the loggers, as there is no epoch yet in which Lightning would."""
    log_scalars(network.trainer.loggers, {**values, "epoch": network.trainer.current_epoch}, step)


def log_at_step(network: LightningModule, values: Mapping[str, float], step: int) -> None:
    """Give values to the loggers, also where `log_every_n_steps` does not, and to what monitors them."""
    for name, value in values.items():
        network.log(name, value, on_step=True, on_epoch=False, logger=False, batch_size=1)
    log_before_training(network, values, step)


def log_at_end_of_epoch(network: LightningModule, values: Mapping[str, float], step: int) -> None:
    """Log values with those of Lightning, which knows the step, without a collective for any of them.

    Of numbers that it is not to reduce over the ranks, Lightning says once a name that they should be; of metrics, it
    leaves that to the metric.
    """
    for name, value in sorted(values.items()):
        with network.device:  # torchmetrics makes tensors where torch makes them by default
            metric = _Agreed().to(network.device)
        metric.update(value)
        network.log(name, metric, on_step=False, on_epoch=True, batch_size=1, metric_attribute=name)


class _Agreed(Metric):
    """The number that it was last given."""

    full_state_update = False
    value: Tensor

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)
        # As wide as Lightning keeps numbers.
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.add_state("value", torch.zeros((), dtype=dtype, device="cpu"))

    def update(self, value: float) -> None:
        """Replace it."""
        self.value = torch.full_like(self.value, value)

    def compute(self) -> Tensor:
        """The number."""
        return self.value
