"""What of a layer is compared: its features, its gradients, and the ways to combine both."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_sim.sketch import HashedSamples, Sketch

__all__ = ["REPRESENTATIONS", "needs_gradients", "sketched", "update_sketch"]

# Tang et al. 2020, section 4, for the combinations.
REPRESENTATIONS = {
    "features": "what the layer gives",
    "gradients": "the gradient of the loss with respect to it",
    "features*gradients": "product of the two kernels",
    "features+gradients": "sum of the two kernels",
    "elementwise": "features times gradients, entry by entry of the vectors",
    "transport_map": "kernel of the map that carries features to gradients",
}


def needs_gradients(representation: str) -> bool:
    """Whether a backward pass is needed."""
    return representation != "features"


def sketched(representations: Iterable[str]) -> tuple[str, ...]:
    """What has to be sketched for these: the transport map is computed from two sketches and has none of its own."""
    parts = (("features", "gradients") if name == "transport_map" else (name,) for name in representations)
    return tuple(dict.fromkeys(part for names in parts for part in names))


def update_sketch(
    sketch: Sketch, representation: str, features: Tensor, gradients: Tensor | None, sample_ids: Tensor | HashedSamples
) -> None:
    """Add a batch to the sketch of one representation.

    Args:
        sketch: of this representation and layer.
        representation: a key of `REPRESENTATIONS` that is `sketched`.
        features: (b, ...).
        gradients: (b, ...), of the same shape; None for ``"features"``.
        sample_ids: (b,).
    """
    if gradients is None or representation == "features":
        sketch.update(features, sample_ids)
    elif representation == "gradients":
        sketch.update(gradients, sample_ids)
    elif representation == "features*gradients":
        sketch.update(features, sample_ids, gradients=gradients)
    elif representation == "features+gradients":
        # The kernel of vectors side by side is the sum of their kernels.
        sketch.update(torch.cat([features.flatten(1), gradients.flatten(1)], dim=1), sample_ids)
    else:
        dtype = torch.promote_types(features.dtype, torch.float32)  # products of half precision would vanish
        sketch.update(features.detach().to(dtype) * gradients, sample_ids)
