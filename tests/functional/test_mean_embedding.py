import numpy as np
import pytest
import torch

from lightning_sim.functional import kernel_mean_embedding_norm


def data(samples=40, width=6, seed=0):
    return torch.randn(samples, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5


def kernel(*factors):
    return np.prod([np.asarray(z) @ np.asarray(z).T for z in factors], axis=0)


def test_of_features_is_the_length_of_their_mean():
    x = data()
    assert float(kernel_mean_embedding_norm(x)) == pytest.approx(np.linalg.norm(x.numpy().mean(0)), rel=1e-12)


def test_with_gradients_is_the_norm_of_a_linear_layers_gradient():
    inputs, targets = data(30, 5).float(), torch.arange(30) % 3
    layer = torch.nn.Linear(5, 3, bias=False)
    loss = torch.nn.functional.cross_entropy(layer(inputs), targets)
    (gradient,) = torch.autograd.grad(loss, layer.weight)
    logits = layer(inputs).detach().requires_grad_()
    (per_sample,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"), logits)
    assert float(kernel_mean_embedding_norm(inputs, per_sample)) == pytest.approx(float(gradient.norm()), rel=1e-5)


@pytest.mark.parametrize("factors", [(data(),), (data(), data(width=3, seed=1))])
def test_normalised_forms(factors):
    k = kernel(*factors)
    n = len(k)
    by_diagonal = np.sqrt(k.mean() / np.diag(k).mean())
    ones = np.ones((n, n))
    by_frobenius = (k * ones).sum() / np.linalg.norm(k) / np.linalg.norm(ones)
    for normalization, expected in (("diagonal", by_diagonal), ("frobenius", by_frobenius)):
        value = kernel_mean_embedding_norm(*factors, normalization=normalization)
        assert float(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("normalization", ["diagonal", "frobenius"])
def test_normalised_forms_ignore_scale_and_read_one_for_equal_samples(normalization):
    x = data()
    value = kernel_mean_embedding_norm(x, normalization=normalization)
    scaled = kernel_mean_embedding_norm(x * 1e200, normalization=normalization)
    assert float(scaled) == pytest.approx(float(value), rel=1e-9)
    assert float(kernel_mean_embedding_norm(torch.ones(5, 3), normalization=normalization)) == pytest.approx(1)
    with pytest.warns(UserWarning, match="every sample is zero"):
        assert torch.isnan(kernel_mean_embedding_norm(torch.zeros(5, 3), normalization=normalization))


def test_unrelated_samples_read_as_the_docstring_says():
    values = [
        float(kernel_mean_embedding_norm(data(100, 400, seed) - 0.5, normalization="diagonal")) for seed in range(20)
    ]
    assert np.mean(values) == pytest.approx(100**-0.5, rel=0.02)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`normalization`"):
        kernel_mean_embedding_norm(data(), normalization="trace")
    with pytest.raises(ValueError, match="`features` and `gradients`"):
        kernel_mean_embedding_norm(data(), data(30))
    with pytest.raises(ValueError, match="`features`"):
        kernel_mean_embedding_norm(data()[0])
