"""A variational autoencoder in 150 lines: the whole idea in one file, with PyTorch alone.

    python examples/vae_in_150_lines.py

The data are 8 x 8 handwritten digits of ink and paper: x is a row of 64 bits. The model says how it comes about:

    z ~ N(0, I)                 sixteen numbers that describe a digit
    x ~ Bernoulli(p(z))         each pixel is ink with a probability that a network computes from z

What we want to raise is log p(x) = log integral p(z) p(x | z) dz: the probability that the model gives to real digits.
Nobody can compute that integral. But any q(z | x) gives a bound on it (Kingma & Welling 2013; Jensen's inequality):

    -log p(x)  <=  E_q[-log p(x | z)]  +  KL(q(z | x) || p(z))
                   distortion             rate
                   what z does not say    what it costs to say z

A second network computes q(z | x) = N(mu(x), sigma(x)^2). Both networks are trained to lower the bound. Everything is
counted in nats, and shown in bits per pixel: the file size that a compressor would reach with this model.
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNITS, WIDTH, DEPTH = 16, 64, 1
STEPS, BATCH, RATE = 3000, 64, 2e-3
AVERAGE = 0.999


class Residual(nn.Module):
    """A layer that adds something to what comes in, so that deep stacks are easy to train."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(F.silu(self.first(F.silu(h))))


def network(inputs: int, outputs: int) -> nn.Sequential:
    layers = [Residual() for _ in range(DEPTH)]
    return nn.Sequential(nn.Linear(inputs, WIDTH), *layers, nn.SiLU(), nn.Linear(WIDTH, outputs))


class VAE(nn.Module):
    """p(z) p(x | z) and q(z | x), for examples of `pixels` bits."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.encoder = network(pixels, WIDTH)
        self.posterior = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * UNITS))
        self.decoder = network(UNITS, pixels)
        with torch.no_grad():  # at first q is near N(0, I), and p(x | z) near 1/2
            for parameter in self.posterior.parameters():
                parameter.mul_(0.1)
            self.decoder[-1].weight.mul_(0.1)
            self.decoder[-1].bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Bits `[B, pixels]` to distortion and rate, `[B]` nats each."""
        # Pixels are 0 or 1; networks like numbers around zero.
        mu, log_sigma = self.posterior(self.encoder(2 * x - 1)).chunk(2, dim=1)
        log_sigma = log_sigma.clamp(-8, 4)

        # The trick of the paper: z is a differentiable function of mu and sigma, and of noise that is neither.
        z = mu + log_sigma.exp() * torch.randn_like(mu)

        # -log p(x | z). It is a sum over pixels, not a mean: a mean would be another model, with other weights.
        distortion = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(1)

        # KL(N(mu, sigma^2) || N(0, 1)) has a closed form, so it needs no sample.
        rate = 0.5 * (mu.square() + (2 * log_sigma).exp() - 1 - 2 * log_sigma).sum(1)
        return distortion, rate

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """New digits: the probability of ink, `[count, pixels]`."""
        return self.decoder(torch.randn(count, UNITS)).sigmoid()


def train(x: Tensor, steps: int = STEPS, seed: int = 0) -> VAE:
    """Fit a model to bits `[N, pixels]`."""
    torch.manual_seed(seed)
    model = VAE(x.shape[1])
    averaged = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    for step in range(steps):
        # A short rise, then half a cosine down to zero.
        done = step / steps
        scale = done / 0.03 if done < 0.03 else 0.5 * (1 + math.cos(math.pi * (done - 0.03) / 0.97))
        optimizer.param_groups[0]["lr"] = RATE * max(scale, 1 / steps)

        batch = x[torch.randint(len(x), (BATCH,))]
        distortion, rate = model(batch)
        loss = (distortion + rate).mean() / x.shape[1]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        # The average of the weights along the way is a better model than the last of them.
        weight = 1 - min(AVERAGE, (step + 1) / (step + 10))
        with torch.no_grad():
            for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, weight)
    return averaged


@torch.no_grad()
def bound(model: VAE, x: Tensor, draws: int = 10) -> tuple[float, float]:
    """Mean distortion and rate, nats per example; the bound is their sum."""
    parts = torch.stack([torch.stack(model(x)) for _ in range(draws)])
    distortion, rate = parts.double().mean((0, 2)).tolist()
    return distortion, rate


def main() -> None:
    from sklearn.datasets import load_digits  # only for the pictures

    x = torch.tensor(load_digits().data >= 8).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x_test, x_train = x[order[:300]], x[order[300:]]
    model = train(x_train)
    distortion, rate = bound(model, x_test)
    bits = (distortion + rate) / math.log(2) / x.shape[1]
    print(
        f"rate {rate:.2f} + distortion {distortion:.2f} = bound {rate + distortion:.2f} nats: {bits:.3f} bits a pixel"
    )
    for row in model.sample(6).view(6, 8, 8).permute(1, 0, 2):
        print("   ".join("".join(" .:o#"[int(4.99 * p)] for p in digit) for digit in row))


if __name__ == "__main__":
    main()
