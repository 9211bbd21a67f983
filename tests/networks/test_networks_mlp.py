"""The perceptrons: shapes for one feature and many, the first output, labels."""

from __future__ import annotations

import pytest
import torch

from tessella.networks.mlp import VectorDecoder, VectorEncoder


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("dims", [1, 100])
@pytest.mark.parametrize("depth", [1, 4])
def test_shapes(dims: int, depth: int) -> None:
    encoder = VectorEncoder(dims, width=6, depth=depth)
    assert encoder.feature_shape == (6,)
    assert encoder(torch.randn(3, dims), None).shape == (3, 6)
    assert VectorDecoder(2, dims, width=6, depth=depth)(torch.randn(3, 2), None).shape == (3, dims)


def test_first_output_is_the_bias_and_a_part_that_depends_on_z() -> None:
    decoder = VectorDecoder(4, 3, width=32, depth=3)
    bias = torch.tensor([5.0, -3.0, 0.5])
    decoder.start_at(bias)
    out = decoder(torch.randn(16, 4), None)
    assert (out - bias).abs().max() < 1
    assert out.std(0).min() > 1e-3


def test_label_changes_what_is_seen_and_drawn() -> None:
    encoder, decoder = VectorEncoder(5, width=6, depth=1, classes=3), VectorDecoder(2, 5, width=6, depth=1, classes=3)
    labels = torch.arange(3)
    assert len(encoder(torch.randn(1, 5).expand(3, 5), labels).unique(dim=0)) == 3
    assert len(decoder(torch.randn(1, 2).expand(3, 2), labels).unique(dim=0)) == 3
