"""The catalogue: every exchangeable part by name, without importing any of them.

One entry here and one class elsewhere is all that a new part takes. The catalogue feeds the command line, the
specification of a run, the documentation's tables and the conformance tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from tessella.foundation.errors import SpecError

Kind = Literal["likelihood", "bottleneck", "quantizer", "prior", "code-prior", "model", "evaluation"]


@dataclass(frozen=True)
class Entry:
    """One part: its name at the faces, where it is defined, and what it is in one line.

    Attributes:
        values: for a likelihood, the stored values that it is normalised on.
    """

    kind: Kind
    name: str
    target: str
    summary: str
    values: tuple[str, ...] = ()

    def load(self) -> Any:
        """The class or function itself."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


CATALOGUE: tuple[Entry, ...] = (
    Entry("likelihood", "bernoulli", "tessella.likelihoods:Bernoulli", "binary values", ("binary",)),
    Entry(
        "likelihood",
        "logistic",
        "tessella.likelihoods:LogisticMixture",
        "mixture of discretised logistics with channel dependence, for 8-bit pictures",
        ("uint8",),
    ),
    Entry(
        "likelihood",
        "categorical",
        "tessella.likelihoods:Categorical",
        "a free probability for each of 256 values",
        ("uint8",),
    ),
    Entry(
        "likelihood",
        "gaussian",
        "tessella.likelihoods:Gaussian",
        "real values, the scale predicted for each",
        ("real",),
    ),
    Entry(
        "likelihood",
        "gaussian-fixed",
        "tessella.likelihoods:FixedGaussian",
        "real values, one scale for all: squared error as a likelihood",
        ("real",),
    ),
    Entry(
        "likelihood",
        "autoregressive",
        "tessella.likelihoods.autoregressive:Autoregressive",
        "each pixel given those before it and the decoder's features: the strongest bounds, at the price of slow draws",
        ("binary", "uint8", "real"),
    ),
    Entry(
        "bottleneck",
        "deterministic",
        "tessella.bottlenecks.gaussian:Deterministic",
        "the features themselves: an autoencoder, without rate or bound",
    ),
    Entry(
        "bottleneck",
        "gaussian",
        "tessella.bottlenecks.gaussian:DiagonalGaussian",
        "q(z|x) = N(mu, sigma^2), factorised and reparameterised",
    ),
    Entry(
        "bottleneck",
        "flow",
        "tessella.bottlenecks.flow:FlowPosterior",
        "a Gaussian followed by inverse autoregressive steps (Kingma et al. 2016)",
    ),
    Entry(
        "quantizer",
        "vq",
        "tessella.bottlenecks.quantizers:VectorQuantizer",
        "vector quantisation, codebook by gradient (van den Oord et al. 2017)",
    ),
    Entry(
        "quantizer",
        "ema",
        "tessella.bottlenecks.quantizers:EMAQuantizer",
        "vector quantisation, codebook by exponential averages, dead codes revived",
    ),
    Entry(
        "quantizer",
        "simvq",
        "tessella.bottlenecks.quantizers:SimVQ",
        "vector quantisation, codebook a frozen table times a learned map (Zhu et al. 2024)",
    ),
    Entry(
        "quantizer",
        "residual",
        "tessella.bottlenecks.quantizers:ResidualQuantizer",
        "several codes a position, each for what the ones before left over (Zeghidour et al. 2021)",
    ),
    Entry(
        "quantizer",
        "fsq",
        "tessella.bottlenecks.quantizers:FSQ",
        "finite scalar quantisation: numbers rounded to a few levels (Mentzer et al. 2023)",
    ),
    Entry(
        "quantizer",
        "lfq",
        "tessella.bottlenecks.quantizers:LFQ",
        "lookup-free quantisation: a code is a row of signs (Yu et al. 2023)",
    ),
    Entry("prior", "normal", "tessella.priors.normal:StandardNormal", "p(z) = N(0, I)"),
    Entry(
        "prior",
        "class-normal",
        "tessella.priors.normal:ClassNormal",
        "p(z | label) = N(mu_label, sigma_label^2), learned",
    ),
    Entry(
        "prior",
        "mixture",
        "tessella.priors.mixture:MixturePrior",
        "a mixture of Gaussians, weights, means and scales learned",
    ),
    Entry(
        "prior",
        "vamp",
        "tessella.priors.mixture:VampPrior",
        "VampPrior: a mixture of the posteriors of learned pseudo-inputs (Tomczak & Welling 2018)",
    ),
    Entry(
        "prior",
        "flow",
        "tessella.priors.flow:FlowPrior",
        "N(0, I) through spline couplings, on larger grids through convolutional ones: exact density, fast draws",
    ),
    Entry(
        "prior",
        "diffusion",
        "tessella.priors.diffusion:DiffusionPrior",
        "a diffusion chain over z: log p(z) bounded from below, drawn in 50 steps or fewer",
    ),
    Entry("code-prior", "uniform", "tessella.priors.uniform:Uniform", "every code as likely as any other"),
    Entry(
        "code-prior",
        "pixelcnn",
        "tessella.priors.pixelcnn:PixelCNN",
        "gated PixelCNN: code after code in raster order, by causal convolutions",
    ),
    Entry(
        "code-prior",
        "transformer",
        "tessella.priors.transformer:CausalTransformer",
        "causal transformer: code after code in raster order, with cached keys and values",
    ),
    Entry(
        "code-prior",
        "masked",
        "tessella.priors.masked:MaskedTransformer",
        "any-order masked transformer: fills in any codes given any others, samples in a few steps",
    ),
    Entry(
        "evaluation",
        "bounds",
        "tessella.evaluation.bounds:evaluate",
        "rate, distortion, bound and importance-weighted bound",
    ),
    Entry("model", "ae", "tessella.models.presets:AE", "autoencoder: reconstructs, has no prior and so no bound"),
    Entry("model", "vae", "tessella.models.presets:VAE", "variational autoencoder (Kingma & Welling 2013)"),
    Entry(
        "model",
        "beta-vae",
        "tessella.models.presets:BetaVAE",
        "VAE trained with the rate weighted by beta (Higgins et al. 2017)",
    ),
    Entry(
        "model",
        "cvae",
        "tessella.models.presets:CVAE",
        "conditional VAE: encoder, decoder and prior see the label (Sohn et al. 2015)",
    ),
    Entry("model", "vqvae", "tessella.models.presets:VQVAE", "a grid of codes (van den Oord et al. 2017)"),
    Entry(
        "model",
        "vqvae2",
        "tessella.models.presets:VQVAE2",
        "grids of codes, coarse and fine (Razavi et al. 2019)",
    ),
    Entry("model", "vqvae-paper", "tessella.models.presets:VQVAE2017", "VQ-VAE with its paper's own network"),
    Entry("model", "flow", "tessella.models.presets:Flow", "invertible map with exact likelihood (Dinh et al. 2017)"),
    Entry(
        "model",
        "diffusion",
        "tessella.models.presets:Diffusion",
        "variational diffusion in the data's own space (Kingma et al. 2021)",
    ),
)


def entries(kind: Kind) -> tuple[Entry, ...]:
    """All entries of one kind, in the catalogue's order."""
    return tuple(e for e in CATALOGUE if e.kind == kind)


def names(kind: Kind) -> tuple[str, ...]:
    """Their names."""
    return tuple(e.name for e in entries(kind))


def find(kind: Kind, name: str) -> Entry:
    """The entry of that name.

    Raises:
        SpecError: naming what there is.
    """
    for entry in entries(kind):
        if entry.name == name:
            return entry
    raise SpecError(f"no {kind} is called {name!r}; there are: {', '.join(names(kind))}")
