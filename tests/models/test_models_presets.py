"""The named compositions: what follows from the data, what is refused, and in which words."""

from __future__ import annotations

import pytest
import torch

import tessella
from expect import raises
from making import make
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError
from tessella.models.presets import AE, CVAE, VAE, BetaVAE

GREY = Schema.of((1, 28, 28), "uint8")
BINARY = Schema.of((1, 28, 28), "binary")


@pytest.mark.parametrize(
    ("shape", "latent_shape"),
    [
        ((1, 28, 28), (40,)),
        ((2, 64, 48), (40,)),
        ((3, 32, 32), (16, 16, 16)),
        ((3, 64, 64), (16, 16, 16)),
        ((3, 33, 17), (16, 17, 9)),
        ((4, 128, 200), (16, 16, 25)),
        ((5, 1, 1), (16, 1, 1)),
        ((1,), (2,)),
        ((10,), (5,)),
        ((1000,), (32,)),
    ],
)
def test_latent_follows_from_the_data(shape: tuple[int, ...], latent_shape: tuple[int, ...]) -> None:
    values = "uint8" if len(shape) > 1 and shape[0] < 5 else "real"
    with torch.device("meta"):
        model = VAE(Schema.of(shape, values), width=8, depth=1)
    assert model.latent_shape == latent_shape


def test_options_are_kept() -> None:
    model = VAE(BINARY, latent_dim=3, width=8, depth=1, latent_layout="grid", beta=2, free_bits=0.5)
    assert model.latent_shape == (3, 14, 14)
    assert (model.config.latent_dim, model.objective.beta, model.objective.free_bits) == (3, 2, 0.5)


@pytest.mark.parametrize(("given", "beta"), [({}, 4.0), ({"beta": 10.0}, 10.0), ({"beta": 0.5}, 0.5)])
def test_beta_vae_weighs_the_rate(given: dict[str, float], beta: float) -> None:
    assert make(BetaVAE, BINARY, width=4, depth=1, **given).objective.beta == beta


def test_autoencoder_has_no_bound() -> None:
    model = AE(BINARY, width=4, depth=1)
    terms = model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8), noise=Noise(0))
    assert terms.rate is None
    assert terms.bound is None
    with raises("no-prior"):
        model.sample(1)


def test_start_is_near_the_even_odds() -> None:
    """A fresh model says about what the likelihood's starting bias says: log 2 a binary pixel, at a rate near zero."""
    terms = VAE(BINARY)(torch.randint(0, 2, (8, 1, 28, 28)), noise=Noise(0))
    assert terms.rate is not None
    assert abs(terms.distortion.mean().item() / (784 * 0.6931) - 1) < 0.05
    assert 0 <= terms.rate.mean().item() < 2


@pytest.mark.parametrize(
    ("preset", "schema", "options", "message"),
    [
        (VAE, GREY, {"likelihood": "bernoulli"}, "needs binary values.*binarize dynamic"),
        (VAE, BINARY, {"likelihood": "logistic"}, "needs integer values.*likelihood bernoulli"),
        (
            VAE,
            Schema.of((4,), "real"),
            {"likelihood": "categorical"},
            "needs integer or symbol values.*likelihood gaussian",
        ),
        (VAE, GREY, {"likelihood": "gauss"}, "no likelihood is called 'gauss'; there are: bernoulli, made"),
        (VAE, BINARY, {"components": 5}, "has no components"),
        (VAE, Schema.of((4,), "real"), {"latent_layout": "grid"}, "vectors have no grid"),
        (VAE, Schema.of((5, 8, 8), "uint8"), {}, "1 to 4 channels, got 5"),
        (VAE, GREY, {"latent_dim": 0}, "latent dim must be at least 1, not 0"),
        (VAE, GREY, {"latent_layout": "tree"}, "latent layout is 'tree', not 'vector' or 'grid'"),
        (VAE, GREY, {"beta": -1.0}, "beta must be at least 0"),
        (VAE, GREY, {"warmup": 1.5}, "warmup must be at most 1"),
        (CVAE, GREY, {}, "a conditional model needs labels"),
    ],
)
def test_refuses_in_one_line(preset, schema: Schema, options: dict, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        make(preset, schema, **options).objective  # noqa: B018
    assert "\n" not in str(caught.value)


def test_presets_are_at_the_top() -> None:
    assert (tessella.AE, tessella.VAE, tessella.BetaVAE, tessella.CVAE) == (AE, VAE, BetaVAE, CVAE)
