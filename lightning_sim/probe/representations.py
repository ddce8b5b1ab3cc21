"""What of a layer is compared: its features, its gradients, and ways to combine both; a new one is one entry here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sim.sketch import HashedSamples, Sketch, TransportMap

__all__ = ["REPRESENTATIONS", "Representation", "Summary", "needs_gradients", "sketched"]

Ids = Tensor | HashedSamples
Summary = Sketch | TransportMap


def _features(sketch: Sketch, features: Tensor, gradients: Tensor, ids: Ids) -> None:
    sketch.update(features, ids)


def _gradients(sketch: Sketch, features: Tensor, gradients: Tensor, ids: Ids) -> None:
    sketch.update(gradients, ids)


def _product(sketch: Sketch, features: Tensor, gradients: Tensor, ids: Ids) -> None:
    sketch.update(features, ids, gradients=gradients)


def _sum(sketch: Sketch, features: Tensor, gradients: Tensor, ids: Ids) -> None:
    # The kernel of vectors side by side is the sum of their kernels.
    sketch.update(torch.cat([features.flatten(1), gradients.flatten(1)], dim=1), ids)


def _elementwise(sketch: Sketch, features: Tensor, gradients: Tensor, ids: Ids) -> None:
    dtype = torch.promote_types(features.dtype, torch.float32)  # products of half precision would vanish
    sketch.update(features.detach().to(dtype) * gradients, ids)


@dataclass(frozen=True)
class Representation:
    """One way to represent a layer.

    Args:
        meaning: in words.
        update: ``update(sketch, features, gradients, sample_ids)`` adds a batch to its sketch; None for one that is
            computed from the sketches of others. Where no gradients are needed, features stand in their place.
        needs_gradients: whether a backward pass is needed.
        parts: the representations that are sketched for it; None for itself.
        combine: makes of their sketches what is compared.
    """

    meaning: str
    update: Callable[[Sketch, Tensor, Tensor, Ids], None] | None
    needs_gradients: bool = True
    parts: tuple[str, ...] | None = None
    combine: Callable[..., Summary] = lambda sketch: sketch


# Tang et al. 2020, section 4, for the combinations.
REPRESENTATIONS = {
    "features": Representation("what the layer gives", _features, needs_gradients=False),
    "gradients": Representation("the gradient of the loss with respect to it", _gradients),
    "features*gradients": Representation("product of the two kernels", _product),
    "features+gradients": Representation("sum of the two kernels", _sum),
    "elementwise": Representation("features times gradients, entry by entry of the vectors", _elementwise),
    "transport_map": Representation(
        "kernel of the map that carries features to gradients",
        None,
        parts=("features", "gradients"),
        combine=TransportMap,
    ),
}


def needs_gradients(representations: Iterable[str]) -> bool:
    """Whether any of them needs a backward pass."""
    return any(REPRESENTATIONS[name].needs_gradients for name in representations)


def sketched(representations: Iterable[str]) -> tuple[str, ...]:
    """What has to be sketched for these."""
    return tuple(dict.fromkeys(part for name in representations for part in REPRESENTATIONS[name].parts or (name,)))
