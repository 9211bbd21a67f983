"""The trained models that several claims share: small ones, of one width, so that many seeds fit into minutes."""

from __future__ import annotations

from typing import Any

import tessella
from tessella import EMAQuantizer, Integers, LogisticMixture, PixelCNN, Schema
from tessella_experiments.runner import of_model, with_prior

UNITS, CODEBOOK = 16, 64
RATE = 4e-3
"""Learning rate: at 800 updates small networks come farther with twice the package's own."""
UPDATES = 800


def size(schema: Schema) -> dict[str, Any]:
    """Of networks, and of the likelihood of bytes, whose mixtures would else cost more than the networks."""
    networks = {"width": 16, "depth": 1} if schema.rank == 2 else {"width": 128, "depth": 2}
    return {**networks, "likelihood": LogisticMixture(components=4)} if schema.values == Integers() else networks


def latent(schema: Schema) -> dict[str, Any]:
    """One vector for the whole example."""
    return {**size(schema), "latent_layout": "vector", "latent_dim": min(UNITS, max(2, schema.dims // 2))}


def codes(schema: Schema, codebook_size: int = CODEBOOK) -> dict[str, Any]:
    """A grid of codes: 4 x 4 of very small pictures, about 7 x 7 of others; of vectors a row."""
    options = {**size(schema), "quantizer": EMAQuantizer(codebook_size=codebook_size)}
    return {**options, "grid_size": 4 if min(schema.spatial) <= 16 else 7} if schema.rank == 2 else options


AE = of_model("ae", tessella.AE, latent, steps=UPDATES, learning_rate=RATE)
VAE = of_model("vae", tessella.VAE, latent, steps=UPDATES, learning_rate=RATE)
VQVAE = of_model("vqvae", tessella.VQVAE, codes, steps=UPDATES, learning_rate=RATE)
VQVAE_PRIOR = with_prior(
    "vqvae-prior", VQVAE, PixelCNN(width=32, depth=3), steps=UPDATES, learning_rate=2e-3, weight_decay=0.1
)
