"""Can networks with the same features say the opposite? Table 4.1 of a study of feature against output similarity.

A frozen network's features tell airplanes from automobiles (of digits: 0 from 1). The head of one side learns the right
labels, that of the other the wrong ones, from the same features, and then loses a share of its weights, drawn at
random. Features cannot tell the two sides apart, by construction. The paper's text calls the ratio the unmasked share,
but its table fits the masked one, which is taken here.

Run: python examples/papers/same_features_opposite_outputs.py FOLDER
"""

from functools import partial

import torch
from material import SMALL, Network, cifar10, digits, features, run, table, tiny10, trained
from torch import Tensor, nn

from lightning_sim.functional import estimate, permutation_null
from lightning_sim.stitching.study import profile_figure

PAPER = {0.0: (0.59, -0.95, 0.977), 0.5: (0.53, -0.91, 0.964), 0.8: (0.41, -0.81, 0.935), 0.9: (0.29, -0.70, 0.895)}
DRAWS = 20  # of masks


def two_classes(samples: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    kept = samples[1] < 2
    return samples[0][kept], samples[1][kept]


def main() -> None:
    with run(__file__, __doc__) as given:
        if given.data:
            network, layer = tiny10(given.data, 1)[0], "relu8"
            fit, test = cifar10(given.data, "train", 10_000), cifar10(given.data, "test", 4000)
        else:
            fit, test = digits()
            network, layer = trained(partial(Network, SMALL), fit, 3, 0), "relu4"
        (x, labels), (y, right) = (
            (features(network, images, [layer])[0], classes) for images, classes in map(two_classes, (fit, test))
        )
        x, y = (z / x.std() for z in (x, y))
        width = x.shape[1]
        head = trained(lambda: nn.Linear(width, 2), (x, labels), 30, 0, rate=1e-3)
        opposite = trained(lambda: nn.Linear(width, 2), (x, 1 - labels), 30, 1, rate=1e-3)
        cka = estimate(y, y @ torch.linalg.qr(torch.randn(width, width)).Q)
        print(f"CKA of the features, one side turned at random: {cka.value:.3f} ± {cka.standard_error:.3f}")
        print(f"(paper .99), {len(y)} samples, {width} features; masks: mean of {DRAWS} draws\n")
        rows, curve, draw = [], {}, torch.Generator().manual_seed(0)
        with torch.no_grad():
            logits = head(y)
            for share, paper in PAPER.items():
                found = []
                for _ in range(DRAWS):
                    kept = torch.randperm(width, generator=draw) >= round(share * width)
                    masked = (y * kept) @ opposite.weight.T + opposite.bias
                    divergence, rank = (estimate(logits, masked, measure=m) for m in ("jsd", "rank_correlation"))
                    chance = permutation_null(logits, masked, measure="jsd").mean
                    correct = float((masked.argmax(1) == 1 - right).float().mean())
                    found.append([*divergence, chance, *rank, correct])
                jsd, error, chance, rank, rank_error, correct = torch.tensor(found).mean(0).tolist()
                curve[share] = jsd
                values = f"{jsd:.3f} ± {error:.3f}", chance, paper[1], f"{rank:.3f} ± {rank_error:.3f}"
                rows.append([share, paper[0], *values, paper[2], correct])
        header = ("masked", "JSD, paper", "JSD", "JSD by chance", "rank, paper", "rank")
        table((*header, "accuracy, paper", "accuracy at the wrong labels"), rows)
        print(
            f"accuracy of the other side at the right labels: {float((logits.argmax(1) == right).float().mean()):.3f}"
        )
        curves = {"here": curve, "paper": {share: of[0] for share, of in PAPER.items()}}
        profile_figure("Same features, opposite outputs", curves, ("masked share", "JSD")).savefig(given.figure)


if __name__ == "__main__":
    main()
