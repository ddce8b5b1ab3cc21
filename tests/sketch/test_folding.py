"""That the fused fold is only used where it gives what the loop gives; a function stands in for the kernel."""

import warnings

import pytest
import torch

from lightning_sim.sketch import folding
from lightning_sim.sketch.hashing import column_signs


@pytest.fixture
def kernel(monkeypatch):
    """What has been given to a kernel for the CPU, and how wrong its sums are."""

    class Kernel:
        def __init__(self):
            self.calls, self.error, self.failure = 0, 0.0, None

        def __call__(self, x, columns, indices, seed):
            self.calls += 1
            if self.failure is not None:
                raise self.failure
            return defined(x, columns, indices, seed) + self.error

    kernel = Kernel()
    monkeypatch.setattr(folding, "_FUSED_ON", ("cpu",))
    monkeypatch.setattr(folding, "_agrees", {})
    monkeypatch.setattr(folding, "_fused", kernel)
    return kernel


def defined(x, columns, indices, seed):
    """Column j with its sign is added to column j mod c, in float64."""
    signed = x.double() * column_signs(x.shape[1], indices, seed, x.device, torch.float64)
    sums = torch.zeros(len(indices), len(x), columns, dtype=torch.float64)
    return sums.index_add_(2, torch.arange(x.shape[1]) % columns, signed).float()


def folded(x):
    return folding.fold_into(x, 32, (0, 1), 0, torch.float32)


def test_a_kernel_that_agrees_on_the_first_batch_is_used_from_then_on(kernel):
    x = torch.randn(7, 1000)
    for calls in (1, 2, 3):
        torch.testing.assert_close(folded(x), defined(x, 32, (0, 1), 0))
        assert kernel.calls == calls
    kernel.error = 1.0
    assert float((folded(x) - defined(x, 32, (0, 1), 0)).min()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("failure", [None, RuntimeError("no compiler")])
def test_a_kernel_that_is_wrong_or_fails_is_left_after_one_warning(kernel, failure):
    kernel.error, kernel.failure = 0.01, failure
    x = torch.randn(7, 1000)
    reason = "no compiler" if failure else "off by 1.0e-02 for torch.float32 on cpu"
    with pytest.warns(RuntimeWarning, match=reason) as warned:
        torch.testing.assert_close(folded(x), defined(x, 32, (0, 1), 0))
    assert len(warned) == 1
    torch.testing.assert_close(folded(x), defined(x, 32, (0, 1), 0))
    assert kernel.calls == 1


def test_every_precision_is_judged_by_itself_and_not_by_what_is_not_finite(kernel):
    x = torch.randn(7, 1000)
    broken = x.clone()
    broken[0, 0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded(broken)
    assert kernel.calls == 0
    folded(x)
    kernel.error = 1.0
    with pytest.warns(RuntimeWarning, match="off by 1.0e\\+00 for torch.bfloat16"):
        folded(x.bfloat16())
