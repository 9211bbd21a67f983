"""The convolutional networks: their plan for any size, padding and cropping, larger grids, the first output."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tessella.networks.conv import ConvDecoder, ConvEncoder, ConvPlan


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([7, 16]))
@settings(max_examples=200, deadline=None)
def test_plan_covers_the_picture(height: int, width: int, side: int) -> None:
    plan = ConvPlan.of((1, height, width), side=side, width=8, depth=1)
    for size, cells in zip((height, width), plan.grid, strict=True):
        assert 0 <= cells * plan.stride - size < plan.stride
    assert math.prod(plan.grid) <= 2 * side**2
    half = [-(-size // (plan.stride // 2 or 1)) for size in (height, width)]
    assert plan.stride == 1 or math.prod(half) > 2 * side**2
    assert plan.widths[0] == 8
    assert set(plan.widths[1:]) <= {16}


def test_plan_of_known_sizes() -> None:
    def plan(height: int, width: int, side: int) -> ConvPlan:
        return ConvPlan.of((3, height, width), side=side, width=64, depth=2)

    assert (plan(28, 28, 7).grid, plan(28, 28, 7).widths) == ((7, 7), (64, 128))
    assert (plan(32, 32, 16).grid, plan(32, 32, 16).widths) == ((16, 16), (64,))
    assert (plan(64, 64, 16).grid, plan(64, 64, 16).widths) == ((16, 16), (64, 128))
    assert plan(1, 1, 7).stride == 1


@pytest.mark.parametrize(("height", "width"), [(30, 45), (29, 31), (33, 17), (13, 40)])
def test_odd_sizes_are_padded_by_repetition_and_cropped(height: int, width: int) -> None:
    odd = ConvPlan.of((2, height, width), side=7, width=4, depth=1)
    full_height, full_width = (cells * odd.stride for cells in odd.grid)
    full = ConvPlan((full_height, full_width), odd.patch, odd.widths, odd.depth)
    assert (full_height, full_width) != (height, width)
    assert full.grid == odd.grid

    encoder, wide_encoder = ConvEncoder((2, height, width), odd), ConvEncoder((2, full_height, full_width), full)
    wide_encoder.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 2, height, width)
    padded = F.pad(x, (0, full_width - width, 0, full_height - height), mode="replicate")
    torch.testing.assert_close(encoder(x, None), wide_encoder(padded, None))

    decoder, wide_decoder = ConvDecoder((3, *odd.grid), odd, 5), ConvDecoder((3, *odd.grid), full, 5)
    wide_decoder.load_state_dict(decoder.state_dict())
    z = torch.randn(2, 3, *odd.grid)
    out = decoder(z, None)
    assert out.shape == (2, 5, height, width)
    torch.testing.assert_close(out, wide_decoder(z, None)[..., :height, :width])


def test_grid_of_another_size_is_drawn_in_its_size() -> None:
    plan = ConvPlan.of((1, 30, 30), side=7, width=4, depth=1)
    decoder = ConvDecoder((3, *plan.grid), plan, 2)
    assert decoder(torch.randn(1, 3, 12, 9), None).shape == (1, 2, 12 * plan.stride, 9 * plan.stride)


@pytest.mark.parametrize("latent", ["vector", "grid"])
def test_first_output_is_the_bias_and_a_part_that_depends_on_z(latent: str) -> None:
    plan = ConvPlan.of((1, 20, 24), side=7, width=16, depth=2)
    shape = (6,) if latent == "vector" else (6, *plan.grid)
    decoder = ConvDecoder(shape, plan, 3)
    bias = torch.tensor([5.0, -3.0, 0.5])
    decoder.start_at(bias)
    out = decoder(torch.randn(4, *shape), None)
    assert (out - bias[:, None, None]).abs().max() < 1
    assert out.std(0).max() > 1e-3


def test_vector_features_come_of_all_positions() -> None:
    plan = ConvPlan.of((1, 14, 14), side=7, width=4, depth=1)
    encoder = ConvEncoder((1, 14, 14), plan, features=5)
    x = torch.randn(1, 1, 14, 14, requires_grad=True)
    (by_x,) = torch.autograd.grad(encoder(x, None).sum(), x)
    assert (by_x != 0).all()


def test_variance_stays_in_bounds_through_depth() -> None:
    for depth in (1, 8):
        plan = ConvPlan.of((3, 28, 28), side=7, width=16, depth=depth)
        features = ConvEncoder((3, 28, 28), plan)(torch.randn(8, 3, 28, 28), None)
        assert 0.02 < features.std() < 2


def test_label_changes_what_is_seen_and_drawn() -> None:
    plan = ConvPlan.of((1, 8, 8), side=7, width=4, depth=1)
    encoder, decoder = ConvEncoder((1, 8, 8), plan, classes=3), ConvDecoder((2,), plan, 1, classes=3)
    x, z, labels = torch.randn(1, 1, 8, 8).expand(3, 1, 8, 8), torch.randn(1, 2).expand(3, 2), torch.arange(3)
    assert len(encoder(x, labels).unique(dim=0)) == 3
    assert len(decoder(z, labels).unique(dim=0)) == 3
