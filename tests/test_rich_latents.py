"""What uses a model's latents takes any prior and posterior, or refuses in a line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from expect import raises
from making import make
from tessella.coding.coders import BitsBack
from tessella.core.batches import Batch
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.data.inputs import NamedBatch
from tessella.evaluation import collapse
from tessella.models.base import Model
from tessella.models.presets import AE, VAE, VQVAE
from tessella.tasks.detect.statistics import StatisticsExtractor, possible
from tessella.tasks.search.index_file import read_index, write_index

SCHEMA, SMALLER = Schema.of((1, 8, 8), "binary"), Schema.of((1, 4, 4), "binary")
"""The smaller one is for latents on a grid, whose flows are inverted number by number."""
KINDS = [
    {"posterior": "flow"},
    {"prior": "mixture"},
    {"prior": "vamp"},
    {"prior": "flow", "posterior": "flow"},
    {"prior": "flow", "posterior": "flow", "latent_layout": "grid"},
]


def model_of(**options: object) -> Model:
    torch.manual_seed(0)
    schema = SMALLER if "latent_layout" in options else SCHEMA
    small = {"components": 5} if options.get("prior") in ("mixture", "vamp") else {}
    return make(VAE, schema, width=4, depth=1, latent_dim=3, **small, **options).eval()


def pictures(model: Model, count: int = 6) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 2, (count, *model.schema.shape), generator=random, dtype=torch.uint8)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_detection(options: dict[str, str]) -> None:
    """The statistics are the model's own terms, and do not hang on the others in the batch; fitting q gains."""
    model = model_of(**options)
    x = pictures(model)
    assert possible(model) >= {"rate", "regret"}
    draws = 8 if "latent_layout" in options else 64
    found = StatisticsExtractor(model, {"regret"}, samples=draws, steps=10)(Batch(x))
    assert found.rate is not None
    assert found.regret is not None
    assert found.regret.mean() > -0.05 * math.prod(model.latent_shape)
    alone = StatisticsExtractor(model, {"rate"}, samples=draws)(Batch(x[:1]))
    np.testing.assert_allclose(alone.bound, found.bound[:1], rtol=1e-3)
    with torch.no_grad():
        bounds = torch.stack([b for step in range(draws) if (b := model(x, noise=Noise(0, step)).bound) is not None])
    error = bounds.std(0) / draws**0.5
    assert (np.abs(found.bound - bounds.mean(0).numpy()) < 8 * error.numpy() + 1e-2).all()


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_search_and_collapse(options: dict[str, str], tmp_path: Path) -> None:
    count = 8 if "latent_layout" in options else 24
    model = model_of(**options)
    x = pictures(model, count)
    named = NamedBatch([str(n) for n in range(count)], Batch(x), [None] * count)
    write_index(tmp_path / "i.safetensors", model, [named], "model")
    assert read_index(tmp_path / "i.safetensors", model, "model").scale.isfinite().all()
    judged = collapse.measure_collapse(model, Batch(x))
    assert judged is not None
    assert 0 <= judged.mutual_information <= judged.mutual_information_ceiling + 1e-6


def test_lossless_compression_is_for_the_plain_ones() -> None:
    for options in KINDS:
        with raises("not-normal"):
            BitsBack(model_of(**options))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("preset", [AE, VQVAE])
def test_models_without_a_trained_prior_refuse_one(preset) -> None:
    for options in ({"prior": "flow"}, {"posterior": "flow"}, {"components": 3}, {"flow_steps": 2}):
        with raises("no-such-option"):
            make(preset, SCHEMA, **options)
