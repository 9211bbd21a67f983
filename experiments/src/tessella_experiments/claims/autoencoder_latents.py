"""an autoencoder's z has no usable structure; aligning q(z) with a prior makes sampling work.

An autoencoder and a VAE with the same networks, updates and units. What the autoencoder makes of z ~ N(0, I) is
compared with what the VAE makes of it, by the Frechet distance to unseen data in the features of a small network of the
same data. The divergence of the aggregate posterior q(z) = E_x q(z | x) from N(0, I) is that of the Gaussian with its
moments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tessella import Model, Noise
from tessella.plugin import Rows
from tessella_experiments.measuring import CLASSIFIER, distance, features_named, row_of
from tessella_experiments.models import AE, VAE
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, difference
from tessella_experiments.runner import AT_ONCE, ExperimentRunner

SAMPLES, SHOWN = 1000, 12


@torch.inference_mode()
def run(runner: ExperimentRunner) -> Finding:
    data = runner.unseen(SAMPLES).x
    found: dict[str, list[float]] = {name: [] for name in ("ae", "fitted", "vae", "kl ae", "kl vae")}
    shown: list[tuple[str, Tensor]] = [("data", data[:SHOWN])]
    for seed in runner.seeds:
        ae, vae = runner.model(AE, seed), runner.model(VAE, seed)
        z = Noise(seed, stream="claim 1").normal(SAMPLES, *ae.latent_shape)
        of_ae, of_vae = _latents(ae, runner, seed), _latents(vae, runner, seed)
        fitted = _like(of_ae, z)
        drawn = {"ae": _drawn(ae, z), "fitted": _drawn(ae, fitted), "vae": _drawn(vae, z)}
        for name, x in drawn.items():
            found[name].append(distance(runner, x, data))
        found["kl ae"].append(_divergence(of_ae))
        found["kl vae"].append(_divergence(of_vae))
        if len(shown) == 1:
            words = {"ae": "autoencoder, z ~ N(0, I)", "fitted": "autoencoder, z ~ N(m, S)", "vae": "VAE, z ~ N(0, I)"}
            shown += [(words[name], x[:SHOWN]) for name, x in drawn.items()]
    of_data = distance(runner, runner.examples(SAMPLES).x, data)
    effects = [
        EffectTest.over(
            "Frechet distance of the autoencoder's samples less that of the VAE's",
            difference(found["ae"], found["vae"]),
        ),
        EffectTest.over(
            "divergence of the autoencoder's q(z) from N(0, I) less that of the VAE's",
            difference(found["kl ae"], found["kl vae"]),
            unit="nats",
        ),
    ]
    measures = [
        Measure.over("Frechet distance, autoencoder and z ~ N(0, I)", found["ae"]),
        Measure.over("Frechet distance, autoencoder and z ~ N(m, S), the moments of its q(z)", found["fitted"]),
        Measure.over("Frechet distance, VAE", found["vae"]),
        Measure("Frechet distance, training data", of_data),
        Measure.over("KL of q(z), as a Gaussian, from N(0, I), autoencoder", found["kl ae"], "nats"),
        Measure.over("KL of q(z), as a Gaussian, from N(0, I), VAE", found["kl vae"], "nats"),
    ]
    shown_measures = dict(zip(("AE, N(0, I)", "AE, N(m, S)", "VAE", "data"), measures, strict=False))
    rows = [(name, row_of(x, runner.schema)) for name, x in shown]
    plots = [
        bars("Frechet distance to unseen data", shown_measures),
        Rows(rows, "Samples are the means of p(x | z), of one seed."),
    ]
    sentence = (
        f"decoding N(0, I) gives a Frechet distance of {measures[0].value:.3g} with the autoencoder and "
        f"{measures[2].value:.3g} with the VAE (data: {of_data:.2g}; {features_named(runner)}); q(z) is "
        f"{measures[4].value:,.3g} and {measures[5].value:.2g} nats from N(0, I)"
    )
    return Finding.of(sentence, effects, measures, plots)


def _drawn(model: Model, z: Tensor) -> Tensor:
    return torch.cat([model.decode(part).mean for part in z.to(model.device).split(AT_ONCE)])


def _latents(model: Model, runner: ExperimentRunner, seed: int) -> Tensor:
    """z of training examples, drawn from q(z | x) where that is a distribution: `[N, units]` float64."""
    x = runner.examples(4 * SAMPLES).x
    parts = [
        model.encode(part, noise=Noise(seed, number, "claim 1 latents")).z
        for number, part in enumerate(x.split(AT_ONCE))
    ]
    return torch.cat(parts).flatten(1).double()


def _like(latents: Tensor, z: Tensor) -> Tensor:
    """Standard normal z moved to the mean and covariance of the latents."""
    values, vectors = torch.linalg.eigh(torch.cov(latents.T).reshape(latents.shape[1], -1))
    moved = (z.flatten(1).double() * values.clamp_min(0).sqrt()) @ vectors.T + latents.mean(0)
    return moved.float().view_as(z)


def _divergence(latents: Tensor) -> float:
    """KL(N(m, S) || N(0, I)) of the latents' moments, in nats; unused units count as if they had a variance of 1e-4."""
    values = torch.linalg.eigvalsh(torch.cov(latents.T).reshape(latents.shape[1], -1)).clamp_min(1e-4)
    return float(0.5 * (values - 1 - values.log()).sum() + 0.5 * latents.mean(0).square().sum())


CLAIM = Claim(
    number=1,
    title="An autoencoder's z has no usable structure; a prior makes sampling work",
    hypothesis=(
        "Decoding z ~ N(0, I), the autoencoder's samples are farther from unseen data than the VAE's (Frechet "
        "distance), and the autoencoder's aggregate posterior is farther from N(0, I) than the VAE's."
    ),
    method=(
        f"AE and VAE of the same networks, units and updates; {SAMPLES:,} samples each, in the features of a small "
        "network trained on the same data"
    ),
    run=run,
    needs=(CLASSIFIER, AE, VAE),
)
