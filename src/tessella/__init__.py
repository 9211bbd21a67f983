"""Tessella: latent-variable generative models with one ruler.

Names are loaded when first used, so that `import tessella` and the command line's help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tessella.core.outputs import Sampling as Sampling
    from tessella.core.schema import Schema as Schema
    from tessella.data import open_data as open_data
    from tessella.evaluation.bounds import evaluate as evaluate
    from tessella.foundation.errors import TessellaError as TessellaError
    from tessella.models.presets import AE as AE
    from tessella.models.presets import CVAE as CVAE
    from tessella.models.presets import VAE as VAE
    from tessella.models.presets import VQVAE as VQVAE
    from tessella.models.presets import VQVAE2 as VQVAE2
    from tessella.models.presets import BetaVAE as BetaVAE
    from tessella.models.spec import TrainOptions as TrainOptions
    from tessella.training.fit_prior import fit_prior as fit_prior
    from tessella.training.loop import train as train
    from tessella.training.run import Run as Run
    from tessella.training.run import load as load

_HOMES = {
    "AE": "tessella.models.presets",
    "VAE": "tessella.models.presets",
    "BetaVAE": "tessella.models.presets",
    "CVAE": "tessella.models.presets",
    "VQVAE": "tessella.models.presets",
    "VQVAE2": "tessella.models.presets",
    "Sampling": "tessella.core.outputs",
    "Schema": "tessella.core.schema",
    "TessellaError": "tessella.foundation.errors",
    "TrainOptions": "tessella.models.spec",
    "evaluate": "tessella.evaluation.bounds",
    "fit_prior": "tessella.training.fit_prior",
    "Run": "tessella.training.run",
    "load": "tessella.training.run",
    "open_data": "tessella.data",
    "train": "tessella.training.loop",
}
__all__ = [
    "AE",
    "CVAE",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "BetaVAE",
    "Run",
    "Sampling",
    "Schema",
    "TessellaError",
    "TrainOptions",
    "evaluate",
    "fit_prior",
    "load",
    "open_data",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tessella' has no attribute {name!r}")
