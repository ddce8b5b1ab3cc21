"""What is kept of one network on the probe: a sketch of every layer, and its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_sim._guards import substituted_parameters, whole
from lightning_sim.probe.capture import capture_outputs
from lightning_sim.probe.forward import find_logits, without_logits
from lightning_sim.probe.gradients import Objective, differentiable, expected_loss, gradients_at
from lightning_sim.probe.pooling import attention_mask, pool_sequence
from lightning_sim.probe.representations import REPRESENTATIONS, Summary, sketched
from lightning_sim.sketch import HashedSamples, Sketch, Tang2020Sketch, hash_samples
from lightning_sim.sketch.leading_directions import LeadingDirections

__all__ = ["Directions", "Snapshot", "take_snapshot"]

Directions = Mapping[tuple[str, str], LeadingDirections] | Literal["first"]  # by representation and layer

_AS_IT_IS = ("logits", "problems", "gradient_problems", "output_problem", "kept")  # in a state, beside the sketches


@dataclass
class Snapshot:
    """One network on one probe.

    Attributes:
        sketches: representation -> layer -> its sketch, over the samples of all ranks.
        logits: (samples, classes) on the CPU in the order of the sample ids; None where the network gives no such
            tensor.
        problems: layer -> why it could not be sketched.
        gradient_problems: layer -> why its gradients could not.
        output_problem: what was wrong with the network's output.
        kept: measure -> what it keeps of the network beside all this.
        order: the layers as they ended.
        constant: layers that gave the same for every sample, before padding is taken out; if they were looked for.
    """

    sketches: dict[str, dict[str, Sketch]] = field(default_factory=dict)
    logits: Tensor | None = None
    problems: dict[str, str] = field(default_factory=dict)
    gradient_problems: dict[str, str] = field(default_factory=dict)
    output_problem: str | None = None
    kept: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    constant: set[str] = field(default_factory=set)
    _combined: dict[tuple[str, str], Summary] = field(default_factory=dict, init=False, repr=False, compare=False)

    def state_dict(self) -> dict[str, Any]:
        """The snapshot as primitives and tensors."""
        return {
            "sketches": {
                representation: {layer: sketch.state_dict() for layer, sketch in sketches.items()}
                for representation, sketches in self.sketches.items()
            },
            **{name: getattr(self, name) for name in _AS_IT_IS},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Snapshot:
        """The inverse of `state_dict`."""
        sketches = {
            representation: {layer: _restored(value) for layer, value in states.items()}
            for representation, states in state["sketches"].items()
        }
        return cls(sketches, **{name: state[name] for name in _AS_IT_IS})

    def of(self, representation: str = "features") -> Mapping[str, Sketch]:
        """Layer -> sketch of one representation; empty where there is none."""
        return self.sketches.get(representation, {})

    def all_sketches(self) -> list[Sketch]:
        """Of all representations and layers."""
        return [sketch for of_layers in self.sketches.values() for sketch in of_layers.values()]

    def problem_of(self, layer: str, representation: str = "features") -> str | None:
        """Why a layer cannot be compared in this representation, in words that follow its name; None if it can."""
        found = self.not_sketched(layer, representation)
        for part in () if found else sketched([representation]):
            sketch = self.of(part).get(layer)
            found = found or ("holds no samples" if sketch is None else sketch.problem())
        return found

    def summary(self, layer: str, representation: str = "features") -> Summary:
        """What is compared of a layer of which `problem_of` says nothing."""
        if (layer, representation) not in self._combined:  # once, with what it has computed, for all measures
            parts = [self.of(part)[layer] for part in sketched([representation])]
            self._combined[layer, representation] = REPRESENTATIONS[representation].combine(*parts)
        return self._combined[layer, representation]

    def not_sketched(self, layer: str, representation: str) -> str | None:
        """Why there is no sketch of a layer, or None."""
        if layer in self.problems or not REPRESENTATIONS[representation].needs_gradients:
            return self.problems.get(layer)
        reason = self.gradient_problems.get(layer)
        return None if reason is None else f"has gradients that {reason}"


def _restored(state: dict[str, Any]) -> Sketch:
    return (Tang2020Sketch if "buckets_per_sample" in state else Sketch).from_state_dict(state)


def take_snapshot(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    layers: Sequence[str],
    *,
    forward: Callable[[nn.Module, Any], Any],
    make_sketch: Callable[[], Sketch],
    keep_logits: bool = True,
    weights: Mapping[str, Tensor] | None = None,
    representations: Sequence[str] = ("features",),
    objective: Objective | None = None,
    pool: str = "flatten",
    recycled: Snapshot | None = None,
    find_constant: bool = False,
    directions: Directions = "first",
) -> Snapshot:
    """Run a network once over the probe, sketching every layer inside its forward hook.

    Nothing of the activations is kept: memory is that of the sketches and one batch. Gradients take one backward pass
    per batch, whatever the number of layers, and leave nothing in ``.grad``.

    Args:
        network: the network, in the mode it is to be measured in.
        batches: sample ids (b,) and batches on the network's device.
        layers: names of submodules.
        forward: ``forward(network, batch)`` gives the network's output.
        make_sketch: an empty sketch, always of the same settings.
        keep_logits: whether the outputs are kept.
        weights: parameters and buffers to run with instead of the network's own, which are left as they are.
        representations: what of a layer is sketched.
        objective: ``objective(output, batch)``, the scalar whose gradients are taken; the expected loss if None.
        pool: what of a sequence counts as a sample, see :func:`lightning_sim.probe.pooling.pool_sequence`.
        recycled: an older snapshot, not needed any more, whose memory is used again.
        find_constant: note the layers that give the same for every sample, which waits for the device.
        directions: that sketches follow if they are folded: those of their first samples, or these.

    Returns:
        The snapshot. Layers that cannot be sketched stand in its `problems`, by name.
    """
    snapshot = Snapshot(sketches={representation: {} for representation in representations})
    ids = torch.zeros(0, dtype=torch.int64)
    mask: Tensor | None = None
    logits: list[Tensor] = []
    hashes: HashedSamples | None = None
    captured: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    with_gradients = [name for name in representations if REPRESENTATIONS[name].needs_gradients]
    objective = objective or expected_loss()

    def hashed(sketch: Sketch, sample_ids: Tensor, device: torch.device) -> Tensor | HashedSamples:
        """The batch's samples are hashed once for all layers."""
        nonlocal hashes
        if sample_ids is not ids:
            return sample_ids
        if hashes is None or hashes.ids is not ids:
            hashes = hash_samples(ids, sketch.num_buckets, sketch.seed)
        if hashes.buckets.device != device:
            hashes = hashes.to(device)
        return hashes

    def sketch(kinds: Sequence[str], name: str, features: Tensor, gradients: Tensor) -> None:
        kinds = [kind for kind in kinds if snapshot.not_sketched(name, kind) is None]
        if not kinds or not len(ids):
            return
        try:
            pooled, feature_ids = pool_sequence(features, ids, mask, pool)
            gradients = pooled if gradients is features else pool_sequence(gradients, ids, mask, pool)[0]
            for kind in kinds:
                found = snapshot.of(kind).get(name)
                if found is None:
                    older = None if recycled is None else recycled.of(kind).get(name)
                    found = make_sketch() if older is None else older.clear()
                    found.directions = directions if directions == "first" else directions.get((kind, name))
                    snapshot.sketches[kind][name] = found
                if (add := REPRESENTATIONS[kind].update) is not None:
                    add(found, pooled, gradients, hashed(found, feature_ids, pooled.device))
        except ValueError as error:
            snapshot.problems[name] = str(error)

    def receive(name: str, output: Tensor | None) -> None:
        if not len(ids):  # run for the other ranks, which may be in a collective
            if with_gradients and output is not None:
                captured[name] = output
            return
        if name not in snapshot.order:
            snapshot.order.append(name)
        problem = _problem(output, ids)
        if problem is not None or output is None:
            snapshot.problems.setdefault(name, problem or "returned no tensor")
            return
        if find_constant and name not in first:
            first[name] = output[:1].detach().clone()
            snapshot.constant.add(name)
        if name in snapshot.constant and not _repeats(output, first[name]):
            snapshot.constant.discard(name)
        if "features" in representations:
            sketch(["features"], name, output, output)
        if with_gradients:
            captured[name] = output

    def receive_gradients(output: Any, batch: Any) -> None:
        for name, gradients in gradients_at(objective(output, batch), captured).items():
            if gradients is None:
                reason = "cannot be computed: the loss does not depend on the layer's output"
                snapshot.gradient_problems.setdefault(name, reason)
                continue
            sketch(with_gradients, name, captured[name], gradients)
        captured.clear()

    with (
        substituted_parameters(network, weights or {}),
        differentiable(network) if with_gradients else torch.no_grad(),
        capture_outputs(network, layers, receive, differentiable=bool(with_gradients)) as capture,
    ):
        for batch_ids, batch in batches:
            ids, mask = batch_ids, attention_mask(batch)
            capture.new_forward()
            output = forward(network, batch)
            if keep_logits and len(ids) and snapshot.output_problem is None:
                _keep_logits(output, ids, mask, logits, snapshot)
            for name in capture.spoiled():
                reason = "cannot be computed: its output was changed in place in some batches only"
                snapshot.gradient_problems.setdefault(name, reason)
            if with_gradients:
                receive_gradients(output, batch)
            del output  # with its graph, before the next one is made
    if len(ids):
        for name in layers:
            if name not in snapshot.order:
                snapshot.problems[name] = "did not run in the network's forward"
    for representation, sketches in snapshot.sketches.items():
        for name in [name for name in sketches if snapshot.not_sketched(name, representation) is not None]:
            del sketches[name]
    if torch.cuda.is_initialized() and any(part.is_pinned() for part in logits):  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    snapshot.logits = torch.cat(logits) if logits and snapshot.output_problem is None else None
    return snapshot


