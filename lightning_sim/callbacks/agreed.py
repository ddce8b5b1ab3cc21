"""Logging values on which all ranks agree already."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torchmetrics import Metric

__all__ = ["log_agreed"]


def log_agreed(network: LightningModule, values: Mapping[str, float]) -> None:
    """Log values at the end of an epoch, without a collective for any of them.

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
