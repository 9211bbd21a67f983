"""What an autoregressive network sees of the values before a position, and which locations follow from them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.contracts import Likelihood
from tessella.core.schema import Values

ORDER = 32
"""Earlier samples from which a location is predicted."""
GAIN = 0.1
"""Factor on the weights of predictions: an optimiser's step moves all of them, and narrow components bear little."""
FINEST = 1000.0
"""Steps per scale of real values at which the compression of their differences begins."""
Align = Callable[[Tensor], Tensor]


class LocatedLikelihood(Likelihood, ABC):
    """Likelihood with locations among its parameters, which may be given relative to a prediction."""

    @property
    @abstractmethod
    def locations(self) -> int:
        """Return the number of locations at a position, channel by channel."""

    @abstractmethod
    def around(self, predictions: Tensor, parameters: Tensor) -> Tensor:
        """Place the locations of parameters `[B, P, *spatial]` around predictions `[B, locations, *spatial]`.

        They are then prediction + scale * location, so that narrow components stay near. The result is what `forward`
        takes.
        """

    @abstractmethod
    def residual_bias(self) -> Tensor:
        """Return the initial parameters `[P]` that `around` takes."""


class History(nn.Module, ABC):
    """Maps values in network units, missing ones as 0, to the input of an autoregressive network.

    Rows of values begin with `past` zeros: `[B, C, H, past + W]`.
    """

    past: int
    """Number of values before a position that are needed."""
    features: int
    """Channels of the input."""

    @abstractmethod
    def forward(self, y: Tensor) -> Tensor:
        """Compute the network's input at each position, `[B, features, H, W]`."""

    @abstractmethod
    def located(self, parameters: Tensor, y: Tensor, align: Align) -> Tensor:
        """Return parameters `[B, P, H, W]` with locations relative to the values before each position.

        Args:
            parameters: `[B, P, H, W]`.
            y: values `[B, C, H, past + W]`, of which the last per row are not used.
            align: converts predictions from the network units of y to those of the locations.
        """


@final
class PlainHistory(History):
    """Passes values and parameters unchanged."""

    past = 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = channels

    def forward(self, y: Tensor) -> Tensor:
        return y

    def located(self, parameters: Tensor, y: Tensor, align: Align) -> Tensor:
        return parameters


@final
class SampleHistory(History):
    """History of a signal of numbers: differences of samples, and linear prediction of locations.

    The network sees each sample y, and y and its first and second difference compressed by asinh(n) / asinh(n_max),
    with n in levels, since one level matters in a quiet sound and is lost in a loud one. Each location is relative to
    a linear function of the last samples (Atal & Hanauer 1971), at first y_(t-1), 2 y_(t-1) - y_(t-2) or 0 in turn.

    Args:
        likelihood: likelihood of the values, which gets the predictions.
        channels: C.
        values: of one number.
    """

    def __init__(self, likelihood: LocatedLikelihood, channels: int, values: Values) -> None:
        super().__init__()
        self.around, self.past, self.features = likelihood.around, ORDER, 4 * channels
        self.finest = (values.levels - 1) / 2 if values.discrete else FINEST
        self.predict = nn.Conv1d(channels, likelihood.locations, self.past, bias=False)
        with torch.no_grad():
            weights = self.predict.weight.zero_().unflatten(0, (channels, -1))
            for c in range(channels):
                weights[c, 0::3, c, -1] = 1 / GAIN
                weights[c, 1::3, c, -2:] = torch.tensor([-1.0, 2.0]) / GAIN

    def forward(self, y: Tensor) -> Tensor:
        steps = y.diff()
        curves = [part[..., part.shape[-1] - y.shape[-1] + self.past :] for part in (y, steps, steps.diff())]
        return torch.cat([curves[0], *(self._compressed(part) for part in curves)], 1)

    def _compressed(self, y: Tensor) -> Tensor:
        return torch.asinh(y * self.finest) / math.asinh(self.finest)

    def located(self, parameters: Tensor, y: Tensor, align: Align) -> Tensor:
        with torch.autocast(y.device.type, enabled=False):  # bfloat16 would be off by many levels
            weight = GAIN * self.predict.weight
            near = F.conv1d(y[..., :-1].squeeze(2).to(weight.dtype), weight).unsqueeze(2)
            return self.around(align(near), parameters.to(near.dtype))