def _keep_logits(output: Any, ids: Tensor, mask: Tensor | None, logits: list[Tensor], snapshot: Snapshot) -> None:
    found = find_logits(output)
    found = None if found is None else whole(found)
    problem = without_logits(output) if found is None else _problem(found, ids)
    if problem is None and found is not None and found.ndim == 3:
        # Of a language model, what follows each sample: all positions of a large vocabulary could not be kept.
        found, _ = pool_sequence(found.detach(), ids, mask, "last")
    if problem is None and found is not None and found.ndim != 2:
        problem = f"returned shape {tuple(found.shape)}, and output measures need (samples, classes)"
    if problem is not None or found is None:
        snapshot.output_problem = problem or without_logits(output)
        return
    # From CUDA devices into pinned memory, so that the next batch does not wait for it.
    logits.append(found.detach().float().to("cpu", non_blocking=found.is_cuda))


def _repeats(output: Tensor, first: Tensor) -> bool:
    """Whether every sample is like the first one; of sequences of another length, like the first of the batch."""
    if output.shape[1:] != first.shape[1:]:
        first = output[:1]
        if len(output) == 1:
            return False
    return bool((output == first).all())


def _problem(output: Tensor | None, ids: Tensor) -> str | None:
    if output is None:
        return "returned no tensor"
    if not output.is_floating_point():
        return f"returned {output.dtype}, not floating-point"
    if output.ndim < 2 or output.shape[0] != len(ids):
        return f"returned shape {tuple(output.shape)}, whose first dimension is not the batch of {len(ids)} samples"
    return None
