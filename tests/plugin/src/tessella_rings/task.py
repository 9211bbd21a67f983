"""A task: one file has the options, the computation, the page and the JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessella import Run
from tessella.plugin import Page, Result, Text, task


@dataclass(frozen=True)
class BrightnessConfig:
    """Compare the mean of a split with the mean of samples.

    Attributes:
        split: train, valid or test.
        count: how many samples are drawn.
    """

    split: str = "test"
    count: int = 50


@dataclass(frozen=True)
class Brightness(Result):
    """Means over examples and values."""

    data: float
    samples: float

    def to_json(self) -> Mapping[str, Any]:
        return {"data": self.data, "samples": self.samples}

    def page(self) -> Page:
        return Page("Brightness", [Text(f"mean of the data {self.data:.3f}, of samples {self.samples:.3f}")])


@task("brightness", summary="compare the mean of a split with the mean of samples", group="train and measure")
def brightness(run: Run, config: BrightnessConfig) -> Brightness:
    """Compare means over examples and values."""
    import torch

    split = run.data().split(config.split)
    x = split.batch(range(len(split))).x.float()
    with torch.inference_mode():
        samples = run.model().sample(config.count)
    return Brightness(float(x.mean()), float(samples.mean()))
