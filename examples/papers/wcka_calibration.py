"""What do networks read that share nothing, and one that has converged? Figure 1 of the wCKA paper.

Networks 784-32x4-3 on the digits 0 to 2. Pairs of untrained networks should be at 0 and adjacent epochs late in
training at 1: wCKA, from weights alone, beside unbiased CKA, dCKA and Procrustes of the last hidden layer.
Then the same pairs on probes of 10 to 300 samples, where biased CKA grows as the probe shrinks.

Run: python examples/papers/wcka_calibration.py FOLDER
"""

import copy
import itertools
from functools import partial

import torch
from material import dense, digits, features, mnist, run, table, trained
from torch import Tensor, nn

from lightning_sim.functional import (
    centered_kernel_alignment,
    deconfounded_centered_kernel_alignment,
    estimate,
    permutation_null,
    procrustes_distance,
    weight_centered_kernel_alignment,
)
from lightning_sim.stitching.study import profile_figure

LAST_HIDDEN = "7"  # of the dense network, before its ReLU


@torch.no_grad()
def compared(a: nn.Module, b: nn.Module, probe: Tensor) -> dict[str, float]:
    x, y = (features(network, probe, [LAST_HIDDEN])[0] for network in (a, b))
    return {
        "wCKA": float(weight_centered_kernel_alignment(a, b)[-1, -1]),
        "CKA": float(centered_kernel_alignment(x, y)),
        "dCKA": float(deconfounded_centered_kernel_alignment(x, y, probe)),
        "1 - d²/2 of Procrustes": float(1 - procrustes_distance(x, y, squared=True) / 2),
    }


def spread(values: list[float]) -> str:
    sorted_values = sorted(values)
    return f"{sum(values) / len(values):.3f} [{sorted_values[0]:.3f}, {sorted_values[-1]:.3f}]"


def main() -> None:
    with run(__file__, __doc__) as given:
        fit, held_out = mnist(given.data) if given.data else digits()
        (images, labels), (probe, _) = (
            [part[samples[1] < 3] for part in (samples[0].flatten(1), samples[1])] for samples in (fit, held_out)
        )
        probe = probe[:512]
        count, epochs, late = (12, 100, 95) if given.data else (6, 12, 10)
        make = partial(dense, images.shape[1])
        untrained = [make() for _ in range(count)]
        random = [compared(a, b, probe) for a, b in itertools.combinations(untrained, 2)]

        course: list[nn.Module] = []
        trained(
            make,
            (images, labels),
            epochs,
            0,
            rate=1e-3,
            after=lambda network, epoch: course.append(copy.deepcopy(network)),
        )
        adjacent = [compared(a, b, probe) for a, b in itertools.pairwise(course[late:])]
        print(f"mean [lowest, highest]; untrained: {len(random)} pairs, adjacent: epochs {late} to {epochs}\n")
        expected = {"wCKA": (0, 1), "dCKA": ("-", "below 0.8")}
        rows = []
        for name in random[0]:
            at = expected.get(name, ("-", "-"))
            values = [[of[name] for of in pairs] for pairs in (random, adjacent)]
            rows.append([name, at[0], spread(values[0]), at[1], spread(values[1])])
        table(("measure", "untrained, paper", "untrained, here", "adjacent, paper", "adjacent, here"), rows)

        x, y = (features(network, probe, [LAST_HIDDEN])[0] for network in untrained[:2])
        found = estimate(x, y)
        print(f"CKA of the first untrained pair: {found.value:.3f}, standard error {found.standard_error:.3f}; against")
        print(f"samples paired at random: {permutation_null(x, y)}\n")

        held = [features(network, probe, [LAST_HIDDEN])[0] for network in untrained]
        curves = {
            estimator: {
                size: sum(
                    float(centered_kernel_alignment(a[:size], b[:size], estimator=estimator))
                    for a, b in itertools.combinations(held, 2)
                )
                / len(random)
                for size in (10, 20, 50, 100, min(300, len(probe)))
            }
            for estimator in ("unbiased", "biased")
        }
        sizes = list(curves["biased"])
        table(
            ("CKA of untrained pairs, samples", *map(str, sizes)),
            [(name, *(of[size] for size in sizes)) for name, of in curves.items()],
        )
        profile_figure("CKA of untrained networks", curves, ("samples", "CKA")).savefig(given.figure)


if __name__ == "__main__":
    main()
