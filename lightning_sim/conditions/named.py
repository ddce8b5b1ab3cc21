"""Conditions by name, of which corruptions and functions make the samples without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_sim._arguments import described
from lightning_sim._guards import isolated_random_state
from lightning_sim.conditions.attacks import ATTACKS, Attack
from lightning_sim.conditions.corruptions import CORRUPTIONS, Corruption
from lightning_sim.conditions.draws import number_of
from lightning_sim.conditions.pixels import find_inputs, with_inputs

__all__ = ["Condition", "applied", "as_conditions"]

Condition = Corruption | Attack | Callable[[Tensor], Tensor]
_CLEAN = "clean"


def as_conditions(given: Any, seed: int = 0) -> dict[str, Condition]:
    """Conditions by their names in logs, but for ``"clean"``, the samples as they are.

    Args:
        given: one or several names, corruptions, attacks or functions, or a mapping of names to these.
        seed: of those given by name.

    Raises:
        ValueError: for what is none of these, for two of one name, and for names that logs could not give back.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes) and not callable(given)
    pairs = given.items() if isinstance(given, Mapping) else ((None, one) for one in (given if several else [given]))
    found: dict[str, Condition] = {}
    for name, one in pairs:
        condition = _named(one, seed) if isinstance(one, str) and one != _CLEAN else one
        if isinstance(one, str):
            name = name or one
        elif not callable(one) or isinstance(one, type):
            raise ValueError(_refusal(one))
        name = name or getattr(one, "name", None) or getattr(one, "__name__", None) or type(one).__name__
        if one == _CLEAN:
            continue
        if not isinstance(name, str) or name == _CLEAN or not set("/@<>").isdisjoint(name):
            raise ValueError(f"a condition needs a name without / and @, got {name!r}; give {{name: condition}}")
        if name in found:
            raise ValueError(f"two conditions have the name {name!r}; give {{name: condition}}")
        found[name] = condition
    return found


def applied(condition: Condition, batch: Any, sample_ids: Tensor, seed: int) -> Any:
    """The batch corrupted, or with what a function gives for each sample, whose random state is its own.

    Raises:
        ValueError: where the function does not give one tensor (1, ...) for each.
    """
    inputs = find_inputs(batch)
    if isinstance(condition, Corruption):
        return with_inputs(batch, condition(inputs, sample_ids))
    changed = []
    for sample, id_ in zip(torch.split(inputs, 1), sample_ids.tolist(), strict=True):
        with isolated_random_state(number_of(f"{seed}/{id_}") % 2**32), torch.no_grad():
            given = condition(sample.clone())  # type: ignore[call-arg, arg-type]
        if not isinstance(given, Tensor) or len(given) != 1:
            got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else described(given)
            raise ValueError(f"it must give one tensor for inputs {tuple(sample.shape)}, of one sample; got {got}")
        changed.append(given)
    return with_inputs(batch, torch.cat(changed))


def _named(name: str, seed: int) -> Condition:
    """``"fog"``, ``"fog_3"`` of that severity, ``"pgd"``, ``"pgd_0.1"`` of that epsilon."""
    kind, _, number = name.rpartition("_")
    if name in CORRUPTIONS or (kind in CORRUPTIONS and number.isdigit()):
        return Corruption(name, seed=seed) if name in CORRUPTIONS else Corruption(kind, int(number), seed=seed)
    if name in ATTACKS:
        return Attack(name, seed=seed)
    try:
        if kind in ATTACKS:
            return Attack(kind, float(number), seed=seed)
    except ValueError:
        pass
    raise ValueError(_refusal(name))


def _refusal(given: object) -> str:
    return (
        f"`conditions` must be of {_CLEAN}, {', '.join((*CORRUPTIONS, *ATTACKS))}, with a severity (fog_3) or an "
        f"epsilon (pgd_0.1) behind it, Corruption, Attack, and functions of inputs; got {described(given)}"
    )
