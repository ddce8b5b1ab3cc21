"""The callback: when to measure, what reaches the loggers and the record, and what a checkpoint carries."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_sim._arguments import check_integer
from lightning_sim._checks import check_choice
from lightning_sim.callbacks.agreed import log_agreed
from lightning_sim.callbacks.in_training import probe_runner, require_runnable, whose_weights
from lightning_sim.callbacks.progress import measuring_bar
from lightning_sim.callbacks.reporting import by_problem, figures_of
from lightning_sim.callbacks.run_directory import RunDirectory, checked_name, directory_of, run_name
from lightning_sim.callbacks.saving import save_snapshot
from lightning_sim.callbacks.schedule import measured_every, schedule_problem, unlogged_values
from lightning_sim.loggers import finish_loggers, log_figures, setup_loggers
from lightning_sim.measures import DEFAULT_MEASURES, as_measures
from lightning_sim.probe import Snapshot, call_network, isolated_random_state
from lightning_sim.record import Key, Measurement, SimilarityHistory
from lightning_sim.record.correlations import LEAST_POINTS, correlation_key, live_correlations
from lightning_sim.reference import Reference
from lightning_sim.session import OtherComparisonError, Session
from lightning_sim.settings import Settings, check_saving

__all__ = ["SimilarityMonitor"]


class SimilarityMonitor(Callback):
    """Measures, while a network trains, how similar it is to a reference: layer by layer and in its outputs.

    After every validation (after every training epoch where there is no validation loop) the network is run once over
    a fixed probe, in evaluation mode; every chosen layer is sketched on the way (:class:`lightning_sim.Sketch`), and
    compared with the reference's sketches, which are made once before the first step. Training is not affected: same
    weights bit for bit, same random state, no hook left behind.

    Scalars are logged as ``similarity/<measure>/<representation>/<layer>`` and ``similarity/<measure>``, through
    Lightning, so that EarlyStopping and ModelCheckpoint can monitor them; ``similarity/seconds`` is the time it took.
    From the fourth measurement on, so are correlations of each layer's similarity with the divergence of the outputs
    as ``similarity/cka_jsd_pearson/features/<layer>``. Their scatter plots and the layer x layer matrices go to
    TensorBoard, W&B and other loggers that take figures. All numbers are in `history`, in the record
    ``similarity/record.jsonl`` in the run's directory, and in checkpoints.

    The run's directory is the one that ModelCheckpoint finds: that of the first logger, ``default_root_dir`` without
    any. No run writes into another's: where ``similarity`` is taken the record lies in ``similarity-1``, and so on;
    `monitor.directory` says where, and ``read_history(monitor.directory)`` reads it. A resumed run continues its own
    record. What was measured after the checkpoint is measured again; those first values are kept beside the record, as
    ``record-1.jsonl``. If the record is not there, or another process is writing it, as when a checkpoint is resumed
    twice, the resumed run gets a directory of its own, with all of its history in the record.

    A further `fit` of the same Trainer and the same network continues the history, and ``"init"`` remains the start of
    the first fit. With another Trainer or network, or when another comparison was asked for (of another probe, say),
    history, ``"init"`` and record begin anew. So they do for a monitor that was not there when the checkpoint was
    written from which it is resumed: ``"init"`` is then what was resumed, and a warning says so.

    Args:
        reference: ``"init"``, ``"previous"``, the path of a checkpoint, an ``nn.Module`` or a
            :class:`lightning_sim.Reference`.
        probe: a DataLoader or Dataset; None takes the validation set (the training set where there is none). The first
            `num_samples` samples in dataset order are used.
        layers: names and globs (or one), ``"auto"`` (convolution, linear, embedding, recurrent and attention layers,
            or blocks of them in deep networks), or ``{"mine": "theirs"}`` when the networks name their layers
            differently.
        measures: of ``"cka"``, ``"nbs"`` (layers), ``"wcka"`` (weights of dense chains), ``"agreement"``, ``"jsd"``,
            ``"rank_correlation"`` (outputs). All of these are the default, and of all of them, also with others named
            beside them, those that the networks allow are measured. Of some of them, one that the networks do not allow
            is refused: ``"wcka"`` where no chosen layers are linear ones that run one after the other, with nothing
            between them but activations, dropout and flattening; the last three where an output is neither a tensor
            (samples, classes), nor begins with one, nor has such ``logits``. By name also how far this network must
            move for this dataset:
            ``"mean_embedding"`` (layers, of the network alone): the norm of the kernel mean embedding of every
            representation, and as ``mean_embedding_diagonal`` and ``mean_embedding_frobenius`` its normalised forms
            (:func:`lightning_sim.sketch.mean_embedding_norm`). It is logged on the way, without another pass.
            ``"fisher_rao_norm"`` (of the network alone) and ``"fisher_rao_distance"`` to the reference: lengths of
            parameters in the metric of the predictions, for one and two more passes over the probe with forward
            derivatives, each three times as long as one without.
            ``"task2vec"``: similarity of the diagonals of the Fisher information, of network and reference. It runs
            every sample by itself, and one backward pass for each of its classes: 1.5 s for 1024 digits and the demo's
            network on one core, where a plain pass takes 0.02 s, and a thousand times the work of an epoch on the
            probe for a thousand classes; choose `num_samples` by it.
            The last two need a reference with the same parameters. ``"fisher_rao_distance"`` keeps them on the CPU and,
            unless they come from a file, in checkpoints, which grow by the size of the network.
            ``"stitching"`` (layers): how well a layer takes the other's place, on the other half of the probe from that
            on which a linear map between the two is found (:class:`lightning_sim.measures.Stitching`). For 8 layers it
            takes as long as 8 passes. Where the reference is an earlier state of the network it is kept likewise.
        representations: what of a layer is compared: ``"features"``; ``"gradients"`` of the loss with respect to
            them; both, ``"features*gradients"``, by the product of the two kernels, ``"features+gradients"`` by
            their sum, ``"elementwise"`` by the entrywise product of the vectors, and ``"transport_map"`` by the map
            that carries the one to the other (:func:`lightning_sim.sketch.transport_map_kernel`). Gradients take a
            backward pass over the probe, and as much memory as one batch does in training.
        num_samples: size of the probe.
        num_buckets: M of the sketches; no collisions, hence exact in the samples, while num_samples <= num_buckets.
        num_projections: k of the sketches; layers up to this width are exact, wider ones folded. A probe that leaves
            half of the buckets empty gets half of them and twice the projections, and so on: the same memory, exact for
            wider layers (:func:`lightning_sim.sketch.sizes_for`).
        every_n_epochs: measure in every n-th epoch. Where there is a validation loop, only epochs with a validation are
            measured: with ``Trainer(check_val_every_n_epoch=2)`` and ``every_n_epochs=3`` every sixth. Values that
            EarlyStopping, ModelCheckpoint or ReduceLROnPlateau look at must be logged whenever these do.
        estimator: of CKA, ``"unbiased"`` or ``"biased"``.
        forward: ``forward(network, batch)`` gives the network's output; the default calls the network on the first part
            of a tuple, or with the fitting keys of a mapping.
        beta: gradients are those of the negative log-likelihood, expected under q proportional to p^beta with the
            predicted probabilities p; no labels are needed.
        loss: ``loss(output, batch)`` gives per-sample losses (samples,) whose gradients are taken instead, for
            networks that give no logits.
        sketch: ``"tang2020"`` sketches as published, with that algorithm's biases and one bucket per sample, to
            reproduce the paper (:class:`lightning_sim.sketch.Tang2020Sketch`).
        pool: what of a layer's output (batch, positions, width) counts: ``"flatten"`` all positions as one sample,
            ``"mean"``, ``"first"`` or ``"last"`` of them, or ``"tokens"``, every position a sample. Positions that an
            ``attention_mask`` in the batch marks as padding never count. Outputs of a network that are sequences of
            logits are compared at the last position.
        name: first part of the logged names and directory of the record; give each of several monitors its own.
        directory: the run's directory, in which ``<name>/record.jsonl`` is made; None takes that of the first logger.
        save_sketches: write the sketches and outputs of every measurement (of every n-th) to
            ``sketches/epoch=…-step=….safetensors`` beside the record, for ``lightning-sim compare`` and as
            a later reference. 4.2 MB a layer at the default sizes.
        seed: of the sketches' hashes and of random transforms of the probe.
        on_error: ``"warn"``: a measurement that fails is warned about once and logged as NaN; ``"raise"``: it ends the
            training. So does, in any case, a process that is lost during a measurement.

    Raises:
        ValueError: for settings that cannot work, here or before the first training step, with what would work.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_sim import SimilarityMonitor
        >>> monitor = SimilarityMonitor(reference="init", layers=["conv*"], num_samples=512)
        >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> # trainer.fit(model, datamodule); monitor.history.to_pandas()
    """

    def __init__(
        self,
        reference: str | Path | nn.Module | Reference = "init",
        probe: Any = None,
        layers: str | Sequence[str] | Mapping[str, str] = "auto",
        measures: Sequence[str] = DEFAULT_MEASURES,
        representations: Sequence[str] = ("features",),
        num_samples: int = 1024,
        num_buckets: int = 1024,
        num_projections: int = 1024,
        every_n_epochs: int = 1,
        *,
        estimator: Literal["unbiased", "biased"] = "unbiased",
        forward: Callable[[nn.Module, Any], Any] = call_network,
        beta: float = 0.5,
        loss: Callable[[Any, Any], Tensor] | None = None,
        sketch: Literal["default", "tang2020"] = "default",
        pool: Literal["flatten", "mean", "first", "last", "tokens"] = "flatten",
        name: str = "similarity",
        directory: str | Path | None = None,
        save_sketches: bool | int = False,
        seed: int = 0,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        super().__init__()
        if directory is not None and (not isinstance(directory, (str, Path)) or not str(directory)):
            raise ValueError(f"`directory` must be a path or None, got {directory!r}")
        check_choice(on_error, "on_error", ("warn", "raise"))
        self.settings = Settings(
            reference=Reference(reference),
            probe=probe,
            layers=layers,
            measures=as_measures(measures),
            representations=representations,
            num_samples=num_samples,
            num_buckets=num_buckets,
            num_projections=num_projections,
            estimator=estimator,
            forward=forward,
            seed=seed,
            beta=beta,
            loss=loss,
            sketch=sketch,
            pool=pool,
        )
        self.name = checked_name(name)
        self.save_sketches = check_saving(save_sketches, sketch)
        self.every_n_epochs = check_integer(every_n_epochs, "every_n_epochs", least=1)
        self.on_error = on_error
        self.history = SimilarityHistory({})
        self._session: Session | None = None
        self._wanted_directory = directory
        self._directory: RunDirectory | None = None
        self._restored: dict[str, Any] | None = None
        self._parties: tuple[Trainer, LightningModule] | None = None
        self._set_up: set[Key] = set()
        self._warned: set[str] = set()

    @property
    def state_key(self) -> str:
        """Under which the state stands in checkpoints."""
        return self._generate_state_key(name=self.name)

    @property
    def directory(self) -> Path | None:
        """Where the record lies, for `read_history`; None before the first measurement and on ranks other than zero."""
        return None if self._directory is None else self._directory.path

    def __getstate__(self) -> dict[str, Any]:
        """Settings and history: what belongs to a running training does not go into a copy or another process."""
        state = self.__dict__ | {"_session": None, "_directory": None, "_parties": None}
        # Lightning gives every callback these two methods of the network.
        return {key: value for key, value in state.items() if key not in ("log", "log_dict")}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse two monitors of one name, which would log and write under the same names."""
        monitors = [callback for callback in trainer.callbacks if isinstance(callback, SimilarityMonitor)]  # type: ignore[attr-defined]
        if sum(monitor.name == self.name for monitor in monitors) > 1:
            raise ValueError(
                f"two of the Trainer's monitors have the name {self.name!r}; give each its own, "
                f'SimilarityMonitor(..., name="{self.name}_2") for instance'
            )

    # Not an override in Lightning's eyes, which would refuse two monitors of one name before `setup` can, and without
    # saying what to do.
    @wraps(Callback.state_dict, assigned=())
    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """Primitives and tensors: the history, and the reference where it could not be made again."""
        if self._session is None:
            return self._restored or {}
        return {
            "history": self.history.to_state(),
            "session": self._session.state_dict(),
            "run_id": None if self._directory is None else self._directory.run_id,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until training starts: strategies restore it at different times."""
        self._restored = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the probe and the reference, and refuse what cannot work before the first step."""
        before = self._restored or self._of_the_fit_before(trainer, pl_module)
        self._directory = None
        try:
            session = self._started(trainer, pl_module, before)
        except OtherComparisonError:
            if self._restored:
                raise
            before = {}
            session = self._started(trainer, pl_module, before)
        self.history = SimilarityHistory.from_state(before["history"]) if before else SimilarityHistory({})
        own = {"run": run_name(trainer), "weights": whose_weights(trainer, self)}
        self.history.metadata.update({**session.describe(), **own})
        self._session, self._parties = session, (trainer, pl_module)
        if not before and trainer.global_step and self.settings.reference.kind == "init" and trainer.is_global_zero:
            self._warn(
                f'the reference "init" is the network as it is now, at step {trainer.global_step}, because nothing of '
                "this comparison was kept from the steps before"
            )
        self._restored, self._set_up = None, set()
        self._check_schedule(trainer, session.keys())
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            parent = directory_of(trainer) if self._wanted_directory is None else Path(self._wanted_directory)
            self._directory = RunDirectory(parent / self.name, self.history, before.get("run_id"), self._warn)

    def _of_the_fit_before(self, trainer: Trainer, network: LightningModule) -> dict[str, Any]:
        """What there is to continue where the same Trainer fitted the same network before."""
        if self._session is None or self._parties != (trainer, network):
            return {}
        return self.state_dict()  # type: ignore[call-arg]  # wrapped above

    def _started(self, trainer: Trainer, network: LightningModule, before: Mapping[str, Any]) -> Session:
        require_runnable(trainer, network, self.settings)
        with isolated_random_state(self.settings.seed):
            session = Session(self.settings, probe_runner(self.settings, trainer))
            with measuring_bar(trainer, self.name, session.num_batches()) as advance:
                session.start(network, advance, before.get("session"))
        return session

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure, so that checkpoints and early stopping of this validation see the values."""
        if not trainer.sanity_checking:
            self._measure_if_due(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure where there is no validation loop."""
        if not trainer.enable_validation:
            # Lightning logs what is logged here at the step of the last batch, which it has counted by now.
            self._measure_if_due(trainer, pl_module, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give loggers that want it the whole history."""
        finish_loggers(trainer.loggers, self.history, self.name)
        self._close()
        announced = any("nothing will be measured" in message for message in self._warned)
        if not self.history.measurements and not announced and not getattr(trainer, "fast_dev_run", False):
            period = measured_every(trainer, self.every_n_epochs)
            self._warn(
                f"nothing was measured: the training ended before an epoch that is a multiple of {period} was complete "
                f"(every_n_epochs={self.every_n_epochs})"
            )

    def _check_schedule(self, trainer: Trainer, keys: Sequence[Key]) -> None:
        """Warn of what will not be measured, and refuse what would end the training for that."""
        late = max(0, LEAST_POINTS - 1 - len(self.history))
        correlations = [found for key in keys if (found := correlation_key(key, keys))]
        before = {**{key.name: 0 for key in keys}, "seconds": 0, **{key.name: late for key in correlations}}
        for warning in unlogged_values(trainer, self.name, self.every_n_epochs, before):
            self._warn(warning)
        surprise = schedule_problem(trainer, self.every_n_epochs)
        if surprise is not None and not getattr(trainer, "fast_dev_run", False):
            self._warn(surprise)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let whoever resumes this run continue its record."""
        self._close()

    def _close(self) -> None:
        if self._directory is not None:
            self._directory.close()

    def _measure_if_due(self, trainer: Trainer, pl_module: LightningModule, step: int) -> None:
        """Measure, and log under the step that Lightning gives to scalars logged now."""
        # Validation also runs outside of fit, where there is nothing to compare with.
        if self._session is None or trainer.state.fn != "fit":
            return
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        measurement = self._measured(trainer, pl_module, self._session, step)
        self.history.append(measurement)
        correlations = live_correlations(self.history.measurements)
        keys = [*measurement.by_key, *correlations]
        if not self._set_up.issuperset(keys):
            self._set_up.update(keys)
            setup_loggers(trainer.loggers, keys, self.history, self.name)
        logged = measurement.values | {key.name: value for key, value in correlations.items()}
        log_agreed(pl_module, {f"{self.name}/{name}": value for name, value in logged.items()})
        if self._directory is not None:
            self._directory.append(measurement)
        log_figures(trainer.loggers, figures_of(measurement, correlations, self.history, self.name), step)

    def _measured(self, trainer: Trainer, network: LightningModule, session: Session, step: int) -> Measurement:
        with (
            isolated_random_state(self.settings.seed),
            measuring_bar(trainer, self.name, session.num_batches()) as advance,
        ):
            measurement, problems = session.measure(
                network,
                trainer.current_epoch,
                step,
                advance=advance,
                save=self._saver(trainer, network, step),
                strict=self.on_error == "raise",
            )
        for problem, about in by_problem(problems).items():
            if self.on_error == "raise":
                raise RuntimeError(f"SimilarityMonitor could not measure: {about} {problem}")
            self._warn(f"{about} {problem}; its similarity is logged as NaN")
        return measurement

    def _saver(
        self, trainer: Trainer, network: LightningModule, step: int
    ) -> Callable[[Snapshot, str, str], None] | None:
        """What writes the sketches of this measurement, on every rank; None where they are not wanted."""
        if not self.save_sketches or (len(self.history) + 1) % self.save_sketches:
            return None
        moment = trainer.current_epoch, step

        def save(snapshot: Snapshot, probe: str, gradients: str) -> None:
            if self._directory is None:
                return
            try:
                folder = self._directory.folder("sketches")
                name = type(network).__name__
                save_snapshot(snapshot, folder, *moment, network=name, probe=probe, gradients=gradients)
            except (OSError, ValueError) as error:
                self._warn(f"the sketches could not be saved: {error}")

        return save

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(f"SimilarityMonitor: {message}", UserWarning, stacklevel=3)
