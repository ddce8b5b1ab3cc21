"""What a user asks of a monitor, checked as far as it can be before a training is there."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_sim._arguments import (
    check_callable,
    check_integer,
    check_names,
    check_number,
    described,
)
from lightning_sim._checks import check_choice
from lightning_sim.conditions.named import as_conditions
from lightning_sim.measures import DEFAULT_MEASURES, Measure, as_measures
from lightning_sim.probe import Probe, call_network, isolated_random_state
from lightning_sim.probe.gradients import Objective, expected_loss, total_loss
from lightning_sim.probe.pooling import POOLS
from lightning_sim.probe.representations import REPRESENTATIONS, needs_gradients, sketched
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.probe.samples import CHOICES, MINIMUM_SAMPLES
from lightning_sim.reference import Reference
from lightning_sim.sketch import Sketch, Tang2020Sketch, sizes_for

__all__ = ["Settings", "check_every", "check_saving"]


@dataclass(frozen=True)
class Settings:
    """What the user asked for; see :class:`lightning_sim.SimilarityMonitor`."""

    reference: Reference
    probe: Any
    measures: tuple[Measure, ...]
    layers: str | Sequence[str] | Mapping[str, str] = "auto"
    representations: Sequence[str] = ("features",)
    num_samples: int = 1024
    num_buckets: int = 1024
    num_projections: int = 1024
    estimator: str = "unbiased"
    forward: Any = call_network  # callable, once checked
    seed: int = 0
    beta: float = 0.5
    loss: Any = None
    sketch: str = "default"
    pool: str = "flatten"
    probe_choice: str = "spaced"
    cache_probe: bool = False
    matrices: str | Sequence[str] = ("cka",)
    on_error: str = "warn"
    conditions: Any = "clean"  # by name, once checked
    layers_under_conditions: bool = False

    def __post_init__(self) -> None:
        example = 'loss=lambda output, batch: F.cross_entropy(output, batch[1], reduction="none")'
        conditions = as_conditions(self.conditions, check_integer(self.seed, "seed", least=0, most=2**32 - 1))
        checked = {
            "forward": check_callable(self.forward, "forward", "forward=lambda network, batch: network(batch[0])"),
            "loss": None if self.loss is None else check_callable(self.loss, "loss", example),
            "layers": _checked_layers(self.layers),
            "conditions": conditions,
            "measures": _with_matrices(self._with_labels(bool(conditions)), self.matrices),
            "representations": check_names(self.representations, "representations", '["features"]'),
            "num_samples": check_integer(self.num_samples, "num_samples", least=MINIMUM_SAMPLES),
            "num_buckets": check_integer(self.num_buckets, "num_buckets", least=1),
            "num_projections": check_integer(self.num_projections, "num_projections", least=1),
            "seed": check_integer(self.seed, "seed", least=0, most=2**32 - 1),
            "beta": check_number(self.beta, "beta"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not set(self.representations) <= set(REPRESENTATIONS):
            known = ", ".join(f"{name!r} ({r.meaning})" for name, r in REPRESENTATIONS.items())
            raise ValueError(f"`representations` must be of {known}; got {list(self.representations)}")
        check_choice(self.estimator, "estimator", ("unbiased", "biased"))
        check_choice(self.sketch, "sketch", ("default", "tang2020"))
        check_choice(self.pool, "pool", POOLS)
        check_choice(self.probe_choice, "probe_choice", CHOICES)
        for name in ("cache_probe", "layers_under_conditions"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"`{name}` must be True or False, got {described(getattr(self, name))}")
        check_choice(self.on_error, "on_error", ("warn", "raise"))
        _check_probe(self.probe)
        self.make_sketch()  # refuses sizes that do not work
        self.make_objective()

    def make_sketch(self, num_samples: int | None = None) -> Sketch:
        """An empty sketch of these sizes, or of those that use the same memory better for so many samples."""
        if self.sketch == "tang2020":
            return Tang2020Sketch(self.num_buckets, seed=self.seed)
        sizes = self.num_buckets, self.num_projections
        tokens = self.pool == "tokens"  # which are more than the samples of the probe
        if num_samples is not None and not tokens and not self._saved_with(*sizes):
            sizes = sizes_for(num_samples, *sizes)
        return Sketch(*sizes, self.seed)

    def _saved_with(self, num_buckets: int, num_projections: int) -> bool:
        """Whether the reference is of sketches made with just these sizes, as by hand."""
        saved = self.reference.saved
        sketches = [] if saved is None else [s for layers in saved.sketches.values() for s in layers.values()]
        return any((s.num_buckets, s.num_projections) == (num_buckets, num_projections) for s in sketches)

    def make_runner(self, source: Any, **where: Any) -> ProbeRunner:
        """Runs networks over samples of `source`; `where` and how is that of :class:`ProbeRunner`."""
        with isolated_random_state(self.seed):  # an iterable dataset is read here
            probe = Probe(source, self.num_samples, choice=self.probe_choice, seed=self.seed, keep=self.cache_probe)
        return ProbeRunner(
            probe,
            partial(self.make_sketch, probe.size),
            forward=self.forward,
            seed=self.seed,
            representations=self.sketched,
            objective=self.make_objective(),
            pool=self.pool,
            **where,
        )

    def make_objective(self) -> Objective:
        """Whose gradients are taken."""
        return expected_loss(self.beta) if self.loss is None else total_loss(self.loss)

    @property
    def sketched(self) -> tuple[str, ...]:
        """The representations that are sketched for those asked for."""
        return sketched(self.representations)

    @property
    def needs_gradients(self) -> bool:
        """Whether any representation does."""
        return needs_gradients(self.representations)

    @property
    def optional(self) -> frozenset[str]:
        """The measures that are left out where they do not apply: the default ones, where all of them are asked for."""
        names = {measure.name for measure in self.measures}
        beside = ("error_consistency",) if self.conditions else ()
        return frozenset((*DEFAULT_MEASURES, *beside) if names.issuperset(DEFAULT_MEASURES) else ())

    def _with_labels(self, conditions: bool) -> tuple[Measure, ...]:
        """The measures, under conditions beside the default ones also that of errors, where there are labels."""
        names = {measure.name for measure in self.measures}
        if not conditions or not names.issuperset(DEFAULT_MEASURES) or "error_consistency" in names:
            return self.measures
        return *self.measures, *as_measures("error_consistency")


def check_saving(save_sketches: object, sketch: str, log_sketches: object = False) -> int:
    """After every how many measurements the sketches are saved, 0 for never; to be logged they must be."""
    if not isinstance(log_sketches, bool):
        raise ValueError(f"`log_sketches` must be True or False, got {described(log_sketches)}")
    every = check_every(log_sketches if save_sketches is False else save_sketches, "save_sketches")
    if every and sketch == "tang2020":
        raise ValueError('sketches of sketch="tang2020" cannot be saved; leave `save_sketches` out')
    return every


def check_every(value: object, name: str) -> int:
    """Every how many measurements something is done, 0 for never."""
    if not isinstance(value, Integral) or value < 0:  # booleans are Integral as well
        raise ValueError(f"`{name}` must be True, False or every how many measurements, got {described(value)}")
    return int(value)


def _with_matrices(measures: Sequence[Measure], matrices: object) -> tuple[Measure, ...]:
    """The measures, those of these names with matrices; of the others those that were made so, but not CKA."""
    wanted = () if matrices in ((), []) else check_names(matrices, "matrices", '["cka", "nbs"]')
    able = [measure.name for measure in measures if hasattr(measure, "every_pair")]
    if unknown := [name for name in wanted if name not in (*able, "cka")]:
        known = ", ".join(able) or "none of these"
        raise ValueError(f"`matrices` must be of the measures of layers that are monitored, {known}; got {unknown}")
    found = []
    for measure in measures:
        asked = measure.name in wanted or (measure.name != "cka" and getattr(measure, "every_pair", False))
        if asked != getattr(measure, "every_pair", asked):
            measure = copy.copy(measure)  # which may be the user's
            measure.every_pair = asked  # type: ignore[attr-defined]
        found.append(measure)
    return tuple(found)


def _checked_layers(layers: object) -> str | tuple[str, ...] | dict[str, str]:
    """``"auto"`` or ``"match"``, names and globs, or name -> name of the reference."""
    if isinstance(layers, str) and layers in ("auto", "match"):
        return layers
    example = '["conv1", "blocks.*"], "auto" or {"mine": "theirs"}; network.named_modules() gives the names'
    if not isinstance(layers, Mapping):
        return check_names(layers, "layers", example)
    for name in (*layers, *layers.values()):
        if not isinstance(name, str) or not name:
            raise ValueError(f"`layers` must map names to names, such as {example}; got {described(name)} in it")
    if not layers:
        raise ValueError(f"`layers` must be names or map names to names, such as {example}; got an empty mapping")
    return dict(layers)


def _check_probe(probe: object) -> None:
    """Refuse what is no source of samples; whether there are enough is known when training starts."""
    if isinstance(probe, list | tuple) and any(isinstance(part, DataLoader) for part in probe):
        raise ValueError(f"`probe` must be one DataLoader or Dataset, got a {type(probe).__name__} of DataLoaders")
    indexed = hasattr(probe, "__getitem__") and hasattr(probe, "__len__")
    known = probe is None or indexed or isinstance(probe, DataLoader | IterableDataset)
    if not known or isinstance(probe, str | bytes | Mapping | nn.Module):
        raise ValueError(
            "`probe` must be a DataLoader, a Dataset, a list of samples, or None for the validation set, got "
            f"{described(probe)}; of a LightningDataModule pass a loader, such as datamodule.val_dataloader()"
        )
