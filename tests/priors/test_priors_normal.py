"""Gaussian priors against the formula."""

from __future__ import annotations

import math

import pytest
import torch

from tessella.priors import ClassNormal, StandardNormal


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_standard_normal_is_the_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    z = torch.randn(5, *shape)
    expected = -(z.square().flatten(1).sum(1) + math.prod(shape) * math.log(2 * math.pi)) / 2
    torch.testing.assert_close(StandardNormal().build(shape)(None).log_prob(z), expected)


def test_standard_normal_has_nothing_to_learn_or_to_save() -> None:
    prior = StandardNormal().build((3,))
    assert not list(prior.parameters())
    assert not prior.state_dict()


def test_class_normal_starts_standard_and_keeps_classes_apart() -> None:
    torch.manual_seed(0)
    prior = ClassNormal().build((3,), classes=2)
    z, label = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(prior(label).log_prob(z), StandardNormal().build((3,))(None).log_prob(z))
    with torch.no_grad():
        prior.loc[1] = 2.0
        prior.log_scale[1] = math.log(0.5)
    moved = prior(label)
    torch.testing.assert_close(moved.mean, torch.tensor([[0.0], [2.0], [0.0], [2.0]]).expand(4, 3))
    torch.testing.assert_close(moved.stddev, torch.tensor([[1.0], [0.5], [1.0], [0.5]]).expand(4, 3))


def test_class_normal_needs_labels() -> None:
    with pytest.raises(ValueError, match="needs labels"):
        ClassNormal().build((3,), classes=2)(None)
