"""Tessella: latent-variable generative models with one ruler.

Names are loaded when first used, so that `import tessella` and the command line's help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tessella.bottlenecks.flow import FlowPosterior as FlowPosterior
    from tessella.bottlenecks.gaussian import Deterministic as Deterministic
    from tessella.bottlenecks.gaussian import DiagonalGaussian as DiagonalGaussian
    from tessella.bottlenecks.quantizers import FSQ as FSQ
    from tessella.bottlenecks.quantizers import LFQ as LFQ
    from tessella.bottlenecks.quantizers import EMAQuantizer as EMAQuantizer
    from tessella.bottlenecks.quantizers import ResidualQuantizer as ResidualQuantizer
    from tessella.bottlenecks.quantizers import SimVQ as SimVQ
    from tessella.bottlenecks.quantizers import VectorQuantizer as VectorQuantizer
    from tessella.commands.tasks import progress_bar as progress_bar
    from tessella.core.outputs import Sampling as Sampling
    from tessella.core.schema import Schema as Schema
    from tessella.data import open_data as open_data
    from tessella.evaluation.bounds import evaluate as evaluate
    from tessella.foundation.errors import TessellaError as TessellaError
    from tessella.likelihoods.autoregressive import Autoregressive as Autoregressive
    from tessella.likelihoods.independent import Bernoulli as Bernoulli
    from tessella.likelihoods.independent import Categorical as Categorical
    from tessella.likelihoods.independent import FixedGaussian as FixedGaussian
    from tessella.likelihoods.independent import Gaussian as Gaussian
    from tessella.likelihoods.logistic import LogisticMixture as LogisticMixture
    from tessella.models.presets import AE as AE
    from tessella.models.presets import CVAE as CVAE
    from tessella.models.presets import VAE as VAE
    from tessella.models.presets import VQVAE as VQVAE
    from tessella.models.presets import VQVAE2 as VQVAE2
    from tessella.models.presets import BetaVAE as BetaVAE
    from tessella.models.presets import Diffusion as Diffusion
    from tessella.models.presets import Flow as Flow
    from tessella.models.spec import TrainOptions as TrainOptions
    from tessella.priors.autoregressive import CausalTransformer as CausalTransformer
    from tessella.priors.autoregressive import PixelCNN as PixelCNN
    from tessella.priors.diffusion import DiffusionPrior as DiffusionPrior
    from tessella.priors.flow import FlowPrior as FlowPrior
    from tessella.priors.masked import MaskedTransformer as MaskedTransformer
    from tessella.priors.mixture import MixturePrior as MixturePrior
    from tessella.priors.mixture import VampPrior as VampPrior
    from tessella.priors.normal import ClassNormal as ClassNormal
    from tessella.priors.normal import StandardNormal as StandardNormal
    from tessella.priors.uniform import Uniform as Uniform
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
