"""What the demo's numbers mean, in two sentences whose wording follows from the numbers."""

from __future__ import annotations

import math

from lightning_sim.history import SimilarityHistory

__all__ = ["meaning"]

_UNCHANGED = 0.95  # CKA from which features count as unchanged in the text
_HIGH = 0.8  # CKA that looks high
_GAP = 0.1  # difference of two CKA values that is worth a word
_AGREES = 0.75  # share of predictions from which behaviour counts as kept


def meaning(fine_tuned: SimilarityHistory, scratch: SimilarityHistory) -> tuple[str, str]:
    """One sentence on what fine-tuning changed, and one on what the network from scratch is a baseline for.

    Args:
        fine_tuned: Similarity to the checkpoint that the network started from.
        scratch: Similarity to the same checkpoint, of a network that never saw it, with the same layers.
    """
    return _on_fine_tuning(fine_tuned), _on_scratch(fine_tuned, scratch)


def _on_fine_tuning(history: SimilarityHistory) -> str:
    cka, agreement = _final_cka(history), _final(history, "agreement")
    if not cka or math.isnan(agreement):
        return "What fine-tuning changed could not be measured: the values are NaN."
    lowest, highest = min(cka, key=cka.__getitem__), max(cka, key=cka.__getitem__)
    unchanged = [layer for layer, value in cka.items() if value >= _UNCHANGED]
    if cka[lowest] >= _UNCHANGED:
        features = f"Fine-tuning left all layers almost as they were (CKA {_floor(cka[lowest])} or more)"
    elif unchanged:
        least = _floor(min(cka[layer] for layer in unchanged))
        features = (
            f"Fine-tuning left {_joined(unchanged)} almost as {'they were' if unchanged[1:] else 'it was'} "
            f"(CKA {least} or more) and changed {lowest} most ({cka[lowest]:.2f})"
        )
    else:
        features = (
            f"Fine-tuning changed all layers, {highest} least (CKA {cka[highest]:.2f}) "
            f"and {lowest} most ({cka[lowest]:.2f})"
        )
    similar, agrees = cka[lowest] >= _HIGH or len(unchanged) > len(cka) / 2, agreement >= _AGREES
    share = f"{agreement:.0%} of the held-out upright digits still get the checkpoint's answer"
    if similar and not agrees:
        return f"{features}, yet only {share}: similar features do not mean the same predictions."
    if agrees and not similar:
        return f"{features}, yet {share}: much of a layer can change without changing predictions."
    if agrees:
        return f"{features}, and {share}: the first task is mostly kept."
    return f"{features}, and only {share}: little of the first task is kept."


def _on_scratch(fine_tuned: SimilarityHistory, scratch: SimilarityHistory) -> str:
    tuned, other = _final_cka(fine_tuned), _final_cka(scratch)
    gaps = {layer: tuned[layer] - other[layer] for layer in tuned if layer in other}
    if not gaps:
        return "The network trained from scratch could not be compared with it: the values are NaN."
    widest = max(gaps, key=lambda layer: abs(gaps[layer]))
    never = "The network trained from scratch never saw the checkpoint"
    here = f"{widest}, {other[widest]:.2f} against {tuned[widest]:.2f}"
    if abs(gaps[widest]) < _GAP:
        return (
            f"{never} and comes within about {abs(gaps[widest]):.2f} of the fine-tuned one in all layers, "
            "so that CKA does not show here which of them did."
        )
    if gaps[widest] < 0:
        return f"{never} and is closer to it all the same in {here}: common origin is not what CKA shows there."
    highest = max(gaps, key=other.__getitem__)
    if other[highest] >= _HIGH and highest != widest:
        return (
            f"{never} and still reads {other[highest]:.2f} in {highest}, so that a high value there says little; "
            f"the common origin shows in {here} after fine-tuning."
        )
    return f"{never}, and that shows most in {here} after fine-tuning."


def _final_cka(history: SimilarityHistory) -> dict[str, float]:
    values = {layer: _final(history, "cka", layer) for layer in history.layers}
    return {layer: value for layer, value in values.items() if not math.isnan(value)}


def _final(history: SimilarityHistory, measure: str, layer: str | None = None) -> float:
    return float(history.trajectory(measure, layer=layer).values[-1])


def _floor(value: float) -> str:
    return f"{math.floor(100 * value) / 100:.2f}"  # "or more" must hold


def _joined(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
