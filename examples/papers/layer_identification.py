"""Which measure finds the same layer in a network of another seed? Table 2 of Kornblith et al. 2019.

For every layer of one network the most similar layer of another is looked for; right is the one at the same place. All
layers after their ReLU, and the mean over positions; logits excluded. Values in percent, with the standard error of the
jackknife over networks, which sees that pairs share networks.

Run: python examples/papers/layer_identification.py FOLDER
"""

import itertools
from collections.abc import Callable
from functools import partial

import torch
from material import SMALL, Network, cifar10, digits, features, jackknife, run, table, tiny10, trained
from torch import Tensor

from lightning_sim import Sketch
from lightning_sim.figures import Heatmap, heatmap_figure
from lightning_sim.functional import (
    canonical_correlation,
    centered_kernel_alignment,
    hsic,
    linear_regression_r2,
    normalized_bures_similarity,
    pwcca,
    svcca,
)
from lightning_sim.sketch import alignments

rbf = partial(centered_kernel_alignment, kernel="rbf", estimator="biased")
MEASURES = {  # of two representations, with the paper's percentage
    "CKA RBF 0.2": (partial(rbf, bandwidth=0.2), 80.6),
    "CKA RBF 0.4": (partial(rbf, bandwidth=0.4), 99.1),
    "CKA RBF 0.8": (partial(rbf, bandwidth=0.8), 99.3),
    "linear HSIC": (partial(hsic, estimator="biased"), 22.2),
    "CCA, mean": (canonical_correlation, 1.4),
    "CCA, mean squared": (partial(canonical_correlation, summary="mean_squared"), 10.6),
    "SVCCA, mean": (svcca, 9.9),
    "SVCCA, mean squared": (partial(svcca, summary="mean_squared"), 15.1),
    "PWCCA": (pwcca, 11.1),
    "linear regression": (linear_regression_r2, 45.4),
    "NBS": (normalized_bures_similarity, "-"),
}
ASYMMETRIC = ("PWCCA", "linear regression")


def rotated(x: Tensor) -> Tensor:
    """Centred, in at most as many coordinates as samples, which none of these measures can tell from the original.

    But PWCCA, which reads 1 of any two layers that have as many.
    """
    x = x - x.mean(0)
    return x if x.shape[1] <= len(x) else torch.linalg.qr(x.T, mode="r").R.T


def similarities(layers: list[list[Tensor]], measure: Callable[[Tensor, Tensor], Tensor], symmetric: bool) -> Tensor:
    """Of every layer with every layer of the other networks, (networks, networks, layers, layers); NaN in itself."""
    count, depth = len(layers), len(layers[0])
    values = torch.full((count, count, depth, depth), torch.nan)
    for a, b in itertools.permutations(range(count), 2):
        if symmetric and a > b:
            values[a, b] = values[b, a].T
        else:
            values[a, b] = torch.tensor([[float(measure(x, y)) for y in layers[b]] for x in layers[a]])
    return values


def identified(values: Tensor) -> tuple[float, float]:
    """The share of layers that find their counterpart and its standard error over networks, in percent."""
    count, _, depth, _ = values.shape
    right = (values.argmax(3) == torch.arange(depth)).double().mean(2) * 100

    def share(kept: list[int]) -> float:
        inside = right[kept][:, kept]
        return float((inside.sum() - inside.diagonal().sum()) / (len(kept) * (len(kept) - 1)))

    return jackknife(share, count)


def main() -> None:
    with run(__file__, __doc__) as given:
        if given.data:
            networks, (images, _) = tiny10(given.data, 10), cifar10(given.data, "test", 1024)
            exact, fewer, more = 1024, 288, 768
        else:
            training, (images, _) = digits()
            networks = [trained(partial(Network, SMALL), training, 2, seed) for seed in range(3)]
            exact, fewer, more = 128, 32, 96
        names = networks[0].layers
        held = [features(network, images[:exact], names) for network in networks]

        sketches = []
        for x in (rotated(layer) for network in held for layer in network):
            sketches.append(Sketch(num_buckets=exact, num_projections=exact))
            sketches[-1].update(x, torch.arange(len(x)))
        count, depth = len(networks), len(names)
        counterparts = [(layer, depth + layer) for layer in range(depth)]
        rows = []
        for estimator, paper in (("biased", 99.3), ("unbiased", "-")):
            found = alignments(sketches, sketches, estimator=estimator, pairs=counterparts)
            values = found.values.view(count, depth, count, depth).transpose(1, 2)
            share, error = identified(values)
            rows.append([f"CKA linear, {estimator}", paper, f"{share:.1f} ± {error:.1f}", count, exact])
        between = ~torch.eye(count, dtype=torch.bool)
        taken_for = torch.nn.functional.one_hot(values[between].argmax(2), depth).double().mean(0)

        short = identified(values[:, :, :-1, :-1])[0]
        print(f"unbiased CKA without the mean over positions: {short:.1f} %; {names[-2]} is taken for the mean over")
        print(f"positions in {taken_for[-2, -1]:.0%} of pairs of networks\n")
        print("unbiased CKA of the first two networks, with standard errors over samples and the deviation by chance\n")
        errors, chance = found.standard_errors, found.chance_deviations
        table(
            ("layer", "CKA", "standard error", "by chance"),
            [
                (name, float(found.values[i, j]), float(errors[i, j]), f"0 ± {float(chance[i, j]):.4f}")
                for name, (i, j) in zip(names, counterparts, strict=True)
            ],
        )
        header = ("measure", "paper", "here", "networks", "samples")
        print(f"\nLayers identified, percent; by chance {100 / depth:.1f}\n")
        table(header, rows)
        labels = ("layer", "taken for")
        heatmap = Heatmap(taken_for.float().numpy(), names, names, "Found by unbiased CKA", 0, 1, labels)
        heatmap_figure(heatmap).savefig(given.figure)

        layers = {size: [[rotated(x[:size]) for x in network] for network in held[:3]] for size in (fewer, more)}
        for name, (measure, paper) in MEASURES.items():
            # With as few samples as the components that hold 99 % of the variance SVCCA would not be what it is.
            size = more if name.startswith("SVCCA") else fewer
            share, error = identified(similarities(layers[size], measure, symmetric=name not in ASYMMETRIC))
            rows.append([name, paper, f"{share:.1f} ± {error:.1f}", 3, size])
        table(header, rows[2:])


if __name__ == "__main__":
    main()
