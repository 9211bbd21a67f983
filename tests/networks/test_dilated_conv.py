"""Dilated convolutions see exactly the samples they state, and say the same at once and sample by sample."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tessella.likelihoods.autoregressive import DEPTH_OF_SIGNALS
from tessella.networks import dilated_conv
from tessella.networks.dilated_conv import DilatedConv, DilatedLayer


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(dilated_conv, "FIRST", 3)
    monkeypatch.setattr(dilated_conv, "CYCLE", 3)


@pytest.mark.parametrize("length", [1, 2, 40])
@pytest.mark.parametrize("context", [0, 4])
def test_sample_by_sample_is_the_whole(length: int, context: int) -> None:
    network, x = DilatedConv(2, 6, 5, context=context), torch.randn(3, 2, length)
    around = torch.randn(3, context, 1, length) if context else None
    whole = network(x.unsqueeze(2), around).squeeze(2)
    decoder = network.incremental(3, 1, length, around)
    for t in range(length):
        torch.testing.assert_close(decoder.step(), whole[..., t], atol=1e-5, rtol=1e-5)
        decoder.append(x[..., t])


def test_the_receptive_field_is_the_stated_one() -> None:
    network = DilatedConv(2, 8, 5, context=3)  # dilations 1, 2, 4, 1, 2
    assert network.receptive_field == 3 + 10
    x, around = torch.randn(1, 2, 30, requires_grad=True), torch.randn(1, 3, 30, requires_grad=True)
    by_x, by_context = torch.autograd.grad(network(x, around)[..., 20].square().sum(), [x, around])
    assert (by_x[0].abs().sum(0) > 0).nonzero().flatten().tolist() == list(range(7, 20))
    assert (by_context[0].abs().sum(0) > 0).nonzero().flatten().tolist() == list(range(11, 21))


def test_the_usual_network_sees_two_thousand_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert DilatedConv(1, 2, DEPTH_OF_SIGNALS).receptive_field >= 2000


@pytest.mark.parametrize("dilation", [1, 4, 9])
@pytest.mark.parametrize("context", [0, 2])
def test_the_gradient_of_a_layer_is_that_of_its_formula(dilation: int, context: int) -> None:
    layer = DilatedLayer(3, context, dilation, 0.5).double()
    h = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    around = torch.randn(2, context, 7, dtype=torch.float64, requires_grad=True) if context else None

    def formula() -> Tensor:
        past = F.pad(h, (dilation, 0))[..., :7]
        return h + F.glu(layer.mix(torch.cat([past, h, *([] if around is None else [around])], 1)), 1)

    inputs = [h, *layer.parameters(), *([] if around is None else [around])]
    weights = torch.randn(2, 3, 7, dtype=torch.float64)
    whole, plain = layer(h, around), formula()
    torch.testing.assert_close(whole, plain)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), inputs) for y in (whole, plain))
    torch.testing.assert_close(ours, theirs)
