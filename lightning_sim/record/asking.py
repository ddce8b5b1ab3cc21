"""What is asked of a history: refused where it names nothing, and answered with what there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_sim._arguments import check_integer, check_text
from lightning_sim.record.key import Key

__all__ = ["check_asked", "listed", "no_matrix", "unknown"]


def check_asked(
    measure: object, layer: object, representation: object, condition: object = "", epoch: object = None
) -> None:
    """Refuse what is no name of anything, before it is looked up."""
    check_text(measure, "measure")
    check_text(representation, "representation")
    if layer is not None:
        check_text(layer, "layer")
    if condition != "":
        check_text(condition, "condition")
    if epoch is not None:
        check_integer(epoch, "epoch", least=-1)  # what loggers do not say is -1


def listed(numbers: Sequence[int]) -> str:
    """The numbers; of many the first and the last."""
    if len(numbers) > 8:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
    return ", ".join(map(str, numbers))


def no_matrix(asked: Key, epoch: int | None, held: Iterable[tuple[Key, int]]) -> str:
    """That there is no such matrix, and of what and when there are any."""
    epochs: dict[Key, dict[int, None]] = {}
    for key, moment in held:
        epochs.setdefault(key, {})[moment] = None
    known = "; ".join(f"{key.title} at epochs {listed([*moments])}" for key, moments in epochs.items())
    at = "" if epoch is None else f" at epoch {epoch}"
    return f"no matrix of {asked.title}{at} in this history; it holds {known or 'no matrices'}"


def unknown(asked: Key, representation: str, keys: Sequence[Key], layers: Sequence[str]) -> str:
    """Why there is no such trajectory among the keys, and which there are."""
    of_measure = [key for key in keys if key.measure == asked.measure]
    if not of_measure:
        held = ", ".join(dict.fromkeys(key.measure for key in keys)) or "nothing yet"
        return f"no measure {asked.measure!r} in this history; it holds {held}"
    found = [key for key in of_measure if key.condition == asked.condition]
    if not found:
        held = ", ".join(repr(condition) for condition in dict.fromkeys(key.condition for key in of_measure))
        return f"{asked.measure!r} was not measured under {asked.condition!r}; conditions are {held}"
    if all(key.layer is None for key in found):
        return f"{asked.measure!r} belongs to outputs or whole networks: leave `layer` out, got {asked.layer!r}"
    representations = dict.fromkeys(key.representation for key in found if key.representation is not None)
    if representation not in representations:
        return f"{asked.measure!r} was measured for {', '.join(representations)}, not for {representation!r}"
    wanted = "give `layer`" if asked.layer is None else f"no layer {asked.layer!r}"
    measured = [key.layer for key in found if key.representation == representation]
    in_order = (layer for layer in layers if layer in measured)
    kind = asked._replace(representation=representation).title
    return f"{wanted}: {kind} was measured for {', '.join(in_order)}"
