"""Models with discrete codes: one level (VQ-VAE) or several, coarse to fine (VQ-VAE-2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tessella.core.configs import CodePriorConfig, LikelihoodConfig, QuantizerConfig
from tessella.core.contracts import CodePrior, Decoder, Encoder, Likelihood, Quantizer, StoredValues
from tessella.core.distributions import PointMass
from tessella.core.entropy_coding import SymbolCoder
from tessella.core.observed import before_end, trimmed
from tessella.core.outputs import Condition, Latent, Rate, Sampling, Terms
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError, option
from tessella.foundation.progress import track
from tessella.likelihoods import likelihood_for
from tessella.models.base import LatentModel
from tessella.models.penalties import SPECTRAL_PENALTY, SpectralPenalty
from tessella.models.spec import ModelConfig
from tessella.models.streaming import Stream
from tessella.networks.conv import ConvDecoder, ConvEncoder, ConvPlan, crop, is_colour
from tessella.networks.mlp import VectorDecoder, VectorEncoder
from tessella.networks.pyramid import Merge, Pyramid
from tessella.priors.uniform import UniformModule

Codes = Sequence[Tensor]
"""Codes of each level `[B, *code_shape]` int64, coarsest first."""


@final
class CodeModel(LatentModel):
    """Model with discrete codes c (van den Oord et al. 2017; Razavi et al. 2019).

    p(x, c) = p(x | c) prod_l p(c_l | c_<l), and q(c | x) is a point mass. The encoder runs once. At each level its
    features and the coarser levels' code vectors are quantised to the level's codes. One decoder maps the vectors of
    all levels to x, the coarser ones repeated to the finest grid. So z is one tensor `[B, D, *grid]`, and the rate is
    -log p(c): N log K until a prior is fitted.

    Args:
        name, likelihood, config: as in `Model`.
        encoder: maps x to the finest level's features.
        quantizers: one per level, coarsest first.
        decoder: maps z to the likelihood's parameters.
        merge_depth: residual blocks for the features of each further level.
        spectral_penalty: penalty `[B]` of reconstructions and stored values `[B, *shape]` in training; None: none.
        conditional: whether the decoder takes the label, which the codes then need not carry: p(x | c, label).
    """

    prior_part, has_decoder = "code-prior", True
    learning_rate = 3e-3

    def __init__(
        self,
        name: str,
        *,
        likelihood: Likelihood,
        encoder: Encoder,
        quantizers: Sequence[Quantizer],
        decoder: Decoder,
        merge_depth: int = 2,
        spectral_penalty: SpectralPenalty | None = None,
        conditional: bool = False,
        config: ModelConfig | None = None,
    ) -> None:
        super().__init__(name, likelihood, config, conditional=conditional)
        self.networks_see_labels = conditional
        channels, levels, self.spectral_penalty = encoder.feature_shape[0], len(quantizers), spectral_penalty
        self.encoder, self.decoder, self.merge_depth = encoder, decoder, merge_depth
        self.quantizers = nn.ModuleList(quantizers)
        self.levels = tuple(quantizers)
        self.downsampling = tuple(encoder.downsampling * 2**i for i in reversed(range(levels)))
        rank = len(quantizers[-1].code_shape) - 1
        self.pyramid = Pyramid(channels, levels, merge_depth, rank) if levels > 1 else None
        self.merges = nn.ModuleList(Merge(channels, width, merge_depth, rank) for width in self.context_channels[1:])
        self.latent_shape = (sum(q.latent_shape[0] for q in quantizers), *quantizers[-1].latent_shape[1:])
        self.set_prior(
            [UniformModule(shape, q.codebook_size) for shape, q in zip(self.prior_shapes, quantizers, strict=True)]
        )

    # what the parts are

    @property
    def prior_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shapes `(C, *grid)` that priors use: the codes of a vector form a sequence."""
        return tuple((1, *s) if len(s) == 1 else s for s in self.code_shapes)

    @property
    def level_margin(self) -> int:
        """Return the largest distance of the features that a code depends on by way of the coarser levels."""
        if self.pyramid is None:
            return 0
        return self.downsampling[0] + 2 * self.merge_depth * 2 * sum(self.downsampling)

    @property
    def context_channels(self) -> tuple[int, ...]:
        """Return the number of channels of each level's context, the vectors of the coarser levels."""
        widths = [q.latent_shape[0] for q in self.levels]
        return tuple(sum(widths[:level]) for level in range(len(widths)))

    def build_priors(
        self, config: CodePriorConfig, classes: int = 0, examples: Callable[[int], Tensor] | None = None
    ) -> list[CodePrior]:
        return [
            config.build(shape, quantizer.codebook_size, context_channels=context, classes=classes)
            for shape, quantizer, context in zip(self.prior_shapes, self.levels, self.context_channels, strict=True)
        ]

    def set_prior(self, priors: Sequence[CodePrior]) -> None:
        self.priors = nn.ModuleList(priors)
        self.fitted = not all(isinstance(prior, UniformModule) for prior in priors)
        self.conditional = self.networks_see_labels or any(prior.classes for prior in priors)

    # what every model does

    def forward(
        self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None, draws: int | None = None
    ) -> Terms:
        if self.training and self.schema.lengths:
            x = trimmed(x, self.downsampling[0])  # what is silent in the whole batch would only take time
        if draws is not None:
            return self._of_draws(x, label, noise or Noise(0), draws)
        latent = self.encode(x, noise=noise)
        rate, p_x, penalty = self.rate(latent, label), self.decode(latent.z, label), latent.penalty
        if self.training and self.spectral_penalty is not None:
            heard = self.spectral_penalty(p_x.mean[..., : x.shape[-1]], x)
            penalty = heard if penalty is None else penalty + heard
        return Terms.of(-p_x.log_prob(x), rate, penalty)

    def _of_draws(self, x: Tensor, label: Tensor | None, noise: Noise, draws: int) -> Terms:
        """Compute the terms for `draws` code grids per example, sampled by the softened quantizers.

        Their weights w = p(x, c) / q(c | x) average to p(x), as with continuous latents (Burda et al. 2015, eq. 8). A
        discrete sample has no gradient: decoder and prior follow the gradient of the weights, and a penalty moves q to
        where the weights are large: -sum_k w_k / (sum_j w_j) log q(c_k | x) (reweighted wake-sleep, Bornschein & Bengio
        2015, eq. 8).
        """
        labels = None if label is None else label.repeat_interleave(draws)
        codes, vectors, log_q = self._proposed(x, noise, draws)
        log_p = [level.flatten(1).sum(1) for level in self.log_prob_codes(codes, labels, vectors)]
        rate = log_q.detach() - torch.stack(log_p).sum(0)
        z = _joined(vectors, vectors[-1].shape[2:])
        distortion = -self.decode(z, labels).log_prob(x.repeat_interleave(draws, 0))
        log_w = -(distortion + rate).view(len(x), draws).T
        toward = None
        if log_q.requires_grad:
            toward = -(log_w.detach().softmax(0) * log_q.view(len(x), draws).T).sum(0)
        distortion, rate = distortion.view(len(x), draws).mean(1), rate.view(len(x), draws).mean(1)
        return Terms(distortion, rate, penalty=toward, log_weights=log_w)

    def _proposed(self, x: Tensor, noise: Noise, draws: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Sample codes and vectors of each level, `draws` per example, with log q of all levels together."""
        grids = self.features(x)
        codes: list[Tensor] = []
        vectors: list[Tensor] = []
        log_q = grids[0].new_zeros(len(x) * draws, dtype=torch.float32)
        for level, (quantizer, grid, present) in enumerate(zip(self.levels, grids, self.before_end(x), strict=True)):
            grid = grid.repeat_interleave(draws, 0)
            if level:
                grid = self.merges[level - 1](grid, _joined(vectors, grid.shape[2:]))
            c, nats = quantizer.sample_proposal(grid, noise.split(f"level{level}"))
            if present is not None:
                ended = ~present.repeat_interleave(draws, 0)
                c, nats = c.masked_fill(ended.unsqueeze(1), -1), nats.masked_fill(ended, 0)
            codes.append(c)
            vectors.append(quantizer.lookup(c))
            log_q = log_q + nats.view(len(nats), -1).sum(1)
        return codes, vectors, log_q

    def encode(self, x: Tensor, label: Tensor | None = None, *, noise: Noise | None = None) -> Latent:
        return self.quantise(self.features(x, noise), noise=noise, present=self.before_end(x))

    def features(self, x: Tensor, noise: Noise | None = None) -> list[Tensor]:
        """Compute the features of each level, `[B, F, *grid]`, coarsest first, from stored values `[B, *shape]`."""
        features = self.encoder(self.encoder_input(x, noise), None)
        return [features] if self.pyramid is None else self.pyramid(features)

    def before_end(self, x: Tensor) -> list[Tensor | None]:
        """Return the positions of each level before the end of each example, `[B, *grid]` bool; None: all."""
        if not self.schema.lengths:
            return [None] * len(self.levels)
        return [before_end(x, stride) for stride in self.downsampling]

    def quantise(
        self, grids: Sequence[Tensor], *, noise: Noise | None = None, present: Sequence[Tensor | None] = ()
    ) -> Latent:
        """Quantise the features of each level, given the codes of the coarser ones.

        The trace of the result holds each level's vectors. `present` is the result of `before_end`.
        """
        present = present or [None] * len(grids)
        codes, vectors, penalty = [], [], grids[0].new_zeros(len(grids[0]), dtype=torch.float32)
        for level, (quantizer, grid) in enumerate(zip(self.levels, grids, strict=True)):
            if level:
                grid = self.merges[level - 1](grid, _joined(vectors, grid.shape[2:]))
            out = quantizer(grid, None if noise is None else noise.split(f"level{level}"), present[level])
            codes.append(cast(PointMass, out.posterior).value)
            vectors.append(out.z)
            penalty = penalty if out.penalty is None else penalty + out.penalty
        z = _joined(vectors, vectors[-1].shape[2:])
        return Latent(z, None, penalty, tuple(codes), tuple(vectors))

    def rate(self, latent: Latent, label: Tensor | None = None, *, noise: Noise | None = None) -> Rate:
        per_code = -torch.cat([t.flatten(1) for t in self.log_prob_codes(latent.codes, label, latent.trace)], 1)
        return Rate(per_code.sum(1), per_code)

    def decode(self, z: Tensor, label: Tensor | None = None) -> StoredValues:
        # The memory layout of z decides how kernels round, and differs between codes looked up and encoded.
        shown = self.check_label(label) if self.networks_see_labels else None
        return self.likelihood(self.decoder(z.clone(memory_format=torch.contiguous_format), shown))

    @torch.no_grad()
    def sample_prior(
        self, count: int, label: Tensor | None = None, *, seed: int = 0, sampling: Sampling | None = None
    ) -> Tensor:
        return self.lookup(self.sample_codes(count, label, seed=seed, sampling=sampling))

    def compile_networks(self) -> None:
        self.encoder.compile()
        self.decoder.compile()

    # what models of codes do besides

    def use_codes(self, count: int | None) -> None:
        most = min(q.code_shape[0] for q in self.levels)
        if count is not None and not (all(q.nested for q in self.levels) and 1 <= count <= most):
            remedy = (
                f"give {option('codes_used')} from 1 to {most}"
                if all(q.nested for q in self.levels)
                else f"leave out {option('codes_used')}, or train with {option('quantizer')} residual"
            )
            raise SpecError(
                f"the model {self.name} cannot use {count} codes of a position: {remedy}", code="codes-used"
            )
        for quantizer in self.levels:
            quantizer.codes_used = count

    def stream(self) -> Stream:
        """Return an encoder and decoder of recordings of any length, piece by piece."""
        return Stream(self)

    def lookup(self, codes: Codes) -> Tensor:
        """Look up z `[B, D, *grid]` of the codes of all levels; grids larger than in training are accepted."""
        vectors = [q.lookup(c) for q, c in zip(self.levels, codes, strict=True)]
        return _joined(vectors, vectors[-1].shape[2:])

    def draw_codes(self, x: Tensor, noise: Noise) -> tuple[Tensor, ...]:
        """Sample codes of all levels from the softened q(c | x) that importance-weighted training uses."""
        return tuple(self._proposed(x, noise, 1)[0])

    def log_prob_codes(
        self, codes: Codes, label: Tensor | None = None, vectors: Codes | None = None, *, noise: Noise | None = None
    ) -> tuple[Tensor, ...]:
        """Compute log p of each code given the codes before it and the coarser levels.

        The result is `[B, *code_shape]` nats for each level.

        Args:
            codes: codes of each level.
            label: `[B]`, for a class-conditional prior.
            vectors: vectors of the codes, if they are already known.
            noise: as in `CodePrior.forward`.
        """
        vectors = vectors or [q.lookup(c) for q, c in zip(self.levels, codes, strict=True)]
        found = []
        for level, (prior, c) in enumerate(zip(self.priors, codes, strict=True)):
            grid = c if c.dim() > 2 else c[:, None]
            condition = self._condition(vectors[:level], grid.shape[2:], label)
            noise_here = None if noise is None else noise.split(f"level{level}")
            log_p = prior(grid.clamp_min(0), condition, noise=noise_here)
            found.append(log_p.reshape(c.shape).masked_fill(c < 0, 0))
        return tuple(found)

    def sample_codes(
        self, count: int, label: Tensor | None = None, *, seed: int = 0, sampling: Sampling | None = None
    ) -> tuple[Tensor, ...]:
        """Sample codes of all levels from the prior, coarsest first.

        Args:
            count: number of examples.
            label: `[count]`, for a class-conditional prior.
            seed: seed of all randomness.
            sampling: temperature and cut-offs.

        Raises:
            SpecError: if steps or guidance are given, which only diffusion has.
        """
        if sampling is not None:
            sampling.reject_steps(f"the model {self.name}")

        def generate(level: int, prior: CodePrior, condition: Condition) -> Tensor:
            return prior.sample(count, Noise(seed, level, "prior"), condition, sampling=sampling)

        return self._by_level(count, label, generate)

    @torch.no_grad()
    def sample_uniform(self, count: int, *, seed: int = 0) -> Tensor:
        """Sample `[count, *shape]` as `sample` does, but with all codes equally probable, and each class in turn."""
        priors = [UniformModule(q.code_shape, q.codebook_size) for q in self.levels]
        codes = [prior.sample(count, Noise(seed, level, "prior")) for level, prior in enumerate(priors)]
        label = torch.arange(count, device=self.device) % max(1, len(self.schema.classes))
        return self.decode(self.lookup([c.to(self.device) for c in codes]), label).mean

    def inpaint_codes(
        self,
        codes: Codes,
        known: Codes,
        label: Tensor | None = None,
        *,
        seed: int = 0,
        sampling: Sampling | None = None,
    ) -> tuple[Tensor, ...]:
        """Sample the unknown codes, coarsest level first, by `CodePrior.inpaint`.

        Each level is conditional on the resulting coarser levels, but not on the finer ones.

        Args:
            codes, known: `[B, *code_shape]` of each level, int64 and bool.
            label: `[B]`, for a class-conditional prior.
            seed: seed of all randomness.
            sampling: temperature and cut-offs.

        Returns:
            The codes of each level, with the known ones unchanged.
        """

        def generate(level: int, prior: CodePrior, condition: Condition) -> Tensor:
            if known[level].all():
                return codes[level]
            grid, mask = (t[level].reshape(-1, *prior.code_shape) for t in (codes, known))
            none = grid < 0
            noise = Noise(seed, level, "prior")
            new = prior.inpaint(grid.clamp_min(0), mask | none, noise, condition, sampling=sampling)
            return new.masked_fill(none, -1)

        return self._by_level(len(codes[0]), label, generate)

    def code(
        self,
        coder: SymbolCoder,
        count: int,
        codes: Codes | None = None,
        label: Tensor | None = None,
        present: Sequence[Tensor | None] = (),
    ) -> tuple[Tensor, ...]:
        """Write the codes of all levels, or read those of `count` examples, coarsest first, at a cost of -log p.

        `present` is the result of `before_end`; where it is false there are no codes.
        """

        def generate(level: int, prior: CodePrior, condition: Condition) -> Tensor:
            shape = (count, *prior.code_shape)
            known = None if codes is None else codes[level].reshape(shape)
            here, used = present[level] if present else None, self.levels[level].codes_used
            if here is None and used is None:
                return prior.code(coder, count, known, condition)
            slots, *grid = self.levels[level].code_shape
            mask = torch.ones(count, slots, *grid, dtype=torch.bool) if here is None else here.unsqueeze(1)
            mask = mask & (torch.arange(slots) < (used or slots)).view(-1, *(1,) * len(grid))
            mask = mask.reshape(shape)
            return prior.code(coder, count, known, condition, mask).masked_fill(~mask, -1)

        return self._by_level(count, label, generate)

    @torch.no_grad()
    def _by_level(
        self, count: int, label: Tensor | None, generate: Callable[[int, CodePrior, Condition], Tensor]
    ) -> tuple[Tensor, ...]:
        """Generate the codes of all levels, `[count, *code_shape]` each, conditional on the coarser levels."""
        codes: list[Tensor] = []
        vectors: list[Tensor] = []
        for level, quantizer in track(list(enumerate(self.levels)), "generating codes"):
            prior = cast(CodePrior, self.priors[level])
            condition = self._condition(vectors, torch.Size(prior.code_shape[1:]), label)
            codes.append(generate(level, prior, condition).reshape(count, *quantizer.code_shape).to(self.device))
            vectors.append(quantizer.lookup(codes[-1]))
        return tuple(codes)

    def _condition(self, coarser: Codes, grid: torch.Size, label: Tensor | None) -> Condition:
        """Make the condition of a level's prior: the label, and the vectors of the coarser levels."""
        context = _joined(coarser, grid).detach() if coarser else None
        sees = any(prior.classes for prior in self.priors)
        return Condition(self.check_label(label) if sees else None, context)

    def checked_codes(self, codes: Codes) -> tuple[Tensor, ...]:
        """Return the codes as int64 on the model's device, after checking shapes and values.

        Raises:
            SpecError: if the number of levels or a shape is wrong, or a code is outside 0 ... K - 1.
        """
        if len(codes) != len(self.levels):
            raise SpecError(
                f"the model {self.name} has {len(self.levels)} levels of codes, got {len(codes)}", code="other-codes"
            )
        for level, (c, q) in enumerate(zip(codes, self.levels, strict=True)):
            expected = q.code_shape
            if c.dim() != len(expected) + 1 or c.shape[1] != expected[0] or 0 in c.shape[1:]:
                raise SpecError(
                    f"codes of level {level} have shape {_by(c.shape[1:])} per example, the model's have "
                    f"{_by(expected)}: encode the examples with this run",
                    code="other-codes",
                )
            least = -1 if self.schema.lengths or q.codes_used else 0
            if len(c) and (int(c.min()) < least or int(c.max()) >= q.codebook_size):
                raise SpecError(
                    f"codes of level {level} must be between 0 and {q.codebook_size - 1}, got {int(c.min())} to "
                    f"{int(c.max())}: encode the examples with this run",
                    code="other-codes",
                )
        for level in range(1, len(codes)):
            coarse, fine = codes[level - 1].shape[2:], codes[level].shape[2:]
            if tuple(coarse) != tuple(-(-side // 2) for side in fine):
                raise SpecError(
                    f"codes of level {level} form a grid of {_by(fine)}, which does not match the coarser "
                    f"level's {_by(coarse)}: encode the examples with this run",
                    code="other-codes",
                )
        return tuple(c.to(self.device, torch.int64) for c in codes)


def _joined(vectors: Codes, size: torch.Size) -> Tensor:
    """Join the vectors of several levels to one map, repeating each coarse position over 2 x 2 finer ones."""
    if len(vectors) == 1 and vectors[0].shape[2:] == size:
        return vectors[0]
    fitted = []
    for v in vectors:
        times = 1
        while v.shape[2:] != tuple(-(-side // times) for side in size):
            times *= 2
        fitted.append(crop(F.interpolate(v, scale_factor=float(times), mode="nearest"), size))
    return torch.cat(fitted, 1)


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def build_code_model(
    config: ModelConfig,
    schema: Schema,
    *,
    levels: int,
    likelihood: LikelihoodConfig | None,
    quantizer: QuantizerConfig,
    grid_size: int | None,
    width: int | None,
    depth: int | None,
    spectral_penalty: float | None,
    classes: int = 0,
) -> CodeModel:
    """Make a model of codes for such data: `levels` grids, each coarser one of half the side.

    Args:
        classes: number of labels that the decoder sees; 0: none.
    """
    p_x, size = likelihood_for(schema, likelihood), {"width": width or 256, "depth": depth or 3}
    plan: ConvPlan | None = None
    if schema.rank:
        fine = is_colour(schema.shape)
        plan = ConvPlan.usual(
            schema.shape, fine=fine, rate=schema.rate, side=grid_size, width=width, depth=depth, coarser=True
        )
        encoder: Encoder = ConvEncoder(schema.encoder_shape, plan)
    else:
        encoder = VectorEncoder(schema.encoder_shape[0], **size)
    features, *grid = encoder.feature_shape
    grids = [[-(-side // 2**i) for side in grid] for i in reversed(range(levels))]
    quantizers = [quantizer.build((features, *sides)) for sides in grids]
    latent = (sum(q.latent_shape[0] for q in quantizers), *grid)
    if plan is not None:
        decoder: Decoder = ConvDecoder(latent, plan, p_x.parameter_channels, classes=classes)
    else:
        decoder = VectorDecoder(latent[0], p_x.parameter_channels, **size, classes=classes)
    if (bias := p_x.initial_bias()) is not None:
        decoder.start_at(bias)
    if spectral_penalty is None:
        spectral_penalty = SPECTRAL_PENALTY if schema.rate and not p_x.sequential_mean else 0.0
    if spectral_penalty and p_x.sequential_mean:
        raise SpecError(
            f"{option('spectral_penalty')} needs reconstructions, which this likelihood makes sample by sample: "
            f"leave out {option('likelihood')}",
            code="sequential-mean",
        )
    return CodeModel(
        config.name,
        likelihood=p_x,
        encoder=encoder,
        quantizers=quantizers,
        decoder=decoder,
        spectral_penalty=SpectralPenalty(schema, spectral_penalty) if spectral_penalty else None,
        conditional=bool(classes),
        config=config,
    )
