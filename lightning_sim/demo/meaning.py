"""What the demo's numbers say, in two sentences that quote them."""

from __future__ import annotations

import math

from lightning_sim.record import SimilarityHistory

__all__ = ["meaning"]


def meaning(fine_tuned: SimilarityHistory, scratch: SimilarityHistory) -> tuple[str, str]:
    """One sentence about the fine-tuned network, one about the network from scratch."""
    agreement = float(fine_tuned.trajectory("agreement").values[-1])
    answers = "an unknown share" if math.isnan(agreement) else f"{agreement:.0%}"
    return (
        f"After fine-tuning, CKA with the checkpoint is {_span(fine_tuned)}, and {answers} of the held-out upright "
        "digits still get the checkpoint's answer.",
        f"The network trained from scratch never saw the checkpoint, and its CKA with it is {_span(scratch)}.",
    )


def _span(history: SimilarityHistory) -> str:
    """The last CKA of the lowest and of the highest layer."""
    values = {layer: float(history.trajectory("cka", layer=layer).values[-1]) for layer in history.layers}
    known = {layer: value for layer, value in values.items() if not math.isnan(value)}
    if not known:
        return "not known in any layer"
    low, high = min(known, key=known.__getitem__), max(known, key=known.__getitem__)
    return f"{known[high]:.2f} in {high} and {known[low]:.2f} in {low}"
