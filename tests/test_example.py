"""The example in one file comes to the bound of the package's VAE."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch

from making import make
from tessella import VAE, Schema, TrainOptions, open_data
from tessella.core.rng import Noise
from tessella.data.raw import RawSplit, index_keys
from tessella.data.splits import PartSplit
from tessella.training import loop

PATH = Path(__file__).resolve().parents[1] / "examples" / "vae_in_150_lines.py"
STEPS, SEEDS = 500, 4


def test_the_example_comes_to_the_bound_of_the_package() -> None:
    """Difference of the means over 4 seeds each, within 5.96 standard errors and 3 %: Student's t at 6 degrees of
    freedom, a false alarm in 1,000. The 3 % keep a large error from hiding a difference."""
    spec = importlib.util.spec_from_file_location("example", PATH)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    assert len(PATH.read_text("utf-8").splitlines()) <= 150

    data = open_data("digits")
    train, test = (
        (data.split(name).batch(range(len(data.split(name)))).x.flatten(1) >= 128).to(torch.uint8)
        for name in ("train", "test")
    )
    split = PartSplit(RawSplit(train.numpy(), None, index_keys(len(train), "bits")), np.arange(len(train)))
    bounds: dict[str, list[float]] = {"example": [], "package": []}
    for seed in range(SEEDS):
        bounds["example"].append(sum(example.bound(example.train(train.float(), STEPS, seed), test.float())))
        torch.manual_seed(seed)
        size = {"width": example.WIDTH, "depth": example.DEPTH, "latent_dim": example.UNITS}
        model = make(VAE, Schema.of((64,), "binary", center=(0.5,), scale=(0.5,)), **size)
        loop.fit(model, split, TrainOptions(steps=STEPS, seed=seed, workers=0, device="cpu"))
        with torch.no_grad():
            draws = [model.eval()(test, noise=Noise(seed, k)).bound.double().mean() for k in range(10)]
        bounds["package"].append(float(torch.stack(draws).mean()))
    means = {name: float(np.mean(values)) for name, values in bounds.items()}
    error = math.sqrt(sum(np.var(values, ddof=1) / SEEDS for values in bounds.values()))
    apart = abs(means["example"] - means["package"])
    assert apart < 5.96 * error, bounds
    assert apart < 0.03 * means["package"], bounds
