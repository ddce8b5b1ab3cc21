import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression

from lightning_sim.sketch import Sketch, kernel_ridge_regression

from .data import related, sketched


def regression(x, y, *, regularization=0.1, **settings):
    return kernel_ridge_regression(sketched(x, **settings), sketched(y, **settings), regularization=regularization)


@pytest.mark.parametrize(("samples", "width"), [(100, 20), (100, 300)])
@pytest.mark.parametrize("regularization", [1e-3, 1.0])
def test_equals_kernel_ridge_regression_while_nothing_is_folded(samples, width, regularization):
    x, y = related(samples + 30, width, rank=8, correlation=0.7, seed=0, dtype=torch.float64)
    y, new = y[:samples, :5], x[samples:]
    x = x[:samples]
    fitted = regression(
        x, y, regularization=regularization, num_buckets=128, num_projections=512, dtype=torch.float64
    )
    mean, label_mean = x.mean(0), y.mean(0)
    kernel = ((x - mean) @ (x - mean).T).numpy()
    ridge = KernelRidge(alpha=regularization * np.trace(kernel) / samples, kernel="precomputed")
    ridge.fit(kernel, (y - label_mean).numpy())
    expected = ridge.predict(((new - mean) @ (x - mean).T).numpy()) + label_mean.numpy()
    assert np.allclose(fitted.predict(new), expected, rtol=1e-8, atol=1e-10)


@pytest.fixture(scope="module")
def digit_layer():
    """A wide random convolution of scikit-learn's digits, 1347 to learn from and 450 by other writers."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    kernels = torch.randn(40, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    layer = torch.relu(torch.nn.functional.conv2d(images, kernels, padding=1)).flatten(1)
    return layer, torch.tensor(labels)


@pytest.mark.parametrize(("sizes", "tolerance"), [((1024, 1024), 0.03), ((512, 1024), 0.05)])
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # as closely as scikit-learn 1.3 measures it
def test_accuracy_on_digits_is_near_that_of_a_linear_probe(digit_layer, sizes, tolerance):
    layer, labels = digit_layer  # 2560 wide: folded; 1347 samples: they share buckets
    settings = dict(zip(("num_buckets", "num_projections"), sizes, strict=True))
    fitted = regression(layer[:1347], torch.nn.functional.one_hot(labels[:1347]).float(), **settings)
    accuracy = float((fitted.predict(layer[1347:]).argmax(1) == labels[1347:]).float().mean())
    probe = LogisticRegression(max_iter=300, tol=1e-3).fit(layer[:1347].numpy(), labels[:1347].numpy())
    assert accuracy >= probe.score(layer[1347:].numpy(), labels[1347:].numpy()) - tolerance


def test_features_may_have_any_shape():
    x, y = related(60, 12, rank=3, correlation=0.5, seed=0)
    fitted = regression(x.reshape(60, 3, 2, 2), y)
    assert torch.equal(fitted.predict(x.reshape(60, 3, 2, 2)), fitted.predict(x))
    with pytest.raises(ValueError, match=r"width 12.*\(60, 11\)"):
        fitted.predict(x[:, 1:])


def test_what_does_not_fit_is_refused():
    x, y = related(60, 12, rank=3, correlation=0.5, seed=0)
    with pytest.raises(ValueError, match="different samples"):
        kernel_ridge_regression(sketched(x), sketched(y[1:]))
    with pytest.raises(ValueError, match="`seed`"):
        kernel_ridge_regression(sketched(x), sketched(y, seed=1))
    with pytest.raises(ValueError, match=r"`regularization`.*0"):
        regression(x, y, regularization=0)
    with pytest.raises(ValueError, match=r"12 columns.*folded into 8"):
        regression(x, y, num_projections=8)
    with pytest.raises(ValueError, match="labels is constant"):
        regression(x, torch.ones(60, 2))
    with pytest.raises(ValueError, match="features holds NaN"):
        regression(x * torch.nan, y)
    with pytest.raises(ValueError, match="at least 4 samples"):
        kernel_ridge_regression(Sketch(), Sketch())
    with pytest.raises(ValueError, match="`regularization` must be a finite number, got 'a little'"):
        regression(x, y, regularization="a little")
