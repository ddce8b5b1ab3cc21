"""The callback: when to measure, what reaches the loggers and the record, and what a checkpoint carries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_sim.callbacks.in_training import probe_runner, require_own_name, require_runnable, whose_weights
from lightning_sim.callbacks.keywords import formerly_positional
from lightning_sim.callbacks.logged import LogScalars, log_at_end_of_epoch, log_at_step, log_before_training
from lightning_sim.callbacks.progress import measuring_bar
from lightning_sim.callbacks.reporting import Reports, measurements_before
from lightning_sim.callbacks.run_directory import directory_of, earlier_directories, run_name
from lightning_sim.callbacks.schedule import Schedule, expects_measurement, nothing_measured, schedule_problems
from lightning_sim.measures import DEFAULT_MEASURES, OneMeasure, as_measures
from lightning_sim.monitored_run import MonitoredRun
from lightning_sim.probe import call_network
from lightning_sim.record import SimilarityHistory
from lightning_sim.reference import Reference
from lightning_sim.run_directory import checked_directory, checked_name
from lightning_sim.session import OtherComparisonError
from lightning_sim.settings import Settings, check_every, check_saving

__all__ = ["SimilarityMonitor"]


class SimilarityMonitor(Callback):
    """Measures, while a network trains, how similar it is to a reference: layer by layer and in its outputs.

    Before the first step and after every validation (after every epoch where there is no validation loop) the network
    runs once over a fixed probe, in evaluation mode; every chosen layer is sketched on the way
    (:class:`lightning_sim.Sketch`), and compared with the reference's sketches, which are made once. Training is not
    affected: same weights bit for bit, same random state, no hook left behind.

    Scalars are logged as ``similarity/<measure>/<representation>/<layer>``, with their mean over the layers, and
    ``similarity/<measure>`` of the outputs, which EarlyStopping and ModelCheckpoint can monitor; ``similarity/seconds``
    is its time, from the fourth on ``similarity/cka_jsd_pearson/...`` the correlation of each layer's CKA with the
    divergence of the outputs. All numbers are in `history`, in checkpoints, and in ``similarity/record.jsonl`` in the
    run's directory; where another run's is there, ``similarity-1`` is taken, and so on. A resumed run, and a further
    `fit` of the same Trainer and network, continues history and record, and keeps the first ``"init"``, from
    ``reference-<hash>.pt`` beside the record; what was recorded after the checkpoint is kept as ``record-1.jsonl``.

    Args:
        reference: ``"init"``, ``"previous"``, the path of a checkpoint or of a Hugging Face model's folder, an
            ``nn.Module`` or a :class:`lightning_sim.Reference`. All other arguments are given by keyword.
        probe: a DataLoader or Dataset; None takes the validation set (the training set where there is none). A
            loader's `num_workers` load it, and its sampler is not used.
        layers: names and globs (or one), ``{"mine": "theirs"}`` when the networks name their layers differently,
            ``"auto"``: convolution, linear, embedding, recurrent and attention layers, or blocks of them, paired by
            relative depth where few names are in common; or ``"match"``, these in the order with the largest sum of CKA
            at the start. Globs and ``"auto"`` leave out, with a notice, what cannot be measured or is constant.
        measures: one or several names of :data:`lightning_sim.measures.MEASURES`, functions of two feature matrices,
            torchmetrics metrics, or :class:`lightning_sim.measures.Measure` objects. Of the default ones, ``"cka"``,
            ``"nbs"`` (layers), ``"wcka"`` (weights of chains of dense layers), ``"agreement"``, ``"jsd"`` and
            ``"rank_correlation"`` (logits), those that the networks do not allow are left out; if some are named, one
            is refused, but ``"wcka"`` takes any network then. ``"mean_embedding"``, ``"fisher_rao_norm"``,
            ``"fisher_rao_distance"`` and ``"task2vec"`` say how far the network must move for this dataset, the last
            three by passes of their own; ``"stitching"`` how well a layer takes the other's place, by many passes.
        representations: what of a layer is compared: ``"features"``, ``"gradients"`` of the loss with respect to
            them, or both by the kernels' product, ``"features*gradients"``, or sum, ``"features+gradients"``, by the
            entrywise product of the vectors, ``"elementwise"``, or by ``"transport_map"``, which carries the one to the
            other. Gradients take a backward pass over the probe, and as much memory as one batch does in training.
        num_samples: size of the probe.
        probe_choice: which samples these are, always in the order of the data set: ``"spaced"``, one of each of
            `num_samples` equal stretches, also for data sorted by class; ``"first"``, as of an iterable data set in any
            case; or ``"random"``, by `seed`.
        cache_probe: keep the probe's batches in memory after the first pass, for data that are expensive to load.
        num_buckets: M of the sketches; no collisions, hence exact in the samples, while num_samples <= num_buckets.
        num_projections: k of the sketches; layers up to this width are exact, wider ones folded. A small probe gets
            fewer buckets and more projections in the same memory (:func:`lightning_sim.sketch.sizes_for`).
        every_n_epochs: measure in every n-th epoch (1 unless `every_n_train_steps` is given), at each of its
            validations: with ``Trainer(check_val_every_n_epoch=m)`` at the multiples of both n and m, as a warning
            says. What EarlyStopping, ModelCheckpoint or ReduceLROnPlateau look at must be logged whenever they do.
        every_n_train_steps: measure after every n-th optimizer step instead, as ModelCheckpoint counts them.
        before_training: measure also before the first step, where a trajectory starts (but with ``"previous"``).
        matrices: measures of which every layer is compared with every layer of the reference; () for none.
        estimator: of CKA, ``"unbiased"`` or ``"biased"``.
        forward: ``forward(network, batch)`` gives the output; the default takes the first part of a tuple, or the
            fitting keys of a mapping but ``labels``. Like `loss` it may be named, ``"package.module:function"``.
        beta: gradients are those of the negative log-likelihood, expected under q proportional to p^beta with the
            predicted probabilities p; no labels are needed.
        loss: ``loss(output, batch)`` gives losses (samples,), whose gradients are taken where there are no logits.
        sketch: ``"tang2020"`` for those as published, with their biases (:class:`lightning_sim.sketch.Tang2020Sketch`).
        pool: what of a layer's output (batch, positions, width) counts: ``"flatten"`` all positions as one sample,
            ``"mean"``, ``"first"`` or ``"last"`` of them, or ``"tokens"``, every position a sample. Positions that an
            ``attention_mask`` in the batch marks as padding never count. Outputs of a network that are sequences of
            logits are compared at the last position.
        name: first part of the logged names and directory of the record; give each of several monitors its own.
        directory: the run's directory, in which ``<name>/record.jsonl`` is made; None takes that of the first logger.
        save_sketches: write the sketches and outputs of every (or every n-th) measurement to ``sketches/`` beside the
            record, for ``lightning-sim compare`` and as a later reference; 4.2 MB a layer at the default sizes.
        figures: give matrices and scatter plots of every (or every n-th) measurement to the loggers that take any.
        log_sketches: save them, and give every file to W&B as a version of an artifact.
        seed: of the sketches' hashes and of random transforms of the probe.
        on_error: ``"warn"`` once of a measurement that fails, and log NaN; or ``"raise"``, to end the training, as a
            process that is lost during a measurement does in any case. A function's value that it says is undefined,
            like error consistency where both are always right, is warned about and NaN in either case.
        conditions: of the samples, ``("clean", "fog", "impulse_noise_3", Attack("pgd", epsilon=0.1), function)``: names
            and objects of :mod:`lightning_sim.conditions`, or functions of a sample's inputs (1, ...). Under each are
            taken the measures of outputs, with error consistency and accuracies where there are labels.
        layers_under_conditions: take those of layers, too.

    Raises:
        ValueError: for settings that cannot work, here or before the first training step, with what would work.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_sim import SimilarityMonitor
        >>> monitor = SimilarityMonitor("init", layers=["conv*"], num_samples=512)
        >>> trainer = Trainer(callbacks=[monitor], accelerator="cpu")  # trainer.fit(model, datamodule)
    """

    @formerly_positional("every_n_epochs")
    def __init__(
        self,
        reference: str | Path | nn.Module | Reference = "init",
        *,
        probe: Any = None,
        layers: str | Sequence[str] | Mapping[str, str] = "auto",
        measures: OneMeasure | Iterable[OneMeasure] = DEFAULT_MEASURES,
        representations: Sequence[str] = ("features",),
        num_samples: int = 1024,
        num_buckets: int = 1024,
        num_projections: int = 1024,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        before_training: bool = True,
        matrices: str | Sequence[str] = ("cka",),
        estimator: Literal["unbiased", "biased"] = "unbiased",
        forward: Callable[[nn.Module, Any], Any] | str = call_network,
        beta: float = 0.5,
        loss: Callable[[Any, Any], Tensor] | str | None = None,
        sketch: Literal["default", "tang2020"] = "default",
        pool: Literal["flatten", "mean", "first", "last", "tokens"] = "flatten",
        probe_choice: Literal["spaced", "first", "random"] = "spaced",
        cache_probe: bool = False,
        name: str = "similarity",
        directory: str | Path | None = None,
        save_sketches: bool | int = False,
        figures: bool | int = True,
        log_sketches: bool = False,
        seed: int = 0,
        on_error: Literal["warn", "raise"] = "warn",
        conditions: Any = "clean",
        layers_under_conditions: bool = False,
    ) -> None:
        given = locals()
        super().__init__()
        checked_directory(directory)
        asked = {field.name: given[field.name] for field in fields(Settings)}
        self.settings = Settings(**asked | {"reference": Reference(reference), "measures": as_measures(measures)})
        self.name = checked_name(name)
        self.save_sketches = check_saving(save_sketches, sketch, log_sketches)
        self.log_sketches = log_sketches
        self.schedule = Schedule(every_n_epochs, every_n_train_steps, before_training)
        self.every_n_epochs = self.schedule.epochs
        self.history = SimilarityHistory({})
        self._run: MonitoredRun | None = None
        self._wanted_directory = directory
        self._restored: dict[str, Any] | None = None
        self._parties: tuple[Trainer, LightningModule] | None = None
        self._reports = Reports(self.name, check_every(figures, "figures"))
        self._last_step = self._expected = 0

    @property
    def state_key(self) -> str:
        """Under which the state stands in checkpoints."""
        return self._generate_state_key(name=self.name)

    @property
    def directory(self) -> Path | None:
        """Where the record lies, for `read_history`; None before the first measurement and on ranks other than zero."""
        return None if self._run is None else self._run.directory

    def __getstate__(self) -> dict[str, Any]:
        """Settings and history: what belongs to a running training does not go into a copy or another process."""
        state = self.__dict__ | {"_run": None, "_parties": None}
        # Lightning gives every callback these two methods of the network.
        return {key: value for key, value in state.items() if key not in ("log", "log_dict")}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse two monitors of one name, which would log and write under the same names."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        require_own_name([monitor.name for monitor in callbacks if isinstance(monitor, SimilarityMonitor)])

    # Not an override in Lightning's eyes, which would refuse two monitors of one name before `setup` can.
    @wraps(Callback.state_dict, assigned=())
    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Primitives and tensors: the history, and the reference where it could not be made again."""
        return (self._restored or {}) if self._run is None else self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: strategies restore it at different times."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the probe and the reference, and refuse what cannot work before the first step."""
        again = self._parties == (trainer, pl_module)
        before: dict[str, Any] = self._restored or (self.state_dict() if again else {})  # type: ignore[call-arg]  # wrapped
        restored, self._restored = self._restored, None
        try:
            run = self._started(trainer, pl_module, before)
        except OtherComparisonError:
            if restored:
                raise
            before = {}
            run = self._started(trainer, pl_module, before)
        self._run, self.history, self._parties = run, run.history, (trainer, pl_module)
        if not before and trainer.global_step and self.settings.reference.kind == "init" and trainer.is_global_zero:
            self._reports.warn(
                f'the reference "init" is the network as it is now, at step {trainer.global_step}, because nothing of '
                "this comparison was kept from the steps before"
            )
        self._reports.start()
        # "previous" holds just what would be measured.
        first = self.schedule.before_training and not len(self.history) and self.settings.reference.kind != "previous"
        before_first = measurements_before(run.keys(), len(self.history) + first)
        for problem in schedule_problems(trainer, self.name, self.schedule, before_first):
            self._reports.warn(problem)
        self._last_step = trainer.global_step
        self._expected = len(self.history) + first + expects_measurement(trainer, self.schedule)
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            parent = directory_of(trainer) if self._wanted_directory is None else Path(self._wanted_directory)
            run.record_in(parent / self.name)
        if first:
            self._measure(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped, log_before_training)

    def _started(self, trainer: Trainer, network: LightningModule, before: Mapping[str, Any]) -> MonitoredRun:
        require_runnable(trainer, network, self.settings)
        weights = "current" if self.schedule.epochs is None else whose_weights(trainer, self)
        return MonitoredRun(
            self.settings,
            probe_runner(self.settings, trainer),
            network,
            before=before,
            beside=earlier_directories(trainer, self.name, self._wanted_directory),
            metadata={"run": run_name(trainer), "weights": weights},
            bar=partial(measuring_bar, trainer, self.name),
            warn=self._reports.warn,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure after the steps that are asked for, each once: batches may be accumulated to a step."""
        if self.schedule.is_due_after_step(trainer.global_step) and trainer.global_step != self._last_step:
            self._last_step = trainer.global_step
            self._measure(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped, log_at_step)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, so that checkpoints and early stopping of this validation see the values."""
        if not trainer.sanity_checking:
            self._after_epoch(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where there is no validation loop."""
        if not trainer.enable_validation:
            # Lightning logs what is logged here at the step of the last batch, which it has counted by now.
            self._after_epoch(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give loggers that want it the whole history."""
        self._reports.finish(self.history, trainer)
        if self._run is not None:
            self._run.close()
        if len(self.history) < self._expected:
            self._reports.warn(nothing_measured(trainer, self.schedule))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let whoever resumes this run continue its record."""
        if self._run:
            self._run.close()

    def _after_epoch(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        # Validation also runs outside of fit, where there is nothing to compare with.
        if trainer.state.fn == "fit" and self.schedule.is_due_after_epoch(trainer.current_epoch):
            self._measure(trainer, pl_module, step, log_at_end_of_epoch)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, step: int, log: LogScalars) -> None:
        """Measure, and log under the step that Lightning gives to scalars logged now."""
        if self._run is not None:
            self._run.measure(pl_module, trainer.current_epoch, step, save_every=self.save_sketches)
            saved = self._run.newest_sketches if self.log_sketches else None
            self._reports.log(self.history, trainer, pl_module, log, saved)
