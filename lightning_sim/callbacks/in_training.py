"""What a Trainer decides for a monitor: how networks are run, on which samples, and with whose weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.utils._pytree import tree_leaves

from lightning_sim.engine import prepared
from lightning_sim.probe import call_network, isolated_random_state
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.settings import Settings

__all__ = ["probe_runner", "require_own_name", "require_runnable", "whose_weights"]

_SHARDING = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
_AVERAGING: Any = getattr(callbacks, "WeightAveraging", ())  # lightning >= 2.6


def probe_runner(settings: Settings, trainer: Trainer) -> ProbeRunner:
    """Runs networks on the probe as the training does: its device, precision and ranks."""
    strategy, precision = trainer.strategy, trainer.precision_plugin

    def prepare(network: nn.Module, batch: Any) -> Any:
        if network is trainer.lightning_module:
            return strategy.batch_to_device(precision.convert_input(batch))
        # The training's precision is not the reference's, which may be a float32 teacher of a bfloat16 student.
        return prepared(network, strategy.batch_to_device(batch))

    return settings.make_runner(
        _probe_source(settings, trainer),
        device=strategy.root_device,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        prepare=prepare,
        context=lambda network: precision.forward_context() if network is trainer.lightning_module else nullcontext(),
    )


def require_runnable(trainer: Trainer, network: LightningModule, settings: Settings) -> None:
    """Refuse strategies that shard the weights, and networks that do not say how they are run."""
    # A plain forward sees sharded weights under these, and gathering them is theirs to do, rank by rank in step.
    if isinstance(trainer.strategy, _SHARDING):
        raise ValueError(
            f"SimilarityMonitor does not work with {type(trainer.strategy).__name__}, which shards the network's "
            'weights over the ranks; use strategy="ddp", or compare checkpoints afterwards'
        )
    if settings.forward is call_network and not is_overridden("forward", network):
        raise ValueError(
            f"{type(network).__name__} defines no forward(); define it, or say how to run the network with "
            "SimilarityMonitor(..., forward=lambda network, batch: network.model(batch[0]))"
        )


def require_own_name(names: Sequence[str]) -> None:
    """Refuse two monitors of one name among those of a Trainer."""
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two of the Trainer's monitors have the name {name!r}; give each its own, "
                f'SimilarityMonitor(..., name="{name}_2") for instance'
            )


def whose_weights(trainer: Trainer, monitor: Callback) -> str:
    """Averaging callbacks swap the average in during validation, and out before the callbacks that follow them."""
    ordered: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    position = next((index for index, callback in enumerate(ordered) if callback is monitor), len(ordered))
    swapped = any(isinstance(callback, _AVERAGING) for callback in ordered[position:])
    return "average" if swapped and trainer.enable_validation else "current"


def _probe_source(settings: Settings, trainer: Trainer) -> Any:
    if settings.probe is not None:
        return settings.probe
    source = trainer.val_dataloaders
    if source is None and trainer.enable_validation:
        # Lightning asks for the loaders when the first validation is due; asking it to now could move random state.
        with isolated_random_state(settings.seed):
            source = trainer.fit_loop.epoch_loop.val_loop._data_source.dataloader()
    found = [loader for loader in tree_leaves(source) if loader is not None]  # a list of loaders may be empty
    return found[0] if found else tree_leaves(trainer.train_dataloader)[0]
