"""The front of one network, a linear map, and the back of another, as one network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_sim._guards import evaluating, frozen, substituted_buffers, uncompiled
from lightning_sim.functional import LinearMap
from lightning_sim.probe.forward import call_network
from lightning_sim.probe.gradients import differentiable
from lightning_sim.probe.layers import select_layers
from lightning_sim.probe.substitution import GoingOn, module_of, outputs_of
from lightning_sim.stitching.positions import has_channels_first, opened, placed

__all__ = ["Party", "Stitch", "Stitched"]


class Stitch(nn.Module):
    """A linear map of channels as a layer: (samples, channels, positions...) to as many samples and positions.

    Args:
        start: the map that it is at first.
        rank: the weight is a product of two factors of this width, and stays so when they are trained. They are those
            of the start, without what it has above this rank; None for one weight.

    Example:
        >>> import torch
        >>> from lightning_sim.functional import LinearMap
        >>> from lightning_sim.stitching import Stitch
        >>> stitch = Stitch(LinearMap(torch.ones(3, 2), torch.zeros(2), torch.tensor(1.0)), rank=1)
        >>> stitch(torch.ones(5, 3, 8, 8)).shape, [tuple(factor.shape) for factor in stitch.factors]
        (torch.Size([5, 2, 8, 8]), [(3, 1), (1, 2)])
    """

    def __init__(self, start: LinearMap, rank: int | None = None) -> None:
        super().__init__()
        weight, bias = (part.detach().to(torch.get_default_dtype()) for part in start[:2])
        factors = [weight.clone()]
        if rank is not None:
            u, s, vh = torch.linalg.svd(weight, full_matrices=False)
            root = s[:rank].sqrt()
            factors = [u[:, :rank] * root, root[:, None] * vh[:rank]]
        self.factors = nn.ParameterList(nn.Parameter(factor.contiguous()) for factor in factors)
        self.bias = nn.Parameter(bias.clone().reshape(weight.shape[1]))

    @property
    def weight(self) -> Tensor:
        """(p1, p2), the product of the factors."""
        weight: Tensor = self.factors[0]
        return weight if len(self.factors) == 1 else weight @ self.factors[1]

    def forward(self, x: Tensor) -> Tensor:
        """Outside of autocast."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.bias.dtype)
            if x.shape[1] != len(self.factors[0]):
                expected = f"{len(self.factors[0])} channels"
                raise ValueError(f"the stitch takes {expected}, and the layer in front of it gives {x.shape[1]}")
            mapped = x.flatten(2) if x.ndim > 2 else x[:, :, None]
            for factor in self.factors[:-1]:
                mapped = factor.T @ mapped
            last = self.factors[-1].T.expand(len(x), -1, -1)
            return torch.baddbmm(self.bias[:, None], last, mapped).reshape(len(x), len(self.bias), *x.shape[2:])


class Party:
    """A network that gives its front, or takes another's: how it is run, and from which layer on.

    Args:
        network: in evaluation mode when it is run.
        forward: ``forward(network, batch)``.
    """

    def __init__(self, network: nn.Module, forward: Callable[[nn.Module, Any], Any] = call_network) -> None:
        self.network = network
        self._forward = forward
        self._going_on = GoingOn(network)

    def front(
        self, layers: list[str], batch: Any, *, whole: bool = False
    ) -> tuple[dict[str, tuple[Tensor, bool]], Any]:
        """What `opened` gives of these layers, running no further than to the last of them unless for the `whole`."""
        found, output = outputs_of(self.network, layers, lambda: self._forward(self.network, batch), whole=whole)
        return {layer: opened(self._module(layer), found[layer]) for layer in layers}, output

    def back(
        self, layer: str, batch: Any, front: tuple[Tensor, bool], stitch: Callable[[Tensor], Tensor]
    ) -> tuple[Any, Tensor]:
        """The output with another front's features, stitched, in the place of a layer's output; and these."""
        module, passed = self._module(layer), []

        def replace(own: Tensor) -> Tensor:
            like, grid = opened(module, own)
            given = stitch(placed(*front, like.shape[2:], grid))
            if given.shape[1] != like.shape[1]:
                raise ValueError(f"the stitch gives {given.shape[1]} channels, and {layer} has {like.shape[1]}")
            passed.append(given)
            goes_on = given if has_channels_first(module, own) else given.movedim(1, -1)
            return goes_on.to(own.dtype, copy=True)  # which what follows may change in place

        output = self._going_on(layer, lambda: self._forward(self.network, batch), replace)
        return output, passed[-1]

    def _module(self, layer: str) -> nn.Module:
        return self._going_on.modules[module_of(layer)[0]]


