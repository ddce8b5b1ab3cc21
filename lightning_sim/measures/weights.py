"""Similarity of two networks' weights, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from lightning_sim.functional.weights import ChainKernels, chain_alignment, chain_kernels, check_chain
from lightning_sim.measures.measure import Measure, Pairs, Side, Values
from lightning_sim.probe.chain import chain_weights
from lightning_sim.probe.layers import named_layers
from lightning_sim.record.key import Key
from lightning_sim.record.measurement import SimilarityMatrix
from lightning_sim.record.scale import Scale

__all__ = ["WeightAlignment"]


class WeightAlignment(Measure):
    """wCKA of two chains of dense layers, :func:`lightning_sim.functional.weight_centered_kernel_alignment`."""

    name = "wcka"
    scale = Scale(low=0, high=1, same=1)
    needs = frozenset({"weights"})

    def __init__(self) -> None:
        #: linear layers in the order in which they run, of the network and of the reference
        self._chain: Sequence[str] = ()
        self._their_chain: Sequence[str] = ()

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """Both must be chains of dense layers behind inputs of one width, some of which are chosen."""
        found: dict[str, list[str]] = {}
        for which, side in {"the network": mine, "the reference": theirs}.items():
            try:
                found[which] = side.runner.find_chain(side.live)
            except ValueError as error:
                return f"only a chain of linear layers has one, and in {which} {error}"
        self._chain, self._their_chain = found.values()
        widths = [
            named_layers(side.live)[chain[0]].in_features
            for side, chain in ((mine, self._chain), (theirs, self._their_chain))
        ]
        if widths[0] != widths[1]:
            return f"the first layer takes {widths[0]} inputs, and that of the reference {widths[1]}"
        if not self._pairs(pairs):
            return f"of the linear layers, {', '.join(self._chain)}, none is chosen in both networks"
        return None

    def keys(self, pairs: Pairs) -> list[Key]:
        """Of the chosen layers those of the chain."""
        return [Key(self.name, "weights", layer) for layer in self._pairs(pairs)]

    def keep(self, side: Side) -> Mapping[str, Tensor]:
        """The kernels of the chain, and their basis where there is one."""
        kept = chain_kernels(self._weights(side))._asdict()
        return {name: value for name, value in kept.items() if value is not None}

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """Pairs of layers, and the matrix."""
        found, chosen, kept = Values(), self._pairs(pairs), theirs.kept(self)
        others = ChainKernels(kept.get("basis"), kept["kernels"])
        whole = chain_alignment(self._weights(mine), others).float().numpy()
        rows, columns = list(chosen), list(dict.fromkeys(chosen.values()))
        places = [self._chain.index(layer) for layer in rows], [self._their_chain.index(layer) for layer in columns]
        values = whole[np.ix_(*places)]
        for row, (layer, counterpart) in enumerate(chosen.items()):
            value = float(values[row, columns.index(counterpart)])
            found.add(Key(self.name, "weights", layer), value, "has weights without variance over the inputs")
        found.matrices.append(SimilarityMatrix(self.name, "weights", tuple(rows), tuple(columns), values))
        return found

    def _weights(self, side: Side) -> list[Tensor]:
        chain = self._their_chain if side.is_reference else self._chain
        return check_chain(list(chain_weights(side.live, chain, side.weights).values()), "weights")

    def _pairs(self, pairs: Pairs) -> dict[str, str]:
        """Of the chosen pairs of layers those of the chains."""
        return {a: b for a, b in pairs.layers.items() if a in self._chain and b in self._their_chain}
