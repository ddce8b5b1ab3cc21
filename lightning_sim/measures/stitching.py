"""Whether a layer of one network can take the place of the other's: stitched networks as a measure."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_sim._centering import for_sums
from lightning_sim.functional import LinearMap
from lightning_sim.functional.stitching import MapOptions, map_of_gram
from lightning_sim.measures.measure import Measure, Pairs, Side, Values
from lightning_sim.measures.parties import explained, fitting, made_stitch, party
from lightning_sim.probe.gradients import logits_problem
from lightning_sim.probe.guards import isolated_random_state
from lightning_sim.probe.runner import ProbeRunner
from lightning_sim.probe.targets import find_targets
from lightning_sim.probe.untrained import untrained_weights
from lightning_sim.record.key import Key, parse_name
from lightning_sim.record.measurement import SimilarityMatrix
from lightning_sim.record.scale import Scale
from lightning_sim.stitching.fitting import add_grams
from lightning_sim.stitching.scores import Scores, logits_of, tally

__all__ = ["Stitching"]

_FIT, _EVALUATE = (0, 2), (1, 2)  # the samples with even ids, and those with odd ones
_ROWS_PER_CHANNEL = 10
_NOTHING_RIGHT = "is relative to an accuracy of 0, that of the network whose back it is"
_NOTHING_VARIES = "has features that are NaN or infinite, or none that vary"
_UNKNOWN = Scores(*[math.nan] * 4), math.nan
_SHARE = Scale(low=0, same=1)  # above 1 where it beats the network whose back it is

Pair = tuple[str, str]
Maps = tuple[LinearMap | None, LinearMap | None, Tensor | None] | None


class Stitching(Measure):
    """How well the network's layers take the place of the reference's, and the other way round.

    For every pair of layers a linear map is fitted on one half of the probe (even sample ids), and the stitched network
    scored on the other (:class:`lightning_sim.stitching.Stitched`). It gives, for the network's front on the
    reference's back, and as ``stitching_back`` for the reference's front on the network's back,

    - ``stitching``: the accuracy relative to that of the network whose back it is, where targets are in the batches;
      else the share of samples on which the two agree;
    - ``stitching_cross_entropy``: from that network's predictions to the stitched ones, in nats;
    - ``stitching_r2``: share of the variance of its features that the map explains, on the half it was not fitted on;

    and two controls without which no number says anything, measured once, when they are first needed, kept on resume,
    and logged beside: ``stitching_none``, the same without a map (where the channels are as many), and
    ``stitching_untrained``, of a front of new initial weights. Where that one is near 1 a high value is no news, as of
    most first layers.

    Args:
        every_pair: also give the matrix of every layer with every layer of the reference. It takes as many stitched
            networks as it has cells.
        options: of the map, as of :func:`lightning_sim.functional.stitching_map`; ``ridge=0.01`` helps small probes.

    Example:
        >>> from lightning_sim import SimilarityMonitor
        >>> from lightning_sim.measures import Stitching
        >>> monitor = SimilarityMonitor("init", measures=("cka", Stitching(every_pair=True)))
    """

    name = "stitching"
    scale = _SHARE
    needs = frozenset({"weights"})

    def __init__(self, every_pair: bool = False, **options: Any) -> None:
        self.every_pair = every_pair
        self.options = MapOptions(**options).checked()
        self._sizes: dict[Pair, tuple[int, int]] = {}
        self._own = False
        self._controls: dict[Key, float] | None = None

    def scales(self) -> Mapping[str, Scale]:
        """Of all that it gives."""
        entropy, r2 = Scale(low=0, unit="nats"), Scale(high=1, same=1)
        of_a_direction = {"": _SHARE, "_r2": r2, "_cross_entropy": entropy}
        found = {f"{self.name}{way}{of}": scale for way in ("", "_back") for of, scale in of_a_direction.items()}
        return found | {f"{self.name}_none": _SHARE, f"{self.name}_untrained": _SHARE}

    def refuse(self, mine: Side, theirs: Side, pairs: Pairs) -> str | None:
        """Both must give logits, and some layers must fit together; warns of those that do not, and of few samples."""
        for side, whose in ((mine, ""), (theirs, " of the reference")):
            problem = side.snapshot.output_problem or logits_problem(side.snapshot.logits)
            if problem is not None:
                return f"the output{whose} {problem}"
        network, other = mine.live, theirs.live
        self._own = network is other
        self._sizes, self._controls = {}, None  # those of another comparison are not these
        reasons: dict[str, str] = {}
        rows: dict[Pair, int] = {}
        product = itertools.product(pairs.layers, dict.fromkeys(pairs.layers.values()))

        def summed(batches: Iterator[tuple[Tensor, Any]], weights: Mapping[str, Tensor]) -> Tensor:
            ids, given = next(batches)
            parties = party(mine.runner, network), party(mine.runner, other)
            for pair, fits in fitting(parties, product if self.every_pair else pairs.layers.items(), given).items():
                if isinstance(fits, str):
                    reasons[f"{pair[0]} with {pair[1]}"] = fits
                else:
                    self._sizes[pair] = fits[:2]
                    rows[pair] = fits[2] // len(ids) * -(-mine.runner.probe.size // 2)
            return torch.zeros((), device="cpu")

        mine.runner.try_first(network, summed, beside=other)
        listed = "; ".join(f"{pair} ({reason})" for pair, reason in reasons.items())
        if not any(self._numbered(pairs)):
            return f"no layer can be stitched: {listed}"
        if reasons and not self.every_pair:
            warnings.warn(f"these layers are not stitched: {listed}", UserWarning, stacklevel=2)
        few = [
            f"{pair[0]} ({rows[pair]} rows for {max(self._sizes[pair])} channels)"
            for pair in self._numbered(pairs)
            if rows[pair] < _ROWS_PER_CHANNEL * max(self._sizes[pair])
        ]
        if few:
            warnings.warn(
                f"stitches are fitted on one half of the probe, and too few for {', '.join(few)}: with fewer rows than "
                f"{_ROWS_PER_CHANNEL} times the channels they fit their own samples and no others; use more "
                "`num_samples`, or measures=[Stitching(ridge=0.01)]",
                UserWarning,
                stacklevel=2,
            )
        return None

    def keys(self, pairs: Pairs) -> list[Key]:
        """Of every pair of layers that fits together."""
        names = [name for name in self.scales() if name != f"{self.name}_none"]
        found = [Key(name, "features", layer) for name in names for layer, _ in self._numbered(pairs)]
        alike = [layer for layer, other in self._numbered(pairs) if len(set(self._sizes[layer, other])) == 1]
        return found + [Key(f"{self.name}_none", "features", layer) for layer in alike]

    def keep(self, side: Side) -> Mapping[str, Tensor]:
        """Parameters and buffers, where the reference is another state of the network."""
        return side.tensors() if self._own else {}

    def state_dict(self) -> dict[str, Any]:
        """The controls, and of which maps."""
        controls = {key.name: value for key, value in (self._controls or {}).items()}
        return {"options": self.options._asdict(), "controls": controls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The controls, where they are of the same maps."""
        if state.get("options") == self.options._asdict():
            self._controls = {parse_name(name): value for name, value in state["controls"].items()} or None

    def compare(self, mine: Side, theirs: Side, pairs: Pairs) -> Values:
        """Every pair of layers, in both directions, and the controls."""
        weights = {name: value.to(mine.runner.device, copy=True) for name, value in theirs.kept(self).items()} or None
        found, asked = Values(), list(self._sizes) if self.every_pair else self._numbered(pairs)
        grams = self._grams(mine, theirs, asked, None, weights)
        maps = {pair: self._maps(pair, gram) for pair, gram in grams.items()}
        scores = self._scores(mine, theirs, maps, None, weights)
        numbered = self._numbered(pairs)
        for pair in numbered:
            for way, suffix in enumerate(("", "_back")):
                score, r2 = scores.get((pair, way), _UNKNOWN)
                for of, value in {"": score.relative, "_cross_entropy": score.cross_entropy, "_r2": r2}.items():
                    undefined = of == "" and (pair, way) in scores
                    problem = _NOTHING_RIGHT if undefined else _NOTHING_VARIES
                    found.add(Key(f"{self.name}{suffix}{of}", "features", pair[0]), value, problem)
        if self._controls is None:
            self._controls = self._controlled(mine, theirs, numbered, weights)
        for key, value in self._controls.items():
            found.add(key, value, _NOTHING_RIGHT)
        if self.every_pair:
            rows, columns = list(pairs.layers), list(dict.fromkeys(pairs.layers.values()))
            values = np.array([[_relative(scores, (row, column)) for column in columns] for row in rows])
            found.matrices.append(SimilarityMatrix(self.name, "features", tuple(rows), tuple(columns), values))
        return found

    def num_batches(self, runner: ProbeRunner) -> int:
        """A pass over each half, of both networks at once."""
        return runner.num_batches(part=_FIT) + runner.num_batches(part=_EVALUATE)

    def _numbered(self, pairs: Pairs) -> list[Pair]:
        """The pairs of which numbers are given."""
        return [pair for pair in pairs.layers.items() if pair in self._sizes]

    def _controlled(
        self, mine: Side, theirs: Side, pairs: list[Pair], weights: Mapping[str, Tensor] | None
    ) -> dict[Key, float]:
        """No map, and an untrained front, on the reference's back."""
        with isolated_random_state(mine.runner.seed):
            untrained = untrained_weights(mine.live)
        quiet = Side(mine.snapshot, mine.runner, mine.network)
        alike = {pair: (None, None, None) for pair in pairs if len(set(self._sizes[pair])) == 1}
        without = self._scores(quiet, theirs, alike, None, weights, ways=1)
        grams = self._grams(quiet, theirs, pairs, untrained, weights)
        maps = {pair: self._maps(pair, gram) for pair, gram in grams.items()}
        scores = self._scores(quiet, theirs, maps, untrained, weights, ways=1)
        found = {Key(f"{self.name}_untrained", "features", pair[0]): _relative(scores, pair) for pair in pairs}
        return found | {Key(f"{self.name}_none", "features", pair[0]): _relative(without, pair) for pair in alike}

    def _grams(
        self,
        mine: Side,
        theirs: Side,
        pairs: list[Pair],
        weights: Mapping[str, Tensor] | None,
        other_weights: Mapping[str, Tensor] | None,
    ) -> dict[Pair, Tensor]:
        """The sums over the half that maps are fitted on."""
        network, other = mine.live, theirs.live
        runner = mine.runner

        def summed(batches: Iterator[tuple[Tensor, Any]], _: Mapping[str, Tensor]) -> Tensor:
            parties = party(runner, network, weights), party(runner, other, other_weights)
            sums: dict[Pair, tuple[Tensor, int]] = {}
            with torch.no_grad():
                for _ids, (batch, other_batch) in batches:
                    add_grams(sums, *parties, pairs, batch, other_batch)
            # A rank without samples knows the sizes.
            sizes = {pair: (1 + sum(self._sizes[pair])) ** 2 for pair in pairs}
            empty = for_sums(torch.zeros(max(sizes.values()), device=runner.device))
            return torch.cat([sums[pair][0].flatten() if pair in sums else empty[:n] for pair, n in sizes.items()])

        total = runner.mean(network, summed, beside=other, part=_FIT, advance=mine.advance) * runner.probe.size
        widths = [1 + sum(self._sizes[pair]) for pair in pairs]
        parts = torch.split(total.cpu(), [width**2 for width in widths])
        return {pair: part.view(width, width) for pair, part, width in zip(pairs, parts, widths, strict=True)}

    def _maps(self, pair: Pair, gram: Tensor) -> Maps:
        """There, back, and the means of both sides; nothing where there are no finite features."""
        width, other_width = self._sizes[pair]
        if not bool(gram.isfinite().all()):
            return None
        order = [0, *range(1 + width, 1 + width + other_width), *range(1, 1 + width)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a side without variance: its R2 is NaN, and says so
            found = [map_of_gram(gram, width, self.options)]
            found.append(map_of_gram(gram[order][:, order], other_width, self.options))
        return found[0], found[1], gram[0, 1:] / gram[0, 0]

    def _scores(
        self,
        mine: Side,
        theirs: Side,
        maps: Mapping[Pair, Maps],
        weights: Mapping[str, Tensor] | None,
        other_weights: Mapping[str, Tensor] | None,
        *,
        ways: int = 2,
    ) -> dict[tuple[Pair, int], tuple[Scores, float]]:
        """Of every stitched network on the other half, by pair and direction, with its R2."""
        network, other = mine.live, theirs.live
        runner = mine.runner
        made = {pair: found for pair, found in maps.items() if found is not None}
        if not made:
            return {}
        layers, counterparts = (list(dict.fromkeys(side)) for side in zip(*made, strict=True))
        total = for_sums(torch.zeros(len(made), ways, 8, device=runner.device))

        def summed(batches: Iterator[tuple[Tensor, Any]], _: Mapping[str, Tensor]) -> Tensor:
            parties = party(runner, network, weights), party(runner, other, other_weights)
            stitches = {pair: [made_stitch(linear, runner) for linear in found[:2]] for pair, found in made.items()}
            with torch.no_grad():
                for _ids, given in batches:
                    fronts, outputs = zip(
                        parties[0].front(layers, given[0], whole=True),
                        parties[1].front(counterparts, given[1], whole=True),
                        strict=True,
                    )
                    own = [logits_of(output) for output in outputs]
                    targets = [find_targets(batch, logits) for batch, logits in zip(given, own, strict=True)]
                    for index, (pair, found) in enumerate(made.items()):
                        for way in range(ways):
                            to = 1 - way  # whose back it is
                            front, target = fronts[way][pair[way]], fronts[to][pair[to]][0]
                            output, passed = parties[to].back(pair[to], given[to], front, stitches[pair][way])
                            total[index, way, :6] += tally(logits_of(output), own[to], targets[to])
                            if found[2] is not None:
                                total[index, way, 6:] += explained(passed, target, found[2], way)
            return total.flatten()

        sums = runner.mean(network, summed, beside=other, part=_EVALUATE, advance=mine.advance)
        sums = (sums.cpu() * runner.probe.size).view(len(made), ways, 8)
        return {
            (pair, way): (Scores.of(tallied[:6].round(decimals=9)), 1 - float(tallied[6] / tallied[7]))
            for pair, ways_of in zip(made, sums, strict=True)
            for way, tallied in enumerate(ways_of)
        }


def _relative(scores: Mapping[tuple[Pair, int], tuple[Scores, float]], pair: Pair) -> float:
    return scores.get((pair, 0), _UNKNOWN)[0].relative
