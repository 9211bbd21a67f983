"""Selectors choose the next codes: sampled, kept if known, or written to or read from an entropy coder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from tessella.core.entropy_coding import SymbolCoder, code_categorical, of_observed
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise

SHARPEST = 1e-6
"""Temperatures below this count as zero: distinct float32 logits differ by more."""


@dataclass(frozen=True)
class Selector(ABC):
    """Chooses the next codes of a grid, given their logits.

    Attributes:
        noise: source of a random generation order, for priors with any order; None: a fixed order.
        known: `[B, C, *spatial]` int64, codes to keep whatever their logits, and -1 elsewhere; None: no known codes.
    """

    noise: Noise | None = None
    known: Tensor | None = None

    @abstractmethod
    def __call__(self, logits: Tensor, index: Tensor) -> Tensor:
        """Choose codes `[n]` int64 given their logits `[n, K]`.

        `index` `[n]` holds their positions in the flattened grids.
        """

    @abstractmethod
    def uniform(self, size: int, index: Tensor) -> Tensor:
        """Choose codes from 0 to size - 1, all equally probable."""


@final
@dataclass(frozen=True)
class Draw(Selector):
    """Samples codes with one number each from `noise`, and keeps known codes.

    Attributes:
        shape: `(B, C, *spatial)` of the grids.
        sampling: temperature and cut-offs; they have no effect where all codes are equally probable.
    """

    shape: tuple[int, ...] = ()
    sampling: Sampling | None = None
    _numbers: list[Tensor] = field(default_factory=list, init=False, compare=False)

    def __call__(self, logits: Tensor, index: Tensor) -> Tensor:
        return self._kept(sample_categorical(logits, self._uniform(index), self.sampling), index)

    def uniform(self, size: int, index: Tensor) -> Tensor:
        return self._kept((self._uniform(index) * size).long(), index)

    def _uniform(self, index: Tensor) -> Tensor:
        if not self._numbers:
            assert self.noise is not None
            self._numbers.append(self.noise.uniform(*self.shape, device=index.device).flatten())
        return self._numbers[0][index]

    def _kept(self, drawn: Tensor, index: Tensor) -> Tensor:
        if self.known is None:
            return drawn
        known = self.known.flatten()[index]
        return torch.where(known < 0, drawn, known)


@final
@dataclass(frozen=True)
class Coded(Selector):
    """Writes codes to an entropy coder, or reads them from it.

    Attributes:
        coder: an encoder or a decoder.
        codes: `[B, C, *spatial]` int64 to write; None to read.
        present: `[B, C, *spatial]` bool, the codes that are written or read; None: all.
    """

    coder: SymbolCoder | None = None
    codes: Tensor | None = None
    present: Tensor | None = None

    def __call__(self, logits: Tensor, index: Tensor) -> Tensor:
        return code_categorical(self._coder(index), logits, self._symbols(index)) if len(index) else index

    def uniform(self, size: int, index: Tensor) -> Tensor:
        return self._coder(index).code_uniform(size, len(index), self._symbols(index))

    def _coder(self, index: Tensor) -> SymbolCoder:
        assert self.coder is not None
        return of_observed(self.coder, None if self.present is None else self.present.flatten()[index])

    def _symbols(self, index: Tensor) -> Tensor | None:
        return None if self.codes is None else self.codes.flatten()[index]


@torch.no_grad()
def sample_categorical(logits: Tensor, uniform: Tensor, sampling: Sampling | None = None) -> Tensor:
    """Sample one code for each row of logits, by inverting the distribution function.

    p = softmax(logits / temperature); then only the `top_k` most likely codes are kept, and of these the smallest set
    of most likely ones that holds `top_p` of the probability (Holtzman et al. 2020, section 3.1), renormalised.
    Computed in float32; the result depends on the arguments alone.

    Args:
        logits: `[..., K]`.
        uniform: `[...]` in [0, 1).
        sampling: temperature (0: the most likely code) and cut-offs; None: p = softmax(logits).

    Returns:
        `[...]` int64.
    """
    sampling = sampling or Sampling()
    if sampling.temperature < SHARPEST or sampling.top_k == 1:
        return logits.argmax(-1)
    p = (logits.float() / sampling.temperature).softmax(-1)
    if sampling.top_k is None and sampling.top_p is None:
        return _inverted(p, uniform)
    p, order = p.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        p[..., sampling.top_k :] = 0
    if sampling.top_p is not None:
        p = p.masked_fill(p.cumsum(-1) - p >= sampling.top_p, 0)
    return order.gather(-1, _inverted(p, uniform).unsqueeze(-1)).squeeze(-1)


def _inverted(weights: Tensor, uniform: Tensor) -> Tensor:
    """Find the first index whose cumulative weight exceeds `uniform` times the total.

    It is never an index of weight zero.
    """
    cumulated = weights.cumsum(-1)
    total = cumulated[..., -1:]
    target = torch.minimum(uniform.unsqueeze(-1).float() * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, target, right=True).squeeze(-1)
