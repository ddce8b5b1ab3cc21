"""The sketches of all layers of one network at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lightning_sim.sketch.sketch import Sketch

__all__ = ["SketchSet"]


@dataclass
class SketchSet:
    """The sketches of one network on one probe, at one moment: what one file holds.

    Args:
        sketches: representation (``"features"``) -> layer -> sketch.
        network: name of the network, for people.
        probe: fingerprint of the probe's content; empty where it is not known.
        gradients: whose gradients were taken, in words; empty where none were, or it is not known.
        epoch: of the training, -1 outside of one.
        step: of the training, -1 outside of one.
        logits: (samples, classes), the network's outputs in the order of the sample ids, where they are to be kept.
    """

    sketches: Mapping[str, Mapping[str, Sketch]]
    network: str = ""
    probe: str = ""
    gradients: str = ""
    epoch: int = -1
    step: int = -1
    logits: Tensor | None = None

    def of(self, representation: str = "features") -> Mapping[str, Sketch]:
        """Layer -> sketch of one representation.

        Raises:
            ValueError: when there are none; the message says which there are.
        """
        if representation not in self.sketches:
            held = ", ".join(self.sketches) or "nothing"
            raise ValueError(f"no sketches of {representation!r} in {self.network or 'this set'}; it holds {held}")
        return self.sketches[representation]

    def require_comparable(self, other: SketchSet, representation: str = "features") -> None:
        """Raise the reason, if the two sets are known to be of different probes, or of gradients of different losses.

        Seeds, sizes and sample ids are compared sketch by sketch (`Sketch.require_comparable`); samples of the same
        ids can still be of different datasets, and only the probes' fingerprints tell.
        """
        if self.probe and other.probe and self.probe != other.probe:
            raise ValueError(
                f"the sketches are of different probes (fingerprints {self.probe} and {other.probe}): their samples "
                "cannot be paired, and a similarity of them would mean nothing"
            )
        if representation != "features" and self.gradients and other.gradients and self.gradients != other.gradients:
            raise ValueError(f"the gradients are of different losses: {self.gradients}; {other.gradients}")
