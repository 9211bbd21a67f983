"""A quantizer with an option."""

from __future__ import annotations

from typing import Annotated, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessella import Noise
from tessella.plugin import BottleneckOutput, Quantizer, QuantizerConfig, Range, register, straight_through


@register("quantizer", "bsq", summary="binary spherical quantisation: the nearest corner of a cube (Zhao et al. 2024)")
class BSQ(QuantizerConfig):
    """Binary spherical quantisation.

    Attributes:
        bits: numbers in z at each position; a code takes 2^bits values.
    """

    bits: Annotated[int, Range(1, 20)] = 6

    def build(self, feature_shape: tuple[int, ...]) -> BSQModule:
        return BSQModule(feature_shape, self.bits)


@final
class BSQModule(Quantizer):
    """z = u / |u| goes to sign(z) / sqrt(bits) (Zhao et al. 2024, section 3.2)."""

    base: Tensor

    def __init__(self, feature_shape: tuple[int, ...], bits: int) -> None:
        super().__init__()
        self.codebook_size = 2**bits
        self.register_buffer("base", 2 ** torch.arange(bits), persistent=False)
        self.head = nn.Linear(feature_shape[0], bits)
        self.latent_shape = (bits, *feature_shape[1:])
        self.code_shape = (1, *feature_shape[1:])

    def forward(self, features: Tensor, noise: Noise | None, present: Tensor | None = None) -> BottleneckOutput:
        with torch.autocast(features.device.type, enabled=False):
            z = F.normalize(self.head(features.float().movedim(1, -1)), dim=-1)
            codes = ((z > 0) * self.base).sum(-1)[:, None].contiguous()
            return self.output(straight_through(z.movedim(-1, 1), self.vectors(codes)), codes, None, present)

    def sample_proposal(self, features: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Turn each bit with probability 0.1."""
        codes = self(features, None).posterior.value
        turned = noise.uniform(*codes.shape, len(self.base), device=codes.device) < 0.1
        log_q = torch.where(turned, 0.1, 0.9).log().sum((1, -1))
        return codes ^ (turned * self.base).sum(-1), log_q

    def vectors(self, codes: Tensor) -> Tensor:
        bits = codes.movedim(1, -1) // self.base % 2
        return ((2.0 * bits - 1) / len(self.base) ** 0.5).movedim(-1, 1)
