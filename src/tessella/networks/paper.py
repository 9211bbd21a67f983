"""The VQ-VAE paper's convolutional network (van den Oord et al. 2017, section 4.1), for comparison with our own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.contracts import Decoder, Encoder


class PaperBlock(nn.Module):
    """`x + conv1x1(relu(conv3x3(relu(x))))`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class PaperEncoder(Encoder):
    """Two 4 x 4 convolutions of stride 2, two residual blocks: `[B, C, H, W]` to `[B, width, H / 4, W / 4]`."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(shape[0], width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            PaperBlock(width),
            PaperBlock(width),
            nn.ReLU(),
        )
        self.feature_shape = (width, -(-shape[1] // 4), -(-shape[2] // 4))

    def forward(self, x: Tensor, label: Tensor | None) -> Tensor:
        h, w = x.shape[-2:]
        return self.layers(F.pad(x, (0, -w % 4, 0, -h % 4), mode="replicate"))


class PaperDecoder(Decoder):
    """Two residual blocks, two transposed 4 x 4 convolutions of stride 2."""

    def __init__(self, latent_shape: tuple[int, ...], shape: tuple[int, ...], channels: int, width: int) -> None:
        super().__init__()
        self.grid, self.size = tuple(latent_shape[1:]), tuple(shape[1:])
        self.layers = nn.Sequential(
            nn.Conv2d(latent_shape[0], width, 3, padding=1),
            PaperBlock(width),
            PaperBlock(width),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1),
        )

    def forward(self, z: Tensor, label: Tensor | None) -> Tensor:
        out = self.layers(z)
        return out[..., : self.size[0], : self.size[1]] if tuple(z.shape[2:]) == self.grid else out

    @torch.no_grad()
    def start_at(self, bias: Tensor) -> None:
        """Let the first output be `bias` `[channels]` everywhere, plus a small part that depends on z."""
        last = self.layers[-1]
        assert isinstance(last, nn.ConvTranspose2d)
        assert last.bias is not None
        last.weight.mul_(0.1)
        last.bias.copy_(bias)
