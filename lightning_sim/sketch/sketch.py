"""The sketch of one layer of one network on one probe, which can be compared with others and saved."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lightning_sim._checks import check_choice
from lightning_sim.functional.carriers import Carriers, carriers_of
from lightning_sim.functional.chance import Null, null_of
from lightning_sim.functional.estimate import Estimate
from lightning_sim.sketch.alignment_errors import alignment_null
from lightning_sim.sketch.bures_errors import bures_estimate, bures_null
from lightning_sim.sketch.centered_sums import CenteredSums
from lightning_sim.sketch.similarity import (
    alignments,
    centered_kernel_alignment_matrix,
    normalized_bures_similarity,
)
from lightning_sim.sketch.state_files import read_one_state, write_states

__all__ = ["Sketch"]


class Sketch(CenteredSums):
    r"""Constant-memory summary of a layer's features on a set of samples, from which CKA and NBS are computed.

    With features ``X (N, p)``, a sign-and-bucket matrix ``S (M, N)`` given by a fixed hash of the sample ids, and
    folds ``R (p, c)`` given by a fixed hash of the columns, the sketch holds

    .. math:: S X R, \quad S 1, \quad 1' X R, \quad N

    all of them sums over samples: sketches of disjoint sets of samples add (`merge`), in any order and on any
    device. Features are centred exactly afterwards, :math:`S(X - 1\mu') = SX - (S1)\mu'`.

    **Exact** while N <= `num_buckets` (consecutive sample ids do not collide) and p <= `num_projections`
    (nothing is folded). Beyond that two independent folds of half the width are kept, and the estimates of CKA
    stay unbiased up to the ratio's second-order term. State: M * k floats whatever N and p; at the defaults 4.2 MB.
    Cost of an update: one pass over the features.

    **Leading directions.** Where all samples come in one pass, as in the callback's, a sketch may follow the up to 16
    directions in which samples of the first batch, 128 at most, differ most (``sketch.directions = "first"``): of
    features that are folded it then holds the coordinates in these, exactly, and folds of the rest. For networks
    trained on CIFAR-10 that took the largest error of a matrix of CKA from .012 to .020 down to .005 to .009.

    **Product kernel.** With gradients beside the features, the sketch is that of the outer products g (x) f of every
    sample, whose linear kernel is :math:`K = F F' \circ G G'`, features and gradients at once: exact while
    p_f p_g <= `num_projections`, or p_f + p_g <= `num_projections` and no bucket holds two samples; by
    :func:`tensor sketch <lightning_sim.sketch.tensor_sketch.tensor_sketch>` beyond. A sketch is of one kind, with
    gradients or without.

    Accumulates in float32 (or `dtype`) whatever the precision of the features. Follows the device of the first
    features it is given.

    References:
        Tang et al. 2020, *Similarity of Neural Networks with Gradients*, Algorithm 1, whose kernel is centred
        after sketching; here the data are. Charikar, Chen & Farach-Colton 2002 for the sign-and-bucket sketch. Pham &
        Pagh 2013, *Fast and scalable polynomial kernels via explicit feature maps*, for the product kernel.

    Args:
        num_buckets: M, a power of two.
        num_projections: k, an even number.
        seed: of the hashes. Only sketches of the same seed and sizes can be compared.
        dtype: of the state, float32 or float64.

    Raises:
        ValueError: when `num_buckets` is no power of two, `num_projections` is odd, `seed` is no integer of 64 bits, or
            `dtype` is narrower than float32.

    Example:
        >>> import torch
        >>> from lightning_sim.sketch import Sketch
        >>> x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
        >>> a, b = Sketch(), Sketch()
        >>> a.update(x[:300], torch.arange(300))
        >>> a.update(x[300:], torch.arange(300, 500))
        >>> b.update(2 * x + 3, torch.arange(500))
        >>> round(float(a.cka(b)), 4)
        1.0
    """

    def cka(self, other: Sketch, *, estimator: str = "unbiased") -> Tensor:
        """Linear centred kernel alignment with another sketch of the same samples.

        The unbiased estimator, in [-1, 1], is the ratio of HSIC_1 terms (Song et al. 2012, eq. 5); without collisions
        and folds it equals :func:`lightning_sim.functional.centered_kernel_alignment` to rounding. The biased one, in
        [0, 1], is that of Kornblith et al. 2019, eq. 4; with more samples than buckets its diagonal carries the
        collisions as well, so it serves comparison with papers on small probes only.

        Returns:
            Scalar of the sketch's dtype; NaN where `cka_problem` of a side says why, or where the ratio lies further
            outside of [-1, 1] than the noise of the folds explains (see
            :func:`lightning_sim.sketch.centered_kernel_alignment_matrix`).

        Raises:
            ValueError: when the sketches are not of the same samples, seed and sizes, or hold fewer than 4 samples.
        """
        return centered_kernel_alignment_matrix([self], [other], estimator=estimator)[0, 0]

    def nbs(self, other: Sketch) -> Tensor:
        """Normalised Bures similarity with another sketch of the same samples (Tang et al. 2020, eq. 10).

        In [0, 1], biased upwards for few samples. See :func:`lightning_sim.functional.normalized_bures_similarity`.

        Raises:
            ValueError: as for `cka`.
        """
        return normalized_bures_similarity(self, other)

    def estimate(
        self, other: Sketch, *, measure: Literal["cka", "nbs"] = "cka", estimator: str = "unbiased"
    ) -> Estimate:
        """`cka` or `nbs` with the standard error of its value, as :func:`lightning_sim.functional.estimate` has it.

        With more samples than buckets those take the place of samples, and the error contains the noise of the hashes;
        with folds it contains their noise as well (see :func:`lightning_sim.sketch.alignments`). That of CKA takes less
        than a tenth of a measurement of CKA and NBS, that of NBS more than NBS itself.

        Raises:
            ValueError: as for `cka`, and for another measure.
        """
        check_choice(measure, "measure", ("cka", "nbs"))
        if measure == "nbs":
            return bures_estimate(self, other)
        found = alignments([self], [other], estimator=estimator, pairs=[(0, 0)])
        return Estimate(found.values[0, 0], found.standard_errors[0, 0])

    def null(self, other: Sketch, *, measure: Literal["cka", "nbs"] = "cka", permutations: int = 20) -> Null:
        """Unbiased `cka`, or `nbs`, beside what unrelated samples would read.

        As :func:`lightning_sim.functional.permutation_null`, from which it differs by the noise of folds (which widens
        the null) and of buckets that hold several samples. NBS is computed for so many random pairings of the buckets.

        Raises:
            ValueError: as for `cka`, and for another measure.
        """
        check_choice(measure, "measure", ("cka", "nbs"))
        if measure == "nbs":
            return bures_null(self, other, permutations)
        found = alignments([self], [other], pairs=[(0, 0)])
        if bool(found.values.isnan()):
            return null_of(math.nan, 0.0, math.nan)
        return alignment_null(self, other, float(found.values), float(found.chance_deviations))

    def carriers(self, other: Sketch) -> Carriers:
        """Which samples unbiased `cka` stands on, as :func:`lightning_sim.functional.carriers` says it.

        Samples are named by their bucket: the id modulo `num_buckets`, and the id itself where that is smaller.

        Raises:
            ValueError: as for `cka`.
        """
        found = alignments([self], [other], pairs=[(0, 0)])
        sides = [torch.cat(list(side.centered()[0]), 1) / side.scale for side in (self, other.on(self.device))]
        return carriers_of(found.shares.get((0, 0)), found.units, *sides)

    def cka_problem(self, estimator: str = "unbiased") -> str | None:
        """Why CKA with any other sketch is NaN, in words, or None.

        That is `problem`; and for the unbiased estimator also why HSIC_1 of the sketch with itself is zero but for
        rounding or the noise of its folds: all samples, or all but one, are alike, or all are equally far apart.

        Raises:
            ValueError: as `cka`.
        """
        check_choice(estimator, "estimator", ("unbiased", "biased"))
        if self.problem() is not None or estimator == "biased":
            return self.problem()
        if self.known_cka_problem is None:
            centered_kernel_alignment_matrix([self], [self], estimator=estimator)
        assert self.known_cka_problem is not None
        return self.known_cka_problem[0]

    def save(
        self,
        path: Path | str,
        *,
        layer: str = "",
        representation: str = "features",
        network: str = "",
        probe: str = "",
        dtype: Literal["float16"] | None = None,
    ) -> None:
        """Write the sketch to a file; see :func:`lightning_sim.sketch.save_sketches`."""
        write_states(path, {"network": network, "probe": probe}, [(representation, layer, self)], dtype=dtype)

    @classmethod
    def load(cls, path: Path | str) -> Sketch:
        """The only sketch in a file, on the CPU; see :func:`lightning_sim.sketch.load_sketch`."""
        return cls.from_state_dict(read_one_state(path))
