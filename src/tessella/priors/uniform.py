"""Uniform prior over codes, used until another prior is fitted."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from tessella.core.contracts import CodePrior
from tessella.core.outputs import UNCONDITIONAL, Condition
from tessella.core.rng import Noise
from tessella.core.selectors import Selector
from tessella.foundation.errors import SpecError


@final
class UniformModule(CodePrior):
    """Uniform prior p(code) = 1 / K, used to train a VQ-VAE (van den Oord et al. 2017, section 3.2)."""

    any_order = True
    learned = False
    zero: Tensor

    def __init__(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> None:
        super().__init__()
        if classes:
            raise SpecError("the uniform prior takes no labels: fit another kind of prior", code="sees-no-labels")
        self.code_shape, self.codebook_size = code_shape, codebook_size
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def forward(self, codes: Tensor, condition: Condition = UNCONDITIONAL, *, noise: Noise | None = None) -> Tensor:
        return torch.full(codes.shape, -math.log(self.codebook_size), device=codes.device)

    def generate(self, count: int, select: Selector, condition: Condition = UNCONDITIONAL) -> Tensor:
        index = torch.arange(count * math.prod(self.code_shape), device=self.zero.device)
        return select.uniform(self.codebook_size, index).view(count, *self.code_shape)
