"""Running a part of a network: up to some of its layers, or on from one of them with another output in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_sim.probe.capture import capture_outputs, first_tensor, replace_first_tensor
from lightning_sim.probe.layers import named_layers

__all__ = ["GoingOn", "module_of", "outputs_of"]


class _Reached(BaseException):  # which a network that catches errors does not catch
    """Ends a forward when all that is wanted of it is there."""


def module_of(layer: str) -> tuple[str, int]:
    """The submodule that a layer's name means, and which of its uses: ``"relu[1]"`` is the second of ``"relu"``."""
    name, bracket, use = layer.rpartition("[")
    return (name, int(use[:-1])) if bracket and use.endswith("]") and use[:-1].isdigit() else (layer, 0)


def outputs_of(
    network: nn.Module, layers: Sequence[str], run: Callable[[], Any], *, whole: bool = False
) -> tuple[dict[str, Tensor], Any]:
    """The outputs of these layers as they were before anything was done to them in place, and the network's own.

    Args:
        network: the network.
        layers: names, with uses.
        run: runs it.
        whole: whether to run it to its end; otherwise what comes behind the last of the layers is not run, and the
            network's own output is None.

    Raises:
        ValueError: when a layer does not run, or returns no tensor.
    """
    found: dict[str, Tensor] = {}
    output = None

    def receive(layer: str, given: Tensor | None) -> None:
        if layer in layers and given is not None:
            found[layer] = given.clone()
            if not whole and len(found) == len(set(layers)):
                raise _Reached

    modules = list(dict.fromkeys(module_of(layer)[0] for layer in layers))
    with suppress(_Reached), capture_outputs(network, modules, receive):
        output = run()
    if missing := [layer for layer in layers if layer not in found]:
        raise ValueError(f"{', '.join(missing)} did not run in the network's forward, or returned no tensor")
    return found, output


class GoingOn:
    """Runs a network on from one of its layers, with another output in the place of what the layer gives.

    What comes before the layer is not computed, only its shapes are, where what follows depends on the layer's output
    alone; where it does not, as past a skip connection, or where shapes cannot be had without values, all is computed.
    The result is the same.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.modules = named_layers(network)
        self.computed: set[str] = set()  # layers before which all must be
        self._shapes = _ShapesOnly()

    def __call__(self, layer: str, run: Callable[[], Any], replace: Callable[[Tensor], Tensor]) -> Any:
        """The network's output.

        Args:
            layer: name, with its use.
            run: runs the network.
            replace: gives the layer's output from what it would have been, of which only shape and dtype are sure to be
                there.

        Raises:
            ValueError: when the layer does not run, or returns no tensor.
        """
        if layer not in self.computed:
            try:
                return self._run(layer, run, replace, skips=True)
            except Exception:  # whatever the network does with values that are not there
                self.computed.add(layer)
        return self._run(layer, run, replace, skips=False)

    def _run(self, layer: str, run: Callable[[], Any], replace: Callable[[Tensor], Tensor], *, skips: bool) -> Any:
        name, use = module_of(layer)
        uses = 0

        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            nonlocal uses
            uses += 1
            if uses - 1 != use:
                return None
            self._shapes.active = False
            own = first_tensor(output)
            if own is None:
                raise ValueError(f"{layer} returned no tensor")
            return replace_first_tensor(output, replace(own))

        handle = self.modules[name].register_forward_hook(hook)
        try:
            self._shapes.start()
            with self._shapes if skips else nullcontext():
                output = run()
        finally:
            handle.remove()
        if uses <= use:
            raise ValueError(f"{layer} did not run in the network's forward")
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(output)):
            raise RuntimeError("the output depends on what was not computed")
        return output


class _ShapesOnly(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operations give tensors without values while it is active; what one gave for such shapes, it gives again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.start()
        self._known: dict[Any, Any] = {}

    def start(self) -> None:
        """A forward begins."""
        self.active, self._count = True, 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if not self.active:
            return function(*arguments, **options)
        self._count += 1
        key = self._count, function, tuple(map(_shape, arguments)), tuple(map(_shape, options.values()))
        if key not in self._known:
            leaves = tree_leaves((arguments, options))
            if function._schema.is_mutable and any(isinstance(leaf, Tensor) and not leaf.is_meta for leaf in leaves):
                raise RuntimeError("something is changed in place, which may be needed")
            arguments, options = tree_map_only(Tensor, lambda x: x.to("meta"), (arguments, options))
            self._known[key] = function(*arguments, **options)
        return self._known[key]


def _shape(argument: Any) -> Any:
    """What a result's shape depends on."""
    if isinstance(argument, Tensor):
        return argument.shape, argument.dtype, argument.is_meta
    return tuple(map(_shape, argument)) if isinstance(argument, list | tuple) else argument
