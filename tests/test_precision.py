"""CKA is computed in full precision under any switch for less, and the switches are left as they were."""

import pytest
import torch

from lightning_sim._precision import full_precision
from tests.sketch import exact
from tests.sketch.data import related, sketched

SWITCHES = [part.matmul for part in (torch.backends.cuda, torch.backends.mkldnn) if hasattr(part, "matmul")]
SWITCHES = [switch for switch in SWITCHES if hasattr(switch, "fp32_precision")]  # since torch 2.9


def older(value):
    return lambda: torch.set_float32_matmul_precision(value)


def newer(switch, value):
    return lambda: setattr(switch, "fp32_precision", value)


WAYS = {f"older {value}": older(value) for value in ("highest", "high", "medium")}
if SWITCHES:
    WAYS |= {"newer cuda": newer(SWITCHES[0], "tf32"), "newer for all": newer(torch.backends, "tf32")}
    WAYS |= {"newer mkldnn": newer(SWITCHES[-1], "bf16")}


def state():
    found = [switch.fp32_precision for switch in SWITCHES]
    try:
        return [*found, torch.get_float32_matmul_precision()]
    except RuntimeError:  # of torch, where the newer switches were used
        return found


@pytest.fixture(autouse=True)
def switches_put_back():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)
    for switch in [torch.backends, *SWITCHES] if SWITCHES else []:
        switch.fp32_precision = "none"  # as when torch was imported: as the one for all, which is as it likes


@pytest.mark.parametrize("way", WAYS)
def test_any_switch_gives_the_same_value_and_is_put_back(way):
    x, y = related(500, 60, rank=20, correlation=0.7, seed=0)
    WAYS[way]()
    before = state()
    assert float(sketched(x).cka(sketched(y))) == pytest.approx(exact.cka_unbiased(x, y), abs=1e-6)
    with full_precision(torch.device("cpu")):
        assert all(switch.fp32_precision == "ieee" for switch in SWITCHES)
        product = x.T @ x
    assert torch.allclose(product.double(), x.double().T @ x.double(), rtol=1e-5)
    assert state() == before


def test_a_switch_that_followed_the_one_for_all_still_does():
    for value in ("tf32", "ieee") if SWITCHES else ():
        torch.backends.fp32_precision = value
        with full_precision(torch.device("cpu")):
            pass
        assert {switch.fp32_precision for switch in SWITCHES} == {value}


def test_switches_are_put_back_after_an_error():
    before = state()
    with pytest.raises(RuntimeError, match="inside"), full_precision(torch.device("cpu")):
        raise RuntimeError("inside")
    assert state() == before
