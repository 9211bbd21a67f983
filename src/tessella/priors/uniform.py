"""The prior over codes before anything is learned."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from tessella.core.configs import CodePriorConfig
from tessella.core.contracts import CodePrior, SymbolCoder
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import register


@register("code-prior", "uniform", summary="every code as likely as any other")
class Uniform(CodePriorConfig):
    """Uniform prior over codes."""

    labels = "none"
    fitted_after = False

    def build(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> UniformModule:
        return UniformModule(code_shape, codebook_size, context_channels=context_channels, classes=classes)


@final
class UniformModule(CodePrior):
    """p(code) = 1 / K for each of them: what a VQ-VAE is trained with (van den Oord et al. 2017, section 3.2)."""

    any_order = True

    def __init__(
        self, code_shape: tuple[int, ...], codebook_size: int, *, context_channels: int = 0, classes: int = 0
    ) -> None:
        super().__init__()
        if classes:
            raise SpecError("the uniform prior does not see labels: fit another one with --class-conditional")
        self.code_shape, self.codebook_size, self.classes = code_shape, codebook_size, 0

    def forward(
        self, codes: Tensor, label: Tensor | None = None, context: Tensor | None = None, *, noise: Noise | None = None
    ) -> Tensor:
        return torch.full(codes.shape, -math.log(self.codebook_size), device=codes.device)

    def sample(
        self,
        count: int,
        noise: Noise,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Every code as likely as any other; temperature and cut-offs change nothing."""
        device = "cpu" if context is None else context.device
        return (noise.uniform(count, *self.code_shape, device=device) * self.codebook_size).long()

    def fill(
        self,
        codes: Tensor,
        known: Tensor,
        noise: Noise,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        sampling: Sampling | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Each as likely as any other, whatever is known."""
        return torch.where(known, codes, self.sample(len(codes), noise, label, codes))

    def code(
        self,
        wire: SymbolCoder,
        count: int,
        codes: Tensor | None = None,
        label: Tensor | None = None,
        context: Tensor | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        known = None if codes is None else codes.flatten()
        return wire.code_uniform(self.codebook_size, count * math.prod(self.code_shape), known).view(
            count, *self.code_shape
        )
