"""Tessella: latent-variable generative models with one ruler.

Names are loaded when first used, so that `import tessella` and the command line's help stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tessella.checkpoint import load as load
    from tessella.data import open_data as open_data
    from tessella.errors import TessellaError as TessellaError
    from tessella.models.presets import AE as AE
    from tessella.models.presets import CVAE as CVAE
    from tessella.models.presets import VAE as VAE
    from tessella.models.presets import BetaVAE as BetaVAE
    from tessella.records import Schema as Schema
    from tessella.spec import TrainOptions as TrainOptions
    from tessella.training import train as train

_HOMES = {
    "AE": "tessella.models.presets",
    "VAE": "tessella.models.presets",
    "BetaVAE": "tessella.models.presets",
    "CVAE": "tessella.models.presets",
    "Schema": "tessella.records",
    "TessellaError": "tessella.errors",
    "TrainOptions": "tessella.spec",
    "load": "tessella.checkpoint",
    "open_data": "tessella.data",
    "train": "tessella.training",
}
__all__ = ["AE", "CVAE", "VAE", "BetaVAE", "Schema", "TessellaError", "TrainOptions", "load", "open_data", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tessella' has no attribute {name!r}")
