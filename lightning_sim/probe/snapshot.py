"""What is kept of one network on the probe: a sketch of every layer, and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sim.probe.capture import capture_outputs
from lightning_sim.probe.chain import dense_chain
from lightning_sim.probe.forward import find_logits
from lightning_sim.sketch import Sketch

__all__ = ["Snapshot", "take_snapshot"]


@dataclass
class Snapshot:
    """One network on one probe.

    Attributes:
        sketches: layer -> its sketch, over the samples of all ranks.
        logits: (samples, classes) on the CPU in the order of the sample ids; None where the network gives no such
            tensor.
        chain: linear layers and their input-major weights, where the network is a chain of those, else None.
        problems: layer, or "" for the network's output -> what was wrong with it.
    """

    sketches: dict[str, Sketch] = field(default_factory=dict)
    logits: Tensor | None = None
    chain: dict[str, Tensor] | None = None
    problems: dict[str, str] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """The snapshot as primitives and tensors."""
        return {
            "sketches": {name: sketch.state_dict() for name, sketch in self.sketches.items()},
            "logits": self.logits,
            "chain": self.chain,
            "problems": dict(self.problems),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Snapshot:
        """The inverse of `state_dict`."""
        sketches = {name: Sketch.from_state_dict(value) for name, value in state["sketches"].items()}
        return cls(sketches, state["logits"], state["chain"], dict(state["problems"]))


def take_snapshot(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    layers: Sequence[str],
    *,
    forward: Callable[[nn.Module, Any], Any],
    make_sketch: Callable[[], Sketch],
    keep_logits: bool = True,
    weights: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Run a network once over the probe, sketching every layer inside its forward hook.

    Nothing of the activations is kept: memory is that of the sketches and one batch.

    Args:
        network: the network, in the mode it is to be measured in.
        batches: sample ids (b,) and batches on the network's device.
        layers: names of submodules.
        forward: ``forward(network, batch)`` gives the network's output.
        make_sketch: an empty sketch, always of the same settings.
        keep_logits: whether the outputs are kept.
        weights: parameters and buffers to run with instead of the network's own, which are left as they are.

    Returns:
        The snapshot. Layers that cannot be sketched stand in its `problems`, by name.
    """
    snapshot = Snapshot(chain=dense_chain(network, weights))
    ids = torch.zeros(0, dtype=torch.int64)
    logits: list[Tensor] = []
    ran: set[str] = set()

    def receive(name: str, output: Tensor | None) -> None:
        ran.add(name)
        if name in snapshot.problems:
            return
        problem = _problem(output, ids)
        if problem is None and output is not None:
            try:
                snapshot.sketches.setdefault(name, make_sketch()).update(output, ids)
            except ValueError as error:
                problem = str(error)
        if problem is not None:
            snapshot.problems[name] = problem
            snapshot.sketches.pop(name, None)

    runner = _Runner(network, forward)
    with torch.no_grad(), capture_outputs(network, layers, receive) as new_forward:
        any_batch = False
        for batch_ids, batch in batches:
            ids, any_batch = batch_ids, True
            new_forward()
            output = runner.run(batch, weights)
            if keep_logits and "" not in snapshot.problems:
                _keep_logits(output, ids, logits, snapshot)
    if any_batch:
        for name in layers:
            if name not in ran:
                snapshot.problems[name] = "did not run in the network's forward"
    snapshot.logits = torch.cat(logits) if logits and "" not in snapshot.problems else None
    return snapshot


class _Runner(nn.Module):
    """The network and the way to call it as one module, which `functional_call` can run with other weights."""

    def __init__(self, network: nn.Module, forward: Callable[[nn.Module, Any], Any]) -> None:
        super().__init__()
        self.network = network
        self._call = forward

    def forward(self, batch: Any) -> Any:
        return self._call(self.network, batch)

    def run(self, batch: Any, weights: Mapping[str, Tensor] | None) -> Any:
        if weights is None:
            return self(batch)
        renamed = {f"network.{name}": value for name, value in weights.items()}
        # Every name is given, those of tied weights too.
        return torch.func.functional_call(self, renamed, (batch,), tie_weights=False)


def _keep_logits(output: Any, ids: Tensor, logits: list[Tensor], snapshot: Snapshot) -> None:
    found = find_logits(output)
    problem = _problem(found, ids)
    if problem is None and found is not None and found.ndim != 2:
        problem = f"returned shape {tuple(found.shape)}, and output measures need (samples, classes)"
    if problem is not None or found is None:
        snapshot.problems[""] = problem or "returned no tensor"
        return
    logits.append(found.detach().float().cpu())


def _problem(output: Tensor | None, ids: Tensor) -> str | None:
    if output is None:
        return "returned no tensor"
    if not output.is_floating_point():
        return f"returned {output.dtype}, not floating-point"
    if output.ndim < 2 or output.shape[0] != len(ids):
        return f"returned shape {tuple(output.shape)}, whose first dimension is not the batch of {len(ids)} samples"
    return None
