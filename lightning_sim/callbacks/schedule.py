"""In which epochs a monitor measures, and whether what looks at its values finds them there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

__all__ = ["expects_measurement", "nothing_measured", "schedule_problems"]


def expects_measurement(trainer: Trainer, every_n_epochs: int) -> bool:
    """Whether the training comes to an epoch that is measured, as far as can be told when it starts."""
    period, last = _measured_every(trainer, every_n_epochs), trainer.max_epochs
    fast = getattr(trainer, "fast_dev_run", False)
    return not fast and (last in (None, -1) or last // period > trainer.current_epoch // period)


def nothing_measured(trainer: Trainer, every_n_epochs: int) -> str:
    """What is said after a training that did not come to a measurement."""
    came_to = "a validation" if trainer.enable_validation else "its end"
    which = f"no epoch that is a multiple of {_measured_every(trainer, every_n_epochs)} came to {came_to}"
    return f"nothing was measured: {which} (every_n_epochs={every_n_epochs})"


def schedule_problems(trainer: Trainer, name: str, every_n_epochs: int, values: Mapping[str, int]) -> list[str]:
    """What may surprise about the epochs that will be measured, and who looks at values when there may be none.

    Args:
        trainer: in training.
        name: of the monitor.
        every_n_epochs: of the monitor.
        values: names of values -> how many measurements come before their first one.

    Raises:
        ValueError: where a value that is looked at does not exist, or its absence would end the training.
    """
    warnings = _unlogged_values(trainer, name, every_n_epochs, values)
    period = _measured_every(trainer, every_n_epochs)
    which = f"every_n_epochs={every_n_epochs} measures in epochs that are multiples of {period}"
    if period != every_n_epochs:
        which += f", since there is a validation in every {_ordinal(_validated_every(trainer))}epoch only"
    if getattr(trainer, "fast_dev_run", False):
        return warnings
    if not expects_measurement(trainer, every_n_epochs):
        warnings.append(f"{which}, and the training ends after epoch {trainer.max_epochs}: nothing will be measured")
    elif every_n_epochs > 1 and period != every_n_epochs:
        warnings.append(which)
    return warnings


def _unlogged_values(trainer: Trainer, name: str, every_n_epochs: int, values: Mapping[str, int]) -> list[str]:
    period = _measured_every(trainer, every_n_epochs)
    warnings = []
    for who, key, looks_every, strict in _watchers(trainer):
        if key is None or not key.startswith(f"{name}/"):
            continue
        before = values.get(key.removeprefix(f"{name}/"))
        if before is None:
            known = ", ".join(f"{name}/{value}" for value in values)
            raise ValueError(f"{who} looks at {key!r}, which this monitor does not log; it logs {known}")
        if looks_every is None:
            continue
        message = f"{who} looks at {key!r} in every {_ordinal(looks_every)}epoch, and it is logged"
        if looks_every % period:
            message += f" in every {_ordinal(period)}epoch only; use SimilarityMonitor(every_n_epochs=1)"
            if looks_every % _validated_every(trainer):
                message += " and Trainer(check_val_every_n_epoch=1)"
        elif looks_every // period <= before:
            message += f" from measurement {before + 1} on only; look at another value, or leave strict=True out"
        else:
            continue
        if strict:
            raise ValueError(message)
        warnings.append(message)
    return warnings


def _watchers(trainer: Trainer) -> Iterator[tuple[str, str | None, int | None, bool]]:
    """Who looks at which value, in every how many epochs (None: at other times), and ends the training without it."""
    validated = _validated_every(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping):
            at_validation = validated if trainer.enable_validation else None
            looks_every = 1 if callback._check_on_train_epoch_end else at_validation
            yield type(callback).__name__, callback.monitor, looks_every, callback.strict
        elif isinstance(callback, ModelCheckpoint):
            own = callback._every_n_epochs
            looks_every = own if callback._should_save_on_train_epoch_end(trainer) else math.lcm(own, validated)
            saves = own > 0 and callback.save_top_k != 0
            yield type(callback).__name__, callback.monitor, looks_every if saves else None, trainer.enable_validation
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau:
            looks_every = config.frequency if config.interval == "epoch" else None
            yield type(config.scheduler).__name__, config.monitor, looks_every, config.strict


def _measured_every(trainer: Trainer, every_n_epochs: int) -> int:
    """Epochs are measured whose number, counted from 1, is a multiple of this: those that are due and validated."""
    return math.lcm(every_n_epochs, _validated_every(trainer))


def _validated_every(trainer: Trainer) -> int:
    return (trainer.check_val_every_n_epoch or 1) if trainer.enable_validation else 1


def _ordinal(number: int) -> str:
    """What stands before "epoch" after "every"."""
    return {1: "", 2: "2nd ", 3: "3rd "}.get(number, f"{number}th ")
