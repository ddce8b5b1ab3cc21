"""Similarity of two networks' weights, without data."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from lightning_sim._guards import isolated_random_state
from lightning_sim.functional import OpenGateKernels, open_gate_alignment
from lightning_sim.functional.weights import ChainKernels, chain_alignment, chain_kernels, check_chain
from lightning_sim.measures.measure import Measure, Pairs, Side, Values
from lightning_sim.probe.chain import chain_weights
from lightning_sim.probe.layers import named_layers
from lightning_sim.probe.untrained import untrained_weights
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import SimilarityMatrix
from lightning_sim.record.scale import Scale

__all__ = ["WeightAlignment"]

_UNTRAINED = 8  # networks of which is known what untrained ones have in common
_ERROR, _SPREAD, _PARTIAL = (f"wcka_{name}" for name in ("standard_error", "untrained_sd", "partial"))


class WeightAlignment(Measure):
    """wCKA of two networks, :func:`lightning_sim.functional.weight_centered_kernel_alignment`.

    Of chains of dense layers from their products, and of others, where it is named, with every gate open: one forward
    pass of 67 rows for every measurement. With it come ``wcka_standard_error`` by the input coordinates;
    ``wcka_untrained_sd``, the standard deviation over pairs of 8 untrained networks; and ``wcka_partial`` for layers
    where these have a kernel in common, which is taken out. Chains stay as they are in the paper.
    """

    name = "wcka"
    scale = Scale(low=0, high=1, same=1)
    needs = frozenset({"weights"})

    def __init__(self) -> None:
        #: layers in the order in which they run, of the network and of the reference: linear ones of a chain
        self._layers: Sequence[str] = ()
        self._their_layers: Sequence[str] = ()
        self._untrained: _Untrained | None = None
        self._of_chains = True

    def scales(self) -> Mapping[str, Scale]:
        """Of its values, and with open gates of what comes beside them."""
        beside = {_ERROR: Scale(low=0), _SPREAD: Scale(low=0), _PARTIAL: self.scale}
        return {self.name: self.scale} | ({} if self._of_chains else beside)

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """Both must be chains of dense layers behind inputs of one width, or linear with open gates where it is named.

        Of the layers, some must be chosen.
        """
        self._untrained = None  # of another network
        reason = self._find_chains(mine, theirs)
        self._of_chains = reason is None
        if reason is not None and self.name in pairs.optional:
            return f"{reason}; other networks are compared, by passes of their own, where measures=[...] names it"
        if reason is not None:
            self._try_open_gates(mine, theirs, pairs)
        if not self._pairs(pairs):
            what = "linear layers" if self._of_chains else "layers with open gates"
            return f"of the {what}, {', '.join(self._layers)}, none is chosen in both networks"
        return None

    def keys(self, pairs: Pairs) -> list[Key]:
        """Of the chosen layers those of the chain, or those that have a row for every input."""
        chosen = self._pairs(pairs)
        found = [Key(self.name, "weights", layer) for layer in chosen]
        if not self._of_chains:
            found += [Key(_ERROR, "weights", layer) for layer in chosen]
        if self._untrained is not None:
            found += [Key(_SPREAD, "weights", layer) for layer in chosen]
            found += [Key(_PARTIAL, "weights", layer) for layer in chosen if layer in self._untrained.shared]
        return found

    def keep(self, side: Side) -> Mapping[str, Tensor]:
        """The kernels, and the basis of those of a chain where there is one."""
        if not self._of_chains:
            return {"kernels": self._open_gates(side).kernels.cpu()}
        kept = chain_kernels(self._weights(side))._asdict()
        return {name: value for name, value in kept.items() if value is not None}

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """Pairs of layers, and the matrix."""
        found, chosen, kept = Values(), self._pairs(pairs), theirs.kept(self)
        errors: Tensor | None = None
        ours = None if self._of_chains else mine.kept(self)["kernels"]
        if ours is None:
            whole = chain_alignment(self._weights(mine), ChainKernels(kept.get("basis"), kept["kernels"]))
        else:
            sides = (OpenGateKernels((), kernels, 0, 0) for kernels in (ours, kept["kernels"]))
            whole, errors = open_gate_alignment(*sides)
        rows, columns = list(chosen), list(dict.fromkeys(chosen.values()))
        places = [self._layers.index(layer) for layer in rows], [self._their_layers.index(layer) for layer in columns]
        values: NDArray[np.float32] = whole.float().numpy()[np.ix_(*places)]
        for row, (layer, counterpart) in enumerate(chosen.items()):
            value = float(values[row, columns.index(counterpart)])
            found.add(Key(self.name, "weights", layer), value, "has weights without variance over the inputs")
            if ours is not None and errors is not None:
                place, other = places[0][row], self._their_layers.index(counterpart)
                found.add(Key(_ERROR, "weights", layer), float(errors[place, other]))
                if self._untrained is not None:
                    found.add(Key(_SPREAD, "weights", layer), float(self._untrained.spread[place]))
                    if layer in self._untrained.shared:
                        partial = self._untrained.partial(place, ours[place], kept["kernels"][other])
                        found.add(Key(_PARTIAL, "weights", layer), partial, "is what untrained networks have")
        found.matrices.append(SimilarityMatrix(self.name, "weights", tuple(rows), tuple(columns), values))
        return found

    def _find_chains(self, mine: Side, theirs: Side) -> str | None:
        """Why there are no chains that can be compared, or None."""
        found: dict[str, list[str]] = {}
        for which, side in {"the network": mine, "the reference": theirs}.items():
            try:
                found[which] = side.runner.find_chain(side.live)
            except ValueError as error:
                return f"only a chain of linear layers has one, and in {which} {error}"
        self._layers, self._their_layers = found.values()
        widths = [
            named_layers(side.live)[chain[0]].in_features
            for side, chain in ((mine, self._layers), (theirs, self._their_layers))
        ]
        if widths[0] != widths[1]:
            return f"the first layer takes {widths[0]} inputs, and that of the reference {widths[1]}"
        return None

    def _try_open_gates(self, mine: Side, theirs: Side, pairs: Pairs) -> None:
        """Find out which layers there are and what they cost, and what untrained networks have in common."""
        self._layers, self._their_layers = list(pairs.layers), list(pairs.layers.values())
        started = time.perf_counter()
        tried = [self._open_gates(side, coordinates=4) for side in (mine, theirs)]
        seconds = (time.perf_counter() - started) / 2 * 67 / 7
        if tried[0].size != tried[1].size:
            raise ValueError(f"the networks take {tried[0].size} and {tried[1].size} input coordinates")
        self._layers, self._their_layers = tried[0].layers, tried[1].layers
        alike = self._layers == self._their_layers and type(mine.live) is type(theirs.live)
        rank_zero_info(
            f"wcka with open gates takes about {seconds:.2g} s for every measurement"
            + (f", and {_UNTRAINED * seconds:.2g} s once for {_UNTRAINED} untrained networks" if alike else "")
        )
        self._untrained = None
        if alike:
            kernels = []
            for seed in range(_UNTRAINED):
                with isolated_random_state(seed):
                    weights = untrained_weights(mine.live)
                kernels.append(self._open_gates(mine, weights=weights).kernels.cpu())
            self._untrained = _Untrained(self._layers, torch.stack(kernels))

    def _open_gates(
        self, side: Side, *, weights: Mapping[str, Tensor] | None = None, coordinates: int = 64
    ) -> OpenGateKernels:
        layers = self._their_layers if side.is_reference else self._layers
        weights = side.weights if weights is None else weights
        return side.runner.open_gate_kernels(side.live, layers, weights, coordinates=coordinates)

    def _weights(self, side: Side) -> list[Tensor]:
        chain = self._their_layers if side.is_reference else self._layers
        return check_chain(list(chain_weights(side.live, chain, side.weights).values()), "weights")

    def _pairs(self, pairs: Pairs) -> dict[str, str]:
        """Of the chosen pairs of layers those of both."""
        return {a: b for a, b in pairs.layers.items() if a in self._layers and b in self._their_layers}


class _Untrained:
    r"""What untrained networks of one kind have in common.

    With m the mean of their kernels, the partial form takes it out:
    :math:`(r - r_a r_b) / \sqrt{(1 - r_a^2)(1 - r_b^2)}`, :math:`r_a = \langle K_a, m \rangle / |m|`, of the layers at
    which :math:`|m|^2`, by pairs of different networks, is more than 3 of its standard errors.

    Args:
        layers: names.
        kernels: (networks, layers, M, M), each of norm 1.
    """

    def __init__(self, layers: Sequence[str], kernels: Tensor) -> None:
        first, second = torch.triu_indices(len(kernels), len(kernels), 1, device=kernels.device)
        products = torch.einsum("rlmn,slmn->rsl", kernels, kernels)[first, second]
        self.mean, self.squared, self.spread = kernels.mean(0), products.mean(0), products.std(0)
        shared = self.squared > 3 * self.spread / (len(kernels) / 2) ** 0.5
        self.shared = {layer for layer, is_shared in zip(layers, shared.tolist(), strict=True) if is_shared}

    def partial(self, place: int, a: Tensor, b: Tensor) -> float:
        """Of two kernels (M, M) of a layer."""
        r_a, r_b = (float((kernel * self.mean[place]).sum() / self.squared[place].sqrt()) for kernel in (a, b))
        remaining = (1 - r_a**2) * (1 - r_b**2)
        return (float((a * b).sum()) - r_a * r_b) / remaining**0.5 if min(1 - r_a**2, 1 - r_b**2) > 0 else float("nan")
