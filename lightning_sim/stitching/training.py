"""Stitches by task matching: trained to make the stitched network predict what it should."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from lightning_sim._arguments import check_number
from lightning_sim._checks import check_choice
from lightning_sim.functional import centered_kernel_alignment
from lightning_sim.probe.targets import find_targets
from lightning_sim.stitching.network import Stitch, Stitched
from lightning_sim.stitching.scores import logits_of

__all__ = ["StitchingTask"]


class StitchingTask(LightningModule):
    r"""Trains the stitch of a stitched network, and nothing else, for a Trainer to fit (Csiszarik et al. 2021, 4.1).

    The loss is the cross-entropy of the stitched network's predictions to those of the network whose back it has, soft
    labels, or to the true ones. Start from the least-squares map, as the paper does, and for a low rank from
    ``Stitch(map, rank=k)``, whose two factors are trained.

    Args:
        stitched: whose stitch is trained. Both networks stay in evaluation mode.
        labels: ``"soft"`` for the predictions of the network whose back it is, ``"hard"`` for the targets in the
            batches.
        l1: sets weights to zero: the weight of :math:`\sum |M_{ij}|`, by proximal steps, after which zeros are exact.
        cka: the weight of CKA, biased and linear, between what the stitch gives and what the back's own layer does,
            which drives the two apart: how little similarity does the same function need?
        learning_rate: of Adam.

    Example:
        >>> import torch
        >>> from lightning.pytorch import Trainer
        >>> from torch import nn
        >>> from lightning_sim.stitching import Stitch, Stitched, StitchingSums
        >>> from lightning_sim.stitching.training import StitchingTask
        >>> front, back = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
        >>> sums = StitchingSums(front, back, {"1": "1"})
        >>> sums.add(torch.randn(100, 3).split(10))
        >>> task = StitchingTask(Stitched(front, "1", back, "1", Stitch(sums.map("1"), rank=2)))
        >>> sorted(dict(task.named_parameters()))
        ['stitched.stitch.bias', 'stitched.stitch.factors.0', 'stitched.stitch.factors.1']
    """

    def __init__(
        self,
        stitched: Stitched,
        *,
        labels: Literal["soft", "hard"] = "soft",
        l1: float = 0.0,
        cka: float = 0.0,
        learning_rate: float = 1e-3,
    ) -> None:
        super().__init__()
        check_choice(labels, "labels", ("soft", "hard"))
        if not any(True for _ in stitched.stitch.parameters()):
            raise ValueError("`stitched` has a stitch without parameters, and nothing could be trained; give it a map")
        if check_number(l1, "l1") and not (isinstance(stitched.stitch, Stitch) and len(stitched.stitch.factors) == 1):
            raise ValueError("`l1` is for stitches of one weight: a Stitch without rank")
        self.stitched = stitched
        self.labels, self.l1, self.cka, self.learning_rate = labels, l1, check_number(cka, "cka"), learning_rate

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch."""
        output, features = self.stitched.with_features(batch)
        logits = logits_of(output)
        if self.labels == "soft" or self.cka:
            own_output, own_features = self.stitched.of_the_back(batch)
        targets = logits_of(own_output).softmax(1) if self.labels == "soft" else find_targets(batch, logits)
        if targets is None:
            raise ValueError('labels="hard" needs classes in the second place of a batch, or under "labels"')
        loss = F.cross_entropy(logits, targets)
        self.log("cross_entropy", loss, prog_bar=True)
        if self.cka:
            sides = features.flatten(1), own_features.flatten(1).to(features)
            similarity = centered_kernel_alignment(*sides, estimator="biased")
            self.log("cka", similarity, prog_bar=True)
            loss = loss + self.cka * similarity
        return loss

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """That of Adam, and the proximal step of the L1 norm."""
        super().optimizer_step(*arguments, **options)
        if self.l1:
            (weight,) = self.stitched.stitch.factors  # type: ignore[misc]
            with torch.no_grad():
                weight.copy_(weight.sign() * (weight.abs() - self.learning_rate * self.l1).clamp_min(0))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam over the stitch."""
        return torch.optim.Adam(self.stitched.stitch.parameters(), lr=self.learning_rate)