class Stitched(nn.Module):
    """A network made of the front of one, a stitch, and the back of another (Csiszarik et al. 2021, Definition 3.1).

    Of the front nothing is run behind its layer; of the back, what comes before its layer is not computed where what
    follows depends on the layer alone. Both run in evaluation mode, get no gradients, and are left as they are, flags,
    buffers and all. The only parameters are those of the stitch, which a ``state_dict`` holds alone. Moving this module
    moves both networks as well.

    Where the layers' grids differ, as after strides, the front's features are interpolated to that of the back.

    Args:
        front: any network.
        layer: of the front, whose output goes into the stitch.
        back: any network; the same one, too.
        back_layer: of the back, in the place of whose output that of the stitch is put. Before or after an activation
            are two different places: least squares puts negative numbers behind a ReLU.
        stitch: a :class:`lightning_sim.functional.LinearMap`, or any module on (samples, channels, positions...); None
            for no stitch at all.
        forward: ``forward(network, batch)`` runs either; the default calls it on the first part of a tuple, or with the
            fitting keys of a mapping.

    Raises:
        ValueError: for a layer that does not exist, with the names that do; when it is run, for layers whose channels
            or positions do not fit together.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_sim.functional import stitching_map
        >>> from lightning_sim.stitching import Stitched
        >>> front, back = (nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, 2)) for width in (4, 5))
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> found = stitching_map(front[0](x), back[0](x))
        >>> stitched = Stitched(front, "0", back, "0", found)
        >>> torch.allclose(stitched(x), back(x), atol=1e-5)  # dense layers of one input are maps of each other
        True
    """

    def __init__(
        self,
        front: nn.Module,
        layer: str,
        back: nn.Module,
        back_layer: str,
        stitch: LinearMap | nn.Module | None,
        *,
        forward: Callable[[nn.Module, Any], Any] = call_network,
    ) -> None:
        super().__init__()
        for network, name in ((front, layer), (back, back_layer)):
            select_layers(network, [module_of(name)[0]])
        self.stitch = Stitch(stitch) if isinstance(stitch, LinearMap) else stitch or nn.Identity()
        self.layers = layer, back_layer
        # Not as submodules: their parameters are not trained, and their modes are their own.
        self._parties = Party(front, forward), Party(back, forward)

    @property
    def front(self) -> nn.Module:
        """The network whose front it is."""
        return self._parties[0].network

    @property
    def back(self) -> nn.Module:
        """The network whose back it is."""
        return self._parties[1].network

    def forward(self, batch: Any) -> Any:
        """What the back gives."""
        return self.with_features(batch)[0]

    def with_features(self, batch: Any) -> tuple[Any, Tensor]:
        """What the back gives, and what the stitch gave it."""
        with torch.no_grad(), _left_alone(self.front):
            features, _ = self._parties[0].front([self.layers[0]], batch)
        with _left_alone(self.back):
            return self._parties[1].back(self.layers[1], batch, features[self.layers[0]], self.stitch)

    def of_the_back(self, batch: Any) -> tuple[Any, Tensor]:
        """What the back gives by itself, and the output of its own layer."""
        with torch.no_grad(), _left_alone(self.back):
            features, output = self._parties[1].front([self.layers[1]], batch, whole=True)
        return output, features[self.layers[1]][0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stitched:
        for network in {id(network): network for network in (self.front, self.back)}.values():
            network._apply(fn)  # type: ignore[no-untyped-call]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


@contextmanager
def _left_alone(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, without gradients of its own, and nothing of it changed afterwards."""
    with ExitStack() as stack:
        for guard in (evaluating(network), frozen(network), substituted_buffers(network), uncompiled()):
            stack.enter_context(guard)
        stack.enter_context(differentiable(network) if torch.is_grad_enabled() else nullcontext())
        yield
