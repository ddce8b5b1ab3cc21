import pytest
import torch
from torch import nn

from lightning_sim.functional import fisher_rao_distance, fisher_rao_norm, task2vec, task2vec_similarity


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def classifier(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(18, 3)
    )
    return network.double().eval()


def fisher_matrix(network, x):
    """E_x sum_y p(y|x) (gradient of log p)(...)', by autograd for every sample and class."""
    parameters = list(network.parameters())
    total = 0
    for sample in x:
        log_probabilities = network(sample[None]).log_softmax(1)[0]
        for value in log_probabilities:
            gradients = torch.autograd.grad(value, parameters, retain_graph=True)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            total = total + value.exp().detach() * torch.outer(flat, flat)
    return total / len(x)


def flat(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


def test_norm_is_the_quadratic_form_of_the_fisher_matrix():
    network, x = classifier(), inputs(7, 1, 4, 4)
    expected = flat(network) @ fisher_matrix(network, x) @ flat(network)
    assert float(fisher_rao_norm(network, x)) == pytest.approx(float(expected.sqrt()), rel=1e-10)


def test_norm_of_a_homogeneous_network():
    torch.manual_seed(0)
    dense = [nn.Linear(*widths, bias=False) for widths in ((5, 8), (8, 8), (8, 4))]
    layers = [dense[0], nn.ReLU(), dense[1], nn.ReLU(), dense[2]]
    network, x = nn.Sequential(*layers).double().eval(), inputs(20, 5)
    logits = network(x).detach()
    p = logits.softmax(1)
    variance = (p * logits**2).sum(1) - (p * logits).sum(1) ** 2
    norm = float(fisher_rao_norm(network, x))
    assert norm == pytest.approx(3 * float(variance.mean().sqrt()), rel=1e-10)
    with torch.no_grad():  # the same function
        layers[0].weight *= 10
        layers[2].weight /= 10
    assert float(fisher_rao_norm(network, x)) == pytest.approx(norm, rel=1e-10)


def test_distance_is_the_quadratic_form_of_the_mean_fisher_matrix():
    a, b, x = classifier(0), classifier(1), inputs(7, 1, 4, 4)
    d = flat(b) - flat(a)
    expected = d @ (fisher_matrix(a, x) + fisher_matrix(b, x)) @ d / 2
    assert float(fisher_rao_distance(a, b, x)) == pytest.approx(float(expected.sqrt()), rel=1e-10)
    assert float(fisher_rao_distance(b, a, x)) == pytest.approx(float(expected.sqrt()), rel=1e-10)


def test_small_distances_are_those_between_the_predictions():
    a, b, x = classifier(0), classifier(0), inputs(50, 1, 4, 4)
    with torch.no_grad():
        for value in b.parameters():
            value += 1e-4 * inputs(*value.shape, seed=3)
        overlap = (a(x).softmax(1) * b(x).softmax(1)).sqrt().sum(1)
    # The geodesic distance of categorical distributions is 2 arccos of the Bhattacharyya coefficient.
    geodesic = (2 * overlap.clamp_max(1).arccos()).square().mean().sqrt()
    assert float(fisher_rao_distance(a, b, x)) == pytest.approx(float(geodesic), rel=1e-3)


def test_task2vec_is_the_diagonal_of_the_fisher_matrix():
    network, x = classifier(), inputs(7, 1, 4, 4)
    diagonal = fisher_matrix(network, x).diagonal()
    assert torch.allclose(task2vec(network, x, average_filters=False), diagonal, rtol=1e-9, atol=1e-14)
    parts = diagonal.split([value.numel() for value in network.parameters()])
    by_unit = [
        part.reshape(len(value), -1).mean(1) for part, value in zip(parts, network.parameters(), strict=True)
    ]
    assert torch.allclose(task2vec(network, x), torch.cat(by_unit), rtol=1e-9, atol=1e-14)


def test_task2vec_does_not_depend_on_the_chunks(monkeypatch):
    network, x = classifier(), inputs(7, 1, 4, 4)
    whole = task2vec(network, x)
    monkeypatch.setattr("lightning_sim._fisher._MOST_ENTRIES", 150)  # two of the three classes
    assert torch.allclose(task2vec(network, x), whole, rtol=1e-12)


def test_nothing_is_left_on_the_network():
    network, x = classifier(), inputs(7, 1, 4, 4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fisher_rao_norm(network, x)
    task2vec(network, x)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(value.grad is None for value in network.parameters())


def test_similarity_of_task_vectors():
    a, b = inputs(30).abs(), inputs(30, seed=1).abs()
    x, y = a / (a + b), b / (a + b)
    assert float(task2vec_similarity(a, b)) == pytest.approx(float(x @ y / x.norm() / y.norm()), rel=1e-12)
    plain = task2vec_similarity(3 * a, b, joint_normalization=False)
    assert float(plain) == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-12)
    assert float(task2vec_similarity(a, a)) == pytest.approx(1)
    a[3] = b[3] = 0
    assert torch.isfinite(task2vec_similarity(a, b))
    noise = a.clone(), b.clone()
    noise[0][3] = 1e-32  # the square of a rounding error
    assert float(task2vec_similarity(*noise)) == pytest.approx(float(task2vec_similarity(a, b)), rel=1e-12)
    with pytest.warns(UserWarning, match="is zero"):
        assert torch.isnan(task2vec_similarity(torch.zeros(3), torch.ones(3)))


def test_bad_arguments_are_refused():
    network, x = classifier(), inputs(7, 1, 4, 4)
    network[1].train()
    for measure in (fisher_rao_norm, task2vec):
        with pytest.raises(ValueError, match=r"evaluation mode, '1' is not"):
            measure(network, x)
    with pytest.raises(ValueError, match=r"samples, classes.*\(7, 2, 3, 3\)"):
        fisher_rao_norm(classifier()[0], x)
    other = classifier()
    other[4] = nn.Linear(18, 5).double().eval()
    with pytest.raises(ValueError, match=r"these differ: 4\.bias, 4\.weight"):
        fisher_rao_distance(classifier(), other, x)
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        task2vec_similarity(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match=r"`b`.*negative"):
        task2vec_similarity(torch.ones(3), -torch.ones(3))
