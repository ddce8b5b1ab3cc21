import numpy as np
import pytest
import torch

from lightning_sim.sketch import shared_subspace

from . import exact
from .data import related, sketched


def expected(x, y, count):
    """The definition, in float64 numpy, in the space of samples."""
    x, y = exact.centered(x), exact.centered(y)
    values, vectors = np.linalg.eigh(x @ x.T)
    values, vectors = values[::-1], vectors[:, ::-1][:, :count]
    moved = y @ (y.T @ vectors)
    lengths = np.linalg.norm(moved, axis=0)
    return (
        values[:count] / values.sum(),
        lengths / np.linalg.norm(y, 2) ** 2,
        (vectors * moved).sum(0) / lengths,
    )


def test_equals_the_definition_while_nothing_is_folded():
    x, y = related(120, 30, rank=10, correlation=0.7, seed=0, dtype=torch.float64)
    a, b = (sketched(z, num_buckets=128, dtype=torch.float64) for z in (x, y))
    found = shared_subspace(a, b, count=8)
    for mine, wanted in zip((found.variance, found.scaling, found.alignment), expected(x, y, 8), strict=True):
        assert np.allclose(mine, wanted, rtol=1e-9, atol=1e-12)


def test_directions_add_up_to_the_alignment_of_the_kernels():
    x, y = related(100, 30, rank=10, correlation=0.7, seed=0, dtype=torch.float64)
    a, b = (sketched(z, num_buckets=128, dtype=torch.float64) for z in (x, y))
    found = shared_subspace(a, b, count=100)
    kernel = np.linalg.eigvalsh(exact.centered(y).T @ exact.centered(y))
    own = np.linalg.eigvalsh(exact.centered(x).T @ exact.centered(x))
    inner = (found.variance * own.sum() * found.scaling * kernel.max() * found.alignment).sum()
    cka = float(inner) / np.linalg.norm(own) / np.linalg.norm(kernel)
    assert cka == pytest.approx(exact.cka_biased(x, y), abs=1e-9)


def test_a_network_with_itself_rotates_nothing():
    x, _ = related(100, 30, rank=10, correlation=0.7, seed=0, dtype=torch.float64)
    sketch = sketched(x, num_buckets=128, dtype=torch.float64)
    found = shared_subspace(sketch, sketch)
    assert np.allclose(found.alignment, 1, atol=1e-6)
    assert np.allclose(found.scaling, found.variance / found.variance[0], atol=1e-9)
    assert len(found.variance) == 30  # of 50 asked for, the layer has 30


def test_private_directions_are_scaled_to_nothing():
    generator = torch.Generator().manual_seed(0)
    columns = torch.linalg.qr(exact_columns(generator)).Q
    shared, private, theirs = columns[:, :3], columns[:, 3:6], columns[:, 6:9]
    own, other = torch.cat([2 * shared, private], dim=1), torch.cat([shared, theirs], dim=1)
    a, b = (sketched(z, num_buckets=128, dtype=torch.float64) for z in (own, other))
    assert np.allclose(shared_subspace(a, b).scaling, [1, 1, 1, 0, 0, 0], atol=1e-9)


def exact_columns(generator):
    columns = torch.randn(80, 9, generator=generator, dtype=torch.float64)
    return columns - columns.mean(0)


def test_leading_directions_survive_folding_and_collisions():
    x, y = related(700, 3000, rank=5, correlation=0.7, seed=0)
    found = shared_subspace(sketched(x, num_buckets=512), sketched(y, num_buckets=512), count=3)
    _, scaling, alignment = expected(x, y, 3)
    assert np.allclose(found.scaling, scaling, atol=0.1)
    assert np.allclose(found.alignment, alignment, atol=0.1)


def test_the_plot_shows_every_direction():
    x, y = related(100, 30, rank=10, correlation=0.7, seed=0)
    found = shared_subspace(sketched(x, num_buckets=128), sketched(y, num_buckets=128), count=12)
    figure = found.plot()
    figure.canvas.draw()
    lines = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    assert np.allclose(lines["by the other"].get_ydata(), found.scaling)
    assert np.allclose(figure.axes[1].lines[0].get_ydata(), found.alignment)


def test_what_cannot_be_compared_is_refused():
    x, y = related(100, 30, rank=10, correlation=0.7, seed=0)
    with pytest.raises(ValueError, match=r"`count`.*0"):
        shared_subspace(sketched(x), sketched(y), count=0)
    with pytest.raises(ValueError, match=r"`count` must be an integer, at least 1, got 2\.5"):
        shared_subspace(sketched(x), sketched(y), count=2.5)
    with pytest.raises(ValueError, match="different samples"):
        shared_subspace(sketched(x), sketched(y[1:]))
    with pytest.raises(ValueError, match="sketch `b` is constant"):
        shared_subspace(sketched(x), sketched(torch.ones(100, 3)))
