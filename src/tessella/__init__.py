"""Tessella: latent-variable generative models with one ruler.

Names are loaded when first used, so that `import tessella` and the command line's help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tessella.bottlenecks import FSQ as FSQ
    from tessella.bottlenecks import LFQ as LFQ
    from tessella.bottlenecks import Deterministic as Deterministic
    from tessella.bottlenecks import DiagonalGaussian as DiagonalGaussian
    from tessella.bottlenecks import EMAQuantizer as EMAQuantizer
    from tessella.bottlenecks import FlowPosterior as FlowPosterior
    from tessella.bottlenecks import ResidualQuantizer as ResidualQuantizer
    from tessella.bottlenecks import SimVQ as SimVQ
    from tessella.bottlenecks import VectorQuantizer as VectorQuantizer
    from tessella.commands.tasks import progress_bar as progress_bar
    from tessella.core.outputs import Sampling as Sampling
    from tessella.core.schema import Schema as Schema
    from tessella.data import open_data as open_data
    from tessella.evaluation.bounds import evaluate as evaluate
    from tessella.foundation.errors import TessellaError as TessellaError
    from tessella.likelihoods import Autoregressive as Autoregressive
    from tessella.likelihoods import Bernoulli as Bernoulli
    from tessella.likelihoods import Categorical as Categorical
    from tessella.likelihoods import FixedGaussian as FixedGaussian
    from tessella.likelihoods import Gaussian as Gaussian
    from tessella.likelihoods import LogisticMixture as LogisticMixture
    from tessella.models.presets import AE as AE
    from tessella.models.presets import CVAE as CVAE
    from tessella.models.presets import VAE as VAE
    from tessella.models.presets import VQVAE as VQVAE
    from tessella.models.presets import VQVAE2 as VQVAE2
    from tessella.models.presets import BetaVAE as BetaVAE
    from tessella.models.presets import Diffusion as Diffusion
    from tessella.models.presets import Flow as Flow
    from tessella.models.spec import TrainOptions as TrainOptions
    from tessella.priors import CausalTransformer as CausalTransformer
    from tessella.priors import ClassNormal as ClassNormal
    from tessella.priors import DiffusionPrior as DiffusionPrior
    from tessella.priors import FlowPrior as FlowPrior
    from tessella.priors import MaskedTransformer as MaskedTransformer
    from tessella.priors import MixturePrior as MixturePrior
    from tessella.priors import PixelCNN as PixelCNN
    from tessella.priors import StandardNormal as StandardNormal
    from tessella.priors import Uniform as Uniform
    from tessella.priors import VampPrior as VampPrior
    from tessella.training.fit_prior import fit_prior as fit_prior
    from tessella.training.loop import train as train
    from tessella.training.run import Run as Run
    from tessella.training.run import load as load

_HOMES = {
    "tessella.commands.tasks": ("progress_bar",),
    "tessella.core.outputs": ("Sampling",),
    "tessella.core.schema": ("Schema",),
    "tessella.data": ("open_data",),
    "tessella.evaluation.bounds": ("evaluate",),
    "tessella.foundation.errors": ("TessellaError",),
    "tessella.models.presets": ("AE", "VAE", "BetaVAE", "CVAE", "VQVAE", "VQVAE2", "Flow", "Diffusion"),
    "tessella.models.spec": ("TrainOptions",),
    "tessella.training.fit_prior": ("fit_prior",),
    "tessella.training.loop": ("train",),
    "tessella.training.run": ("Run", "load"),
}
__all__ = [
    "AE",
    "CVAE",
    "FSQ",
    "LFQ",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "Autoregressive",
    "Bernoulli",
    "BetaVAE",
    "Categorical",
    "CausalTransformer",
    "ClassNormal",
    "Deterministic",
    "DiagonalGaussian",
    "Diffusion",
    "DiffusionPrior",
    "EMAQuantizer",
    "FixedGaussian",
    "Flow",
    "FlowPosterior",
    "FlowPrior",
    "Gaussian",
    "LogisticMixture",
    "MaskedTransformer",
    "MixturePrior",
    "PixelCNN",
    "ResidualQuantizer",
    "Run",
    "Sampling",
    "Schema",
    "SimVQ",
    "StandardNormal",
    "TessellaError",
    "TrainOptions",
    "Uniform",
    "VampPrior",
    "VectorQuantizer",
    "evaluate",
    "fit_prior",
    "load",
    "open_data",
    "progress_bar",
    "train",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    if name in __all__:  # a part of a model: the registry knows its place
        from tessella.foundation.registry import entries

        return next(e for e in entries() if e.target.endswith(f":{name}") and e.origin == "tessella").load()
    raise AttributeError(f"module 'tessella' has no attribute {name!r}")
