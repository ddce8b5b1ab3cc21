"""Sums over pairs of samples of two narrow representations, from which similarities are exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_sim._arguments import check_integer
from lightning_sim._centering import undefined
from lightning_sim._checks import check_pair
from lightning_sim.functional.centered_kernel_alignment import alignment
from lightning_sim.functional.hsic import Estimator, HsicTerms, covariance_rounding, minimum_rows, sums_of_hsic_1
from lightning_sim.functional.nuclear_norm import nuclear_norm
from lightning_sim.metrics._pair_metric import State

__all__ = ["CentralMoments"]

_SIDES = ("x", "y")


@dataclass(frozen=True)
class CentralMoments:
    """Sums over samples z = (x, y) around their mean, in float64, for widths p = `num_features_x` + `num_features_y`.

    HSIC_1 needs the fourth moments sum |x|^2 |y|^2 of centred samples. Summed around zero they lose four digits for
    every factor of 10 between the mean and the standard deviation. So the moments are those around the mean of the
    samples so far (which the sums of the samples give), and parts move theirs to the common mean before they add.
    """

    num_features_x: int
    num_features_y: int

    @classmethod
    def of_widths(cls, num_features_x: int | None, num_features_y: int | None) -> CentralMoments:
        """The sums for these widths, which must be given."""
        sides = zip(_SIDES, (num_features_x, num_features_y), strict=True)
        return cls(*(check_integer(width, f"num_features_{name}", least=1) for name, width in sides))

    def zeros(self) -> State:
        """p (p + 4) + 5 numbers."""
        width = self.num_features_x + self.num_features_y
        shapes = {
            "count": (),
            "feature_sums": (width,),
            "covariances": (width, width),  # sum z z'
            "norms_features": (2, width),  # sum q z' with q = (|x|^2, |y|^2)
            "norms_norms": (2, 2),  # sum q q'
            "rounding": (width,),  # the squares of the rounding errors that the entries carry
        }
        return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def updated(self, state: State, x: Tensor, y: Tensor, sample_ids: Tensor | None = None) -> State:
        """The state with the samples of a batch added, out of place."""
        x, y = check_pair(x, y, minimum_rows=0)
        widths = (self.num_features_x, self.num_features_y)
        for name, side, width in zip(_SIDES, (x, y), widths, strict=True):
            if side.shape[1] != width:
                raise ValueError(f"`{name}` must have `num_features_{name}` = {width} columns, got {tuple(side.shape)}")
        if len(x) == 0:
            return state
        batch = self._moments(x.detach(), y.detach())
        announced = self.announced(state) + self.announced(batch)
        state, batch = self.aligned(state, announced), self.aligned(batch, announced)
        return {name: value + batch[name] for name, value in state.items()}

    def announced(self, state: State, part: int = 0, num_parts: int = 1) -> Tensor:
        """The number of samples and their sum, (1 + p,)."""
        return torch.cat([state["count"][None], state["feature_sums"]])

    def aligned(self, state: State, announced: Tensor, part: int = 0) -> State:
        """The state with moments around the mean of all parts."""
        n, covariances = state["count"], state["covariances"]
        means = state["feature_sums"] / n.clamp_min(1)
        shift = means - announced[1:] / announced[0].clamp_min(1)
        # z becomes z + s and q becomes q + 2 S'z + c, with S the two sides of s in a column each. Sums of z are zero.
        columns = torch.zeros_like(state["norms_features"].T)
        columns[: self.num_features_x, 0] = shift[: self.num_features_x]
        columns[self.num_features_x :, 1] = shift[self.num_features_x :]
        c = columns.square().sum(0)
        norms = self._norms(state)
        norms_features = state["norms_features"] + torch.outer(norms + n * c, shift) + 2 * columns.T @ covariances
        half = 2 * state["norms_features"] @ columns + torch.outer(norms, c)
        squares = 4 * columns.T @ covariances @ columns + n * torch.outer(c, c)
        return {
            **state,
            "covariances": covariances + n * torch.outer(shift, shift),
            "norms_features": norms_features,
            "norms_norms": state["norms_norms"] + half + half.T + squares,
        }

    def cka(self, state: State, estimator: Estimator) -> Tensor:
        """Centred kernel alignment; NaN with a warning where it is undefined."""
        n = state["count"]
        if self._warned(state, minimum=minimum_rows(estimator)):
            return torch.full_like(n, torch.nan)
        squares = torch.stack([self._covariance(state, *sides).square().sum() for sides in ((0, 1), (0, 0), (1, 1))])
        norms, floors = self._norms(state), torch.stack([self._carried(state, side) for side in range(2)])
        if estimator == "biased":
            return alignment(HsicTerms(*squares, *floors), _SIDES)
        sums = sums_of_hsic_1(squares, state["norms_norms"], norms, n)
        return alignment(HsicTerms(*sums, *torch.maximum(floors, covariance_rounding(norms, n))), _SIDES)

    def nbs(self, state: State) -> Tensor:
        """Normalised Bures similarity; NaN with a warning where it is undefined."""
        if self._warned(state, minimum=2):
            return torch.full_like(state["count"], torch.nan)
        value = nuclear_norm(self._covariance(state, 0, 1)) / self._norms(state).sqrt().prod()
        return value.clamp_max(1)

    def canonical_correlations(self, state: State) -> tuple[Tensor, int] | None:
        """The canonical correlations and the smaller rank; None after a warning where they are undefined."""
        if self._warned(state, minimum=2):
            return None
        whitening = [self._whitening(state, side) for side in range(2)]
        if self._warned_of(state, [directions.shape[1] > 0 for directions in whitening]):
            return None
        correlations = torch.linalg.svdvals(whitening[0].T @ self._covariance(state, 0, 1) @ whitening[1])
        return correlations.clamp_max(1), min(directions.shape[1] for directions in whitening)

    def _moments(self, x: Tensor, y: Tensor) -> State:
        eps = torch.finfo(x.dtype).eps
        z = torch.cat([x, y], dim=1).double()
        sums = z.sum(0)
        rounding = (eps * z).square().sum(0)
        z = z - sums / len(z)
        norms = torch.stack([side.square().sum(1) for side in self._split(z, 1)])
        return {
            "count": sums.new_tensor(len(z)),
            "feature_sums": sums,
            "covariances": z.T @ z,
            "norms_features": norms @ z,
            "norms_norms": norms @ norms.T,
            "rounding": rounding,
        }

    def _warned(self, state: State, *, minimum: int) -> bool:
        """Whether the value is undefined, after a warning that says why."""
        count = int(state["count"])
        if count < minimum:
            undefined(f"at least {minimum} samples are needed, got {count}", state["count"])
            return True
        # Constants up to 8 units in the last place have a variance of 8^2 / 12 of them.
        varies = [bool(self._variances(state, side).sum() > 6 * self._rounding(state, side).sum()) for side in range(2)]
        return self._warned_of(state, varies)

    def _warned_of(self, state: State, varies: list[bool]) -> bool:
        constant = [f"`{name}`" for name, varied in zip(_SIDES, varies, strict=True) if not varied]
        if constant:
            undefined(f"{' and '.join(constant)} has no variance over the samples above rounding", state["count"])
        return bool(constant)

    def _variances(self, state: State, side: int) -> Tensor:
        return self._covariance(state, side, side).diagonal()

    def _rounding(self, state: State, side: int) -> Tensor:
        """How much of the variance of each feature (times the samples) may be rounding of the inputs."""
        # An exact constant has been rounded, and does not vary.
        return torch.minimum(self._split(state["rounding"], 0)[side], self._variances(state, side))

    def _carried(self, state: State, side: int) -> Tensor:
        """The part of a sum of squared similarities that is rounding, as in `linear_kernel_rounding`."""
        variances, rounding = self._variances(state, side), self._rounding(state, side)
        computed = 16 * torch.finfo(variances.dtype).eps * variances.sum()
        return 4 * (variances + rounding) @ rounding + computed.square()

    def _whitening(self, state: State, side: int) -> Tensor:
        """W (p, rank) such that X W is an orthonormal basis of the span of the centred X."""
        covariance, variances = self._covariance(state, side, side), self._variances(state, side)
        varies = variances > 6 * self._rounding(state, side)
        scale = torch.where(varies, variances, 1).rsqrt() * varies
        # In float64 the directions with a share below this of the variance keep no correct digit worth having: the
        # eigenvalues err by eps, so the correlation of a direction with share t errs by eps / t.
        resolution = torch.finfo(covariance.dtype).eps ** (2 / 3)
        eigenvalues, directions = torch.linalg.eigh(scale[:, None] * covariance * scale)
        entries = 16 * (1 + (len(scale) / float(state["count"])) ** 0.5)
        rounding = entries**2 * directions.square().T @ (self._split(state["rounding"], 0)[side] * scale.square())
        real = eigenvalues > rounding + resolution * eigenvalues.amax()
        whitening: Tensor = scale[:, None] * directions[:, real] * eigenvalues[real].rsqrt()
        return whitening

    def _norms(self, state: State) -> Tensor:
        """The sums of |x|^2 and |y|^2, (2,)."""
        return torch.stack([side.sum() for side in self._split(state["covariances"].diagonal(), 0)])

    def _covariance(self, state: State, row: int, column: int) -> Tensor:
        return self._split(self._split(state["covariances"], 0)[row], 1)[column]

    def _split(self, value: Tensor, dim: int) -> tuple[Tensor, ...]:
        return torch.split(value, [self.num_features_x, self.num_features_y], dim)
