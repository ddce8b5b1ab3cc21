"""Attacks: inputs moved a little so that a network errs, or predicts something else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_sim._arguments import check_integer, check_number
from lightning_sim._checks import check_choice
from lightning_sim._guards import evaluating, isolated_random_state, substituted_buffers
from lightning_sim.conditions.draws import Draws
from lightning_sim.conditions.pixels import Pixels, find_inputs, with_inputs
from lightning_sim.probe.forward import call_network
from lightning_sim.probe.gradients import differentiable, require_logits
from lightning_sim.probe.targets import find_targets

__all__ = ["ATTACKS", "Attack"]

ATTACKS = ("fgsm", "fast_fgsm", "noise", "pgd", "trades")
_EPSILON, _DEVIATION, _NEAR = 8 / 255, 0.1, 0.001


@dataclass(frozen=True)
class Attack:
    r"""An attack by the signs of gradients with respect to the input.

    With pixels x between 0 and 1, the loss L, the step size a, and P the projection onto the pixels that are no further
    from x than epsilon, and between 0 and 1:

    - ``"fgsm"``: :math:`x' = x + \epsilon \, sign \nabla L(x)`;
    - ``"fast_fgsm"``: one step :math:`x' = P(u + a \, sign \nabla L(u))` from u uniform within epsilon of x;
    - ``"pgd"``: `steps` of :math:`x \leftarrow P(x + a \, sign \nabla L(x))` from there;
    - ``"trades"``: the same from x + 0.001 normal noise, with L the divergence KL(p(x) || p(x')) of the predictions;
    - ``"noise"``: x + epsilon times normal noise.

    L is the cross-entropy with the labels in the batch, or with the crafting network's own predictions where there are
    none.

    Args:
        kind: one of these.
        epsilon: as a share of the range of pixels; None for 8/255, and 0.1 for ``"noise"``. On MNIST take 0.1.
        step: a, likewise; None for epsilon / 4, and 5/4 epsilon for ``"fast_fgsm"``.
        steps: of ``"pgd"`` and ``"trades"``.
        crafted_on: for which network a monitor crafts it: ``"reference"`` (once, where that stays the same),
            ``"self"``, each of the two for itself, or ``"network"``, the monitored one.
        bounds: least and largest value of a pixel.
        mean: of each channel (or all), as it was subtracted from the pixels to normalise them; None for none.
        std: by which they were divided then.
        seed: of the random starts.

    Raises:
        ValueError: for settings that cannot work, and when called, for inputs that are integers or not in the bounds,
            and outputs that are no logits.

    References:
        Goodfellow et al. 2015 (FGSM). Wong et al. 2020, *Fast is better than free*. Madry et al. 2018 (PGD). Zhang et
        al. 2019 (TRADES).

    Example:
        >>> import torch
        >>> from lightning_sim.conditions import Attack
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> images = torch.rand(8, 1, 4, 4, generator=torch.manual_seed(0))
        >>> attacked, labels = Attack("pgd", epsilon=0.1)(network, (images, torch.arange(8) % 3))
        >>> round(float((attacked - images).abs().max()), 3)
        0.1
    """

    kind: str
    epsilon: float | None = None
    step: float | None = None
    steps: int = 10
    crafted_on: str = "reference"
    bounds: InitVar[tuple[float, float]] = (0.0, 1.0)
    mean: InitVar[Sequence[float] | float | None] = None
    std: InitVar[Sequence[float] | float | None] = None
    seed: int = 0

    def __post_init__(self, bounds: Any, mean: Any, std: Any) -> None:
        check_choice(self.kind, "kind", ATTACKS)
        check_choice(self.crafted_on, "crafted_on", ("reference", "self", "network"))
        check_integer(self.steps, "steps", least=1)
        for name in ("epsilon", "step"):
            value = getattr(self, name)
            if value is not None and not check_number(value, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {value}")
        object.__setattr__(self, "_pixels", Pixels(bounds, mean, std))

    @property
    def name(self) -> str:
        """As in logged names: the kind, with what of it is not the default."""
        parts = [self.kind, *([] if self.epsilon is None else [f"{self.epsilon:g}"])]
        return "_".join(parts + ([] if self.crafted_on == "reference" else [self.crafted_on]))

    def __call__(
        self,
        network: nn.Module,
        batch: Any,
        sample_ids: Tensor | None = None,
        *,
        forward: Callable[[nn.Module, Any], Any] = call_network,
    ) -> Any:
        """The batch with its inputs attacked.

        Nothing of the network or of the random state changes, and no ``.grad`` is left.

        Args:
            network: for which it is crafted, in evaluation mode whatever its own.
            batch: inputs, or a tuple or mapping of them and labels.
            sample_ids: (n,), on which the random starts depend; 0 to n - 1 if None.
            forward: ``forward(network, batch)`` gives the output.
        """
        ids = torch.arange(len(find_inputs(batch)), device="cpu") if sample_ids is None else sample_ids
        with (
            differentiable(network),  # first: copies of buffers are to be no inference tensors
            substituted_buffers(network),
            isolated_random_state(self.seed),
            evaluating(network),
        ):
            pixels = self._pixels.of(find_inputs(batch))  # type: ignore[attr-defined]

            def logits_of(pixels: Tensor) -> Tensor:
                output = forward(network, with_inputs(batch, self._pixels.inputs(pixels)))  # type: ignore[attr-defined]
                return require_logits(output, "attacks need").float()

            attacked = self.crafted(pixels, logits_of, batch, Draws(ids, self.seed, self.kind))
            return with_inputs(batch, self._pixels.inputs(attacked))  # type: ignore[attr-defined]

    def crafted(self, pixels: Tensor, logits_of: Callable[[Tensor], Tensor], batch: Any, draws: Draws) -> Tensor:
        """Pixels attacked, with random numbers of `draws`."""
        epsilon = self.epsilon or (_DEVIATION if self.kind == "noise" else _EPSILON)
        step = self.step or epsilon * (1.25 if self.kind == "fast_fgsm" else 0.25)
        shape = pixels.shape[1:]
        if self.kind == "noise":
            return (pixels + epsilon * draws.normal(*shape).to(pixels.device)).clamp(0, 1)

        def clean() -> Tensor:
            with torch.no_grad():
                return logits_of(pixels)

        if self.kind == "trades":
            loss: Callable[[Tensor], Tensor] = partial(_divergence, clean().softmax(1))
            start = pixels + _NEAR * draws.normal(*shape).to(pixels.device)
        else:
            loss = _CrossEntropy(batch, clean)
            start = pixels
            if self.kind != "fgsm":
                start = pixels + draws.uniform(*shape, low=-epsilon, high=epsilon).to(pixels.device)
        if self.kind == "fgsm":
            return (pixels + epsilon * _signs(loss, logits_of, pixels)).clamp(0, 1)
        attacked = start.clamp(0, 1)
        for _ in range(1 if self.kind == "fast_fgsm" else self.steps):
            moved = attacked + step * _signs(loss, logits_of, attacked)
            attacked = (pixels + (moved - pixels).clamp(-epsilon, epsilon)).clamp(0, 1)
        return attacked


def _signs(loss: Callable[[Tensor], Tensor], logits_of: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    """In which direction each pixel makes the loss larger."""
    pixels = pixels.detach().clone().requires_grad_()
    # A copy, which the network may change in place.
    (gradient,) = torch.autograd.grad(loss(logits_of(pixels.clone())), pixels)
    return gradient.sign()


class _CrossEntropy:
    """With the labels in a batch, or the predictions where there are none: the logits say which are classes."""

    def __init__(self, batch: Any, clean: Callable[[], Tensor]) -> None:
        self._batch, self._clean = batch, clean
        self._labels: Tensor | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        if self._labels is None:
            found = find_targets(self._batch, logits)
            self._labels = self._clean().argmax(1) if found is None else found
        # The sum, so that no sample's gradient depends on how many others there are.
        return functional.cross_entropy(logits, self._labels, reduction="sum")


def _divergence(probabilities: Tensor, logits: Tensor) -> Tensor:
    return functional.kl_div(logits.log_softmax(1), probabilities, reduction="sum")
