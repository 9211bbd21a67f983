"""The second stage: the model is frozen, and a prior over its latents is fitted by the loop that trained it.

codes    priors over grids of codes, all levels together
latents  priors over real-valued z, drawn anew from q(z | x) each step
shared   what the loop trains and what is looked at, whatever z is
fit      the run folder: checks, resuming, the rate that is kept
"""

from __future__ import annotations

from tessella.fitting.codes import DRAWS, CodesSplit, Priors, packed, unpacked
from tessella.fitting.fit import fit_prior
from tessella.fitting.latents import LatentPrior, LatentsSplit
from tessella.fitting.shared import Fitting

__all__ = [
    "DRAWS",
    "CodesSplit",
    "Fitting",
    "LatentPrior",
    "LatentsSplit",
    "Priors",
    "fit_prior",
    "packed",
    "unpacked",
]
