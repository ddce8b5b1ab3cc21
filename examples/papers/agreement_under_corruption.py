"""Which similarity says how far networks agree, clean, corrupted and attacked? Figure 3 of the wCKA paper.

The protocol, fixed before the first run; which correlation is found depends on the pool of networks:

- pool "seeds": 16 trained networks that differ in nothing but their seed, on CIFAR-10; pool "budgets": 16 dense
  networks 784-32x4-3 of as many seeds, trained on the digits 0 to 2 for 1, 3, 10 or 30 epochs, on MNIST;
- 512 images: agreement of all pairs, clean, under six corruptions of MNIST-C at its severities, and under four attacks
  (within 8/255, on MNIST 0.1; noise 0.1), which every network suffers as they are crafted on itself;
- on the clean images: similarity of the last hidden layer by unbiased CKA, NBS (of which Procrustes' distance is a
  function, sqrt(2 - 2 NBS), so that their ranks are the same) and dCKA; and wCKA of the whole network, from weights
  alone: the paper's for the dense chains, with open gates for the others;
- rank correlation over pairs of similarity and agreement, "corrupted" and "attacked" for its mean over these.
  Intervals are by the jackknife over networks, since pairs share them. Added after the first run: by how much other
  measures correlate more than wCKA.

What agreement on one half of the images says of that on the other is as much as any measure can be asked to say.

Run: python examples/papers/agreement_under_corruption.py FOLDER
"""

import itertools
import statistics
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.stats
import torch
from material import (
    DEVIATION,
    MEAN,
    SMALL,
    Network,
    Pairs,
    Samples,
    cifar10,
    correlated,
    dense,
    digits,
    features,
    mnist,
    over_networks,
    run,
    spearman,
    table,
    tiny10,
    trained,
)
from torch import Tensor, nn

from lightning_sim.conditions import Attack, Corruption
from lightning_sim.figures import Heatmap, heatmap_figure
from lightning_sim.functional import (
    centered_kernel_alignment,
    deconfounded_centered_kernel_alignment,
    error_consistency,
    estimate,
    normalized_bures_similarity,
    open_gate_alignment,
    open_gate_kernels,
    permutation_null,
    prediction_agreement,
    weight_centered_kernel_alignment,
)

CORRUPTIONS = ("shot_noise", "impulse_noise", "motion_blur", "fog", "rotate", "translate")
ATTACKS = ("noise", "fgsm", "fast_fgsm", "pgd")


def outputs(networks: list[nn.Module], samples: Samples, pixels: dict[str, list[float]], epsilon: float | None) -> dict:
    """Logits of every network under every condition; attacks are crafted on the network that suffers them."""
    images, labels = samples
    ids = torch.arange(len(images))
    seen = {"clean": images} | {kind: Corruption(kind, **pixels)(images, ids) for kind in CORRUPTIONS}
    found = {kind: [features(network, of, [""])[0] for network in networks] for kind, of in seen.items()}
    for kind in ATTACKS:
        attack = Attack(kind, epsilon, **pixels)
        found[kind] = [features(network, attack(network, (images, labels))[0], [""])[0] for network in networks]
    return found


@torch.no_grad()
def similar(networks: list[nn.Module], layer: str, images: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    """Of every pair by every measure."""
    held = [features(network, images, [layer])[0] for network in networks]
    measures: dict[str, Callable[[int, int], Tensor]] = {
        "CKA": lambda a, b: centered_kernel_alignment(held[a], held[b]),
        "dCKA": lambda a, b: deconfounded_centered_kernel_alignment(held[a], held[b], images.flatten(1)),
        "NBS, Procrustes": lambda a, b: normalized_bures_similarity(held[a], held[b]),
        "wCKA": lambda a, b: weight_centered_kernel_alignment(networks[a], networks[b])[-1, -1],
    }
    if isinstance(networks[0], Network):
        kernels = [open_gate_kernels(net, input_shape=images.shape[1:], layers=["fc"]) for net in networks]
        measures["wCKA"] = lambda a, b: open_gate_alignment(kernels[a], kernels[b])[0].squeeze()
    return {name: torch.stack([measure(a, b) for a, b in pairs]).double() for name, measure in measures.items()}


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]" if values else "-"


