"""Which network and which data are features of? Section 3.1 of a study of feature against output similarity.

A linear support vector machine reads from one sample's features both the network and the set of pictures. Images that
it learns from are not those it is asked about. Features are normalised over all networks and sets together: to
normalise each set by itself would take away the means that tell them apart, as the second row shows.

Run: python examples/papers/which_network_which_data.py FOLDER
"""

import itertools
from functools import partial

import torch
from material import SMALL, Network, as_cifar10, cifar10, digits, features, mnist, run, table, tiny10, trained
from sklearn.svm import LinearSVC
from torch import Tensor

from lightning_sim.figures import Heatmap, heatmap_figure
from lightning_sim.functional import estimate, permutation_null


def read(held: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Of features (networks, sets, samples, p), the places that are right and those that are read, (questions,)."""
    count, sets, _, width = held.shape
    place = torch.arange(count * sets)
    flat = held.reshape(count * sets, -1, width)
    fit, asked = flat[:, :samples], flat[:, samples:]
    machine = LinearSVC(C=0.1, dual=False).fit(fit.reshape(-1, width), place.repeat_interleave(fit.shape[1]))
    found = machine.predict(asked.reshape(-1, width))
    return place.repeat_interleave(asked.shape[1]), torch.from_numpy(found)


def main() -> None:
    with run(__file__, __doc__) as given:
        if given.data:
            networks, samples, asked = tiny10(given.data, 6), 400, 200
            grey = {"MNIST": mnist(given.data)[0][0], "digits": digits()[0][0]}
            pictures = {"CIFAR-10": cifar10(given.data, "test", samples + asked)[0]}
            pictures |= {name: as_cifar10(images[: samples + asked]) for name, images in grey.items()}
        else:
            (images, labels), (upright, _) = digits()
            networks = [trained(partial(Network, SMALL), (images, labels), 2, seed) for seed in range(3)]
            samples, asked = 150, 50
            pictures = {
                "upright": upright[:200],
                "turned": upright[:200].rot90(1, (2, 3)),
                "inverted": 1 - upright[:200],
            }
        sets, count = len(pictures), len(networks)
        held = torch.stack(
            [
                torch.stack([features(network, images, ["pool"])[0] for images in pictures.values()])
                for network in networks
            ]
        )
        names = [f"{index}, {name}" for index in range(count) for name in pictures]
        confusions, rows = [], []
        for how, over in (("together", (0, 1, 2)), ("each by itself", (2,))):
            spread, mean = torch.std_mean(held[:, :, :samples], dim=over, keepdim=True)
            right, found = read((held - mean) / spread.clamp_min(1e-6), samples)
            network, data = right // sets == found // sets, right % sets == found % sets
            both = network & data
            error = float((both.double().mean() * (1 - both.double().mean()) / len(both)).sqrt())
            kept = float(network[~both].double().mean())
            shares = [float(share.double().mean()) for share in (both, network, data)]
            confusions.append(torch.zeros(len(names), len(names)))
            confusions[-1].index_put_((right, found), torch.tensor(1 / asked), accumulate=True)
            rows.append([how, f"{shares[0]:.3f} ± {error:.3f}", *shares[1:], kept])
        print(f"{count} networks, {sets} sets, {len(right)} questions; by chance {1 / (count * sets):.3f} for both,")
        print(f"{1 / count:.3f} for the network, {1 / sets:.3f} for the data; paper: network before data\n")
        table(("normalised", "both right", "network right", "data right", "errors that keep the network"), rows)

        rows = []
        for index, name in enumerate(pictures):
            pairs = [held[[a, b], index] for a, b in itertools.combinations(range(count), 2)]
            values = torch.tensor([list(estimate(x, y)) for x, y in pairs]).mean(0)
            rows.append([name, f"{values[0]:.3f} ± {values[1]:.3f}", str(permutation_null(*pairs[0]))])
        print("CKA does not see what tells networks apart, the axes of their features: mean over pairs\n")
        table(("data", "CKA between networks", "of the first two, beside samples paired at random"), rows)
        heatmap = Heatmap(
            confusions[0].numpy(), names, names, "Which network, which data", 0, 1, ("is", "is taken for")
        )
        heatmap_figure(heatmap).savefig(given.figure)


if __name__ == "__main__":
    main()
