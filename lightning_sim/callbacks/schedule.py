"""When a monitor measures, and whether what looks at its values finds them there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_sim._arguments import check_integer, described

__all__ = ["Schedule", "expects_measurement", "nothing_measured", "schedule_problems"]


class Schedule:
    """When a monitor measures.

    Args:
        every_n_epochs: in every n-th epoch; None is 1, or never where steps are counted.
        every_n_train_steps: or after every n-th step.
        before_training: and before the first step.

    Raises:
        ValueError: for both, or for what is no number of epochs or steps.
    """

    def __init__(self, every_n_epochs: object, every_n_train_steps: object, before_training: object) -> None:
        if every_n_epochs is not None and every_n_train_steps is not None:
            raise ValueError(
                f"got both every_n_epochs={every_n_epochs} and every_n_train_steps={every_n_train_steps}; leave one out"
            )
        if not isinstance(before_training, bool):
            raise ValueError(f"`before_training` must be True or False, got {described(before_training)}")
        self.before_training = before_training
        self.epochs: int | None = None
        self.steps: int | None = None
        if every_n_train_steps is not None:
            self.steps = check_integer(every_n_train_steps, "every_n_train_steps", least=1)
        else:
            self.epochs = check_integer(1 if every_n_epochs is None else every_n_epochs, "every_n_epochs", least=1)

    def is_due_after_epoch(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, is measured when it is complete."""
        return self.epochs is not None and (epoch + 1) % self.epochs == 0

    def is_due_after_step(self, steps: int) -> bool:
        """Whether the network is measured after so many steps."""
        return self.steps is not None and steps % self.steps == 0

    @property
    def but(self) -> str:
        """What is measured where nothing else is, in words."""
        return " but the start" if self.before_training else ""

    def __str__(self) -> str:
        return f"every_n_epochs={self.epochs}" if self.steps is None else f"every_n_train_steps={self.steps}"


def expects_measurement(trainer: Trainer, schedule: Schedule) -> bool:
    """Whether the training comes to what is measured after its start, as far as can be told then."""
    if getattr(trainer, "fast_dev_run", False):
        return False
    if schedule.steps is not None:
        return trainer.max_steps == -1 or trainer.max_steps // schedule.steps > trainer.global_step // schedule.steps
    period, last = _measured_every(trainer, schedule), trainer.max_epochs
    return last in (None, -1) or last // period > trainer.current_epoch // period


def nothing_measured(trainer: Trainer, schedule: Schedule) -> str:
    """What is said after a training that did not come to a measurement."""
    came_to = "a validation" if trainer.enable_validation else "its end"
    which = f"no epoch that is a multiple of {_measured_every(trainer, schedule)} came to {came_to}"
    if schedule.steps is not None:
        which = f"it ended after step {trainer.global_step}"
    return f"nothing was measured{schedule.but}: {which} ({schedule})"


def schedule_problems(trainer: Trainer, name: str, schedule: Schedule, values: Mapping[str, int]) -> list[str]:
    """What may surprise about when will be measured, and who looks at values when there may be none.

    Args:
        trainer: in training.
        name: of the monitor.
        schedule: of the monitor.
        values: names of values -> how many measurements come before their first one.

    Raises:
        ValueError: where a value that is looked at does not exist, or its absence would end the training.
    """
    warnings = _unlogged_values(trainer, name, schedule, values)
    if getattr(trainer, "fast_dev_run", False):
        return warnings
    nothing = f"nothing will be measured{schedule.but}"
    if schedule.steps is not None:
        if not expects_measurement(trainer, schedule):
            warnings.append(f"{schedule}, and the training ends after step {trainer.max_steps}: {nothing}")
        return warnings
    period = _measured_every(trainer, schedule)
    which = f"{schedule} measures in epochs that are multiples of {period}"
    if period != schedule.epochs:
        which += f", since there is a validation in every {_ordinal(_validated_every(trainer))}epoch only"
    if not expects_measurement(trainer, schedule):
        warnings.append(f"{which}, and the training ends after epoch {trainer.max_epochs}: {nothing}")
    elif schedule.epochs != 1 and period != schedule.epochs:
        warnings.append(which)
    return warnings


def _unlogged_values(trainer: Trainer, name: str, schedule: Schedule, values: Mapping[str, int]) -> list[str]:
    period = _measured_every(trainer, schedule)
    warnings = []
    for who, key, looks_every, strict in _watchers(trainer):
        if key is None or not key.startswith(f"{name}/"):
            continue
        before = values.get(key.removeprefix(f"{name}/"))
        if before is None:
            known = ", ".join(f"{name}/{value}" for value in values)
            raise ValueError(f"{who} looks at {key!r}, which this monitor does not log; it logs {known}")
        if looks_every is None or schedule.steps is not None:  # at steps, nobody can tell
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


def _measured_every(trainer: Trainer, schedule: Schedule) -> int:
    """Epochs are measured whose number, counted from 1, is a multiple of this: those that are due and validated."""
    return math.lcm(schedule.epochs or 1, _validated_every(trainer))


def _validated_every(trainer: Trainer) -> int:
    return (trainer.check_val_every_n_epoch or 1) if trainer.enable_validation else 1


def _ordinal(number: int) -> str:
    """What stands before "epoch" after "every"."""
    return {1: "", 2: "2nd ", 3: "3rd "}.get(number, f"{number}th ")