def report(logits: dict[str, list[Tensor]], labels: Tensor, pairs: Pairs) -> dict[str, Tensor]:
    """Agreement of every pair under every condition, printed beside what chance would give."""
    agreements, rows = {}, []
    for condition, of in logits.items():
        found = [estimate(of[a], of[b], measure="agreement") for a, b in pairs]
        chance = [permutation_null(of[a], of[b], measure="agreement").mean for a, b in pairs]
        kappas = [float(error_consistency(of[a], of[b], labels).value) for a, b in pairs]
        accuracies = [float((one.argmax(1) == labels).float().mean()) for one in of]
        halves = [
            torch.stack([prediction_agreement(of[a][half::2], of[b][half::2]) for a, b in pairs]) for half in (0, 1)
        ]
        agreements[condition] = torch.stack([value for value, _ in found]).double()
        error = statistics.mean(float(error) for _, error in found)
        rows.append(
            [
                condition,
                spread(accuracies),
                f"{spread(agreements[condition].tolist())} ± {error:.3f}",
                statistics.mean(chance),
                spread([kappa for kappa in kappas if kappa == kappa]),
                interval(correlated(*halves, pairs)),
            ]
        )
    table(("condition", "accuracy", "agreement", "by chance", "error consistency", "halves of the images"), rows)
    return agreements


def lead(a: Tensor, b: Tensor, of: Tensor, pairs: Pairs) -> tuple[float, float, float]:
    """By how much one measure correlates more than another, with its interval."""
    return over_networks(lambda rows: spearman(a[rows], of[rows]) - spearman(b[rows], of[rows]), pairs)


def interval(found: tuple[float, ...]) -> str:
    return "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def kendall(a: Tensor, b: Tensor) -> float:
    return float(scipy.stats.kendalltau(a.numpy(), b.numpy()).statistic)


def main() -> None:
    with run(__file__, __doc__) as given:
        warnings.filterwarnings("ignore", message="both networks are")  # kappa is left out there
        normalised = {"mean": MEAN.flatten().tolist(), "std": DEVIATION.flatten().tolist()}
        if given.data:
            count, budgets, (fit, held_out) = 16, (1, 3, 10, 30), mnist(given.data)
            seeds = tiny10(given.data, count), cifar10(given.data, "test", 512), normalised, None
        else:
            count, budgets, (fit, held_out) = 6, (4, 12), digits()
            networks = [trained(partial(Network, SMALL), fit, 1 + seed % 2, seed) for seed in range(count)]
            seeds = networks, [part[:150] for part in held_out], {}, 0.1
        (images, labels), few = ([part[samples[1] < 3] for part in samples] for samples in (fit, held_out))
        make = partial(dense, images[0].numel())
        chains = [
            trained(make, (images, labels), budgets[seed % len(budgets)], seed, rate=1e-3) for seed in range(count)
        ]
        pools = {"seeds": ("pool", *seeds), "budgets": ("7", chains, [part[:512] for part in few], {}, 0.1)}

        pairs = list(itertools.combinations(range(count), 2))
        rows, leads, names, grid, chance = [], [], [], [], []
        for pool, (layer, networks, samples, pixels, epsilon) in pools.items():
            print(f"\npool {pool}: {len(pairs)} pairs of {count} networks, {len(samples[0])} images;")
            print("mean [lowest, highest] ± standard error of one; halves: their rank correlation over pairs\n")
            agreements = report(outputs(networks, samples, pixels, epsilon), samples[1], pairs)
            groups = {"clean": ["clean"], "corrupted": CORRUPTIONS, "attacked": ATTACKS, "all": list(agreements)}
            means = {
                group: torch.stack([agreements[kind] for kind in kinds]).mean(0) for group, kinds in groups.items()
            }
            similarities = similar(networks, layer, samples[0], pairs)
            for name, values in similarities.items():
                cells = [interval(correlated(values, mean, pairs)) for mean in means.values()]
                last = interval(correlated(values, means["all"], pairs, kendall))
                rows.append([pool, name, spread(values.tolist()), *cells, last])
                ahead = [interval(lead(values, similarities["wCKA"], mean, pairs)) for mean in means.values()]
                leads += [] if name == "wCKA" else [[pool, name, *ahead]]
                found = np.array([correlated(values, of, pairs) for of in agreements.values()])
                names.append(f"{pool}: {name}")
                grid.append(found[:, 0])
                chance.append((found[:, 1] < 0) & (found[:, 2] > 0))
        print("Correlation with agreement: Spearman's, and of all conditions together Kendall's [95 % interval]\n")
        table(("pool", "measure", "similarity", *groups, "all, Kendall"), rows)
        print("Spearman's less that of wCKA [95 % interval]\n")
        table(("pool", "measure", *groups), leads)
        title, labels_of_axes = "Rank correlation of similarity and agreement", ("pool: measure", "condition")
        shown = Heatmap(np.array(grid), names, list(agreements), title, -1, 1, labels_of_axes, np.array(chance))
        heatmap_figure(shown).savefig(given.figure)


if __name__ == "__main__":
    main()
