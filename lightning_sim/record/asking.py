"""What is asked of a history: answered, or refused with what there is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightning_sim._arguments import check_integer, check_text
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import Measurement, SimilarityMatrix

__all__ = ["asked_key", "check_asked", "found_matrix", "keys_of", "layers_of", "listed"]


_NO_MATRICES = "no matrices, which are in the record alone, and not in what loggers keep"


def keys_of(measurements: Iterable[Measurement]) -> list[Key]:
    """What was ever measured, in order of appearance."""
    return list(dict.fromkeys(key for measurement in measurements for key in measurement.by_key))


def layers_of(keys: Iterable[Key], order: Iterable[str] = ()) -> list[str]:
    """The layers of the keys, those that have an order first."""
    found = dict.fromkeys(key.layer for key in keys if key.layer is not None)
    return list(dict.fromkeys([*(layer for layer in order if layer in found), *found]))


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


def asked_key(
    measurements: Sequence[Measurement],
    order: Iterable[str],
    measure: str,
    layer: str | None,
    representation: str,
    condition: str = "",
) -> Key:
    """The key of a number that a user asks for, its layer by name or by an end that no other of its kind has.

    What was never measured, and an end of several layers, is refused with what there is.
    """
    check_asked(measure, layer, representation, condition)
    key = Key(measure, None if layer is None else representation, layer, condition)
    if any(measurement.number(key) is not None for measurement in measurements):
        return key
    keys = keys_of(measurements)
    ending = [k for k in keys if k.layer and k.layer.endswith(f".{layer}") and k._replace(layer=layer) == key]
    if len(ending) > 1:
        raise ValueError(f"`layer` {layer!r} may be {' or '.join(layers_of(ending, order))}: give more of its name")
    if not ending:
        raise ValueError(_unknown(key, representation, keys, layers_of(keys, order)))
    return ending[0]


def found_matrix(
    measurements: Sequence[Measurement],
    measure: str,
    representation: str,
    condition: str,
    epoch: int | None,
    step: int | None,
) -> SimilarityMatrix:
    """The last matrix of its kind, or the last one of an epoch or step; refused with those that there are."""
    check_asked(measure, None, representation, condition, epoch)
    if step is not None:
        check_integer(step, "step", least=0)
    asked = Key(measure, representation, None, condition)
    for measurement in reversed(measurements):  # of which others are not looked at: they may have to be parsed
        if epoch in (None, measurement.epoch) and step in (None, measurement.step):
            for matrix in measurement.matrices:
                if matrix.key == asked:
                    return matrix
    held: dict[Key, dict[int, None]] = {}
    for measurement in measurements:
        for matrix in measurement.matrices:
            held.setdefault(matrix.key, {})[measurement.epoch if step is None else measurement.step] = None
    kind = "epoch" if step is None else "step"
    known = "; ".join(f"{key.title} at {kind}s {listed([*numbers])}" for key, numbers in held.items())
    at = "".join(f" at {name} {n}" for name, n in (("epoch", epoch), ("step", step)) if n is not None)
    raise ValueError(f"no matrix of {asked.title}{at} in this history; it holds {known or _NO_MATRICES}")


def _unknown(asked: Key, representation: str, keys: Sequence[Key], layers: Sequence[str]) -> str:
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
