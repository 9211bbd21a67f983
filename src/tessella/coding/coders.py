"""Coders of one chunk of examples: codes and values, bits-back, or codes alone.

Each coder has `at_once`, the examples of a chunk; `encode` turns examples `[B, *shape]` as stored into a `CodedChunk`,
and `decode` restores the same examples, whose lengths it needs if some end early. Encoding and decoding run the same
networks in the same order. Networks run on one CPU thread, on batches whose sizes the file states, so that both ends
compute the same floats whatever the number of threads. Several chunks run in parallel instead.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import cast, final

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from tessella import __version__
from tessella.bottlenecks.gaussian import DiagonalGaussianModule
from tessella.coding.codes_file import codes_of
from tessella.coding.container import Chunk, checksum
from tessella.core.contracts import StoredValues
from tessella.core.entropy_coding import AnsStack, SymbolCoder, SymbolDecoder, SymbolEncoder, code_from_cdf
from tessella.core.observed import before_end
from tessella.core.outputs import Latent, Rate
from tessella.core.rng import Noise
from tessella.foundation.errors import DataError, SpecError, option
from tessella.foundation.text import shown
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors.normal import StandardNormalModule

PARAMETERS = 1 << 22
"""Values that a decoder outputs at once: 16 MiB; larger batches take more memory and no less time."""
BATCH, LONGEST = 1024, 1 << 24
"""Maximum number of examples in a batch, and of values in a chunk of bits-back coding."""
SETTINGS = (
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE",
)  # fmt: skip
"""Environment variables that affect how floats are computed."""
BUCKETS = 16
"""Bits per latent unit: the prior is divided into 2^16 buckets of equal mass."""


class Mismatch(DataError):
    """The bits are as they were written, but do not decode to the values that were coded."""


@final
@dataclass(frozen=True)
class CodedChunk:
    """A chunk, and the model's bound for it in nats."""

    chunk: Chunk
    bound: float


@cache
def _processor() -> str:
    """Return the processor's name, with family and model number where the system reports them."""
    said: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            said.setdefault(name.strip(), value.strip())
    numbers = [f"{what} {said[key]}" for what, key in (("family", "cpu family"), ("model", "model")) if key in said]
    return " ".join([said.get("model name") or platform.processor() or "unnamed processor", *numbers])


def software_versions() -> str:
    """List what the floats of a file depend on: versions, processor, instruction sets, libraries, settings."""
    built = torch.__config__.show()
    versions = [f"tessella {__version__}", f"torch {torch.__version__}", f"constriction {version('constriction')}"]
    for name, pattern in (("oneDNN", r"MKL-DNN (v[\d.]+)"), ("MKL", r"Math Kernel Library Version ([\w.]+)")):
        found = re.search(pattern, built)
        versions.append(f"{name} {found[1] if found else 'none'}")
    machine = f"{platform.system()} {platform.machine()}"
    parts = [*versions, machine, _processor(), torch.backends.cpu.get_cpu_capability()]
    if not torch.backends.mkldnn.enabled:
        parts.append("oneDNN off")
    parts += [f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name)]
    return shown(", ".join(" ".join(part.split())[:120] for part in parts))


@final
class Lossless:
    """Codes under the prior, then values under p(x | codes).

    The length is the bound, since q is a point mass.

    Args:
        model: a model with codes.

    Raises:
        SpecError: if its likelihood is a density.
    """

    def __init__(self, model: CodeModel) -> None:
        self._model, self.at_once = model, _batch(model)
        self.dtype = _stored_type(model)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> CodedChunk:
        stack = AnsStack()
        encoder = SymbolEncoder(stack)
        codes, seen = codes_of(self._model, x), _observed(self._model, x)
        self._model.code(encoder, len(x), codes, present=self._model.before_end(x))
        bound = encoder.bits * math.log(2)
        bound -= float(self._decode(codes).encode(encoder, x, seen).double().sum())
        encoder.flush()
        return CodedChunk(Chunk((len(x),), stack.words(), 0, checksum(x.numpy())), bound)

    @torch.inference_mode()
    def decode(self, chunk: Chunk, lengths: Tensor | None = None) -> Tensor:
        count = _one_batch(chunk, self.at_once)
        decoder = SymbolDecoder(AnsStack(chunk.words))
        blank = _blank(self._model, lengths)
        present = [] if blank is None else self._model.before_end(blank)
        seen = None if blank is None else _observed(self._model, blank)
        codes = self._model.code(decoder, count, present=present)
        x = self._decode(codes).code(decoder, observed=seen).to(self.dtype)
        return _verified(x, chunk)

    def _decode(self, codes: tuple[Tensor, ...]) -> StoredValues:
        return self._model.decode(self._model.lookup(codes))


@final
class BitsBack:
    """Latents by bits-back coding, then values under p(x | z).

    Townsend et al. 2019, section 2; Hinton & van Camp 1993. Each unit of z is one of 2^16 buckets of equal mass under
    the prior. To code x: pop z from the stack as a sample of q(z | x), which removes bits; push x under p(x | z); push
    z under p(z). The net length is the bound. Decoding runs the same steps in reverse and puts the bits of z back. The
    first samples need initial bits, so the first examples are coded one by one, and batches grow with the stack.

    Args:
        model: a model with a normal q(z | x) and a normal prior.

    Raises:
        SpecError: if the model is another, or its likelihood is a density.
    """

    def __init__(self, model: LatentVariableModel) -> None:
        if not model.has_bound:
            raise model.no_prior_error()
        if not isinstance(model.prior, StandardNormalModule):
            raise SpecError(
                f"bits-back coding needs the prior N(0, I), and this model uses another: choose {option('prior')} "
                "trained, or train a vae with the normal prior",
                code="not-normal",
            )
        if not isinstance(model.bottleneck, DiagonalGaussianModule):
            raise SpecError(
                f"bits-back coding needs a Gaussian posterior: train a vae without {option('posterior')}",
                code="not-normal",
            )
        self._model, self._batch = model, _batch(model)
        self.at_once = max(1, LONGEST // model.schema.dims)
        self.dtype = _stored_type(model)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> CodedChunk:
        stack, sizes, bound, each, done = AnsStack(), [], 0.0, math.inf, 0
        spare = untouched = 0
        while done < len(x):
            count = int(min(max(stack.bits / each, 1), self._batch, len(x) - done))
            part = x[done : done + count]
            latent, q = self._posterior(part)
            each = BUCKETS * q.units
            if stack.bits < count * each:
                words = _seeded(count * each // 32 + 2, spare)
                stack.add_initial_bits(words)
                spare, untouched = spare + len(words), untouched + len(words)
            before = stack.bits
            at = q.code(SymbolDecoder(stack))
            each = max(1.0, (before - stack.bits) / count * 1.2)
            untouched = min(untouched, max(0, stack.bits // 32 - 2))
            p_x = self._decode(at)
            encoder = SymbolEncoder(stack)
            q.code_prior(encoder, at)
            log_p = p_x.encode(encoder, part, _observed(self._model, part))
            encoder.flush()
            bound += float(cast(Rate, self._model.rate(latent)).total.double().sum() - log_p.double().sum())
            sizes.append(count)
            done += count
        stack.drop_initial_bits(untouched)
        return CodedChunk(Chunk(tuple(sizes), stack.words(), spare - untouched, checksum(x.numpy())), bound)

    @torch.inference_mode()
    def decode(self, chunk: Chunk, lengths: Tensor | None = None) -> Tensor:
        if max(chunk.batches) > self._batch or sum(chunk.batches) > self.at_once:
            raise _too_large()
        stack, parts, end = AnsStack(chunk.words), [], sum(chunk.batches)
        for count in reversed(chunk.batches):
            if stack.bits < (count - 1) * math.prod(self._model.latent_shape) * BUCKETS:
                raise Mismatch("the bits end before the last example", code="bits-end")
            decoder = SymbolDecoder(stack)
            at = Buckets.sample(decoder, count, self._model.latent_shape)
            blank = _blank(self._model, None if lengths is None else lengths[end - count : end])
            seen, end = None if blank is None else _observed(self._model, blank), end - count
            x = self._decode(at).code(decoder, observed=seen).to(self.dtype)
            encoder = SymbolEncoder(stack)
            self._posterior(x)[1].code(encoder, at)
            encoder.flush()
            parts.append(x)
        return _verified(torch.cat(parts[::-1]), chunk)

    def _posterior(self, x: Tensor) -> tuple[Latent, Buckets]:
        latent = self._model.encode(contiguous_copy(x))
        return latent, Buckets(latent.posterior)

    def _decode(self, at: Tensor) -> StoredValues:
        return self._model.decode(Buckets.middle(contiguous_copy(at)).float())


@final
class Buckets:
    """q(z | x) over buckets of N(0, 1), in float64.

    Bucket i lies between the quantiles i / 2^16 and (i + 1) / 2^16.

    Args:
        posterior: independent normals, batch shape `[B]`.
    """

    def __init__(self, posterior: Distribution | None) -> None:
        if not isinstance(posterior, Independent) or not isinstance(posterior.base_dist, Normal):
            raise SpecError("bits-back coding needs a normal q(z | x): train a vae", code="not-normal")
        self._mean, self._deviation = posterior.mean.double(), posterior.stddev.double()
        self.units = math.prod(posterior.event_shape)

    @staticmethod
    def middle(at: Tensor) -> Tensor:
        """Compute the middle of each bucket: z `[B, *latent_shape]` float64 from bucket numbers."""
        return torch.special.ndtri((at.double() + 0.5) / 2**BUCKETS)

    @staticmethod
    def sample(decoder: SymbolCoder, count: int, shape: tuple[int, ...]) -> Tensor:
        """Decode bucket numbers `[count, *shape]` under the prior."""
        return decoder.code_uniform(2**BUCKETS, count * math.prod(shape), None).view(count, *shape)

    def code(self, coder: SymbolCoder, at: Tensor | None = None) -> Tensor:
        """Code bucket numbers under q, `[B, *latent_shape]` int64."""

        def below(t: Tensor) -> Tensor:
            return torch.special.ndtr((torch.special.ndtri(t / 2**BUCKETS) - self._mean) / self._deviation)

        known = None if at is None else at.double()
        return code_from_cdf(coder, below, BUCKETS, known, torch.zeros_like(self._mean)).long()

    def code_prior(self, encoder: SymbolCoder, at: Tensor) -> None:
        """Code bucket numbers under the prior."""
        encoder.code_uniform(2**BUCKETS, at.numel(), at.flatten())


@final
class CodesOnly:
    """Codes under the prior, and nothing else; decoding them gives reconstructions.

    A picture of another size than the model's has another grid, which no learned prior covers: its codes are coded as
    equally likely.

    Args:
        model: a model with codes.
    """

    def __init__(self, model: CodeModel) -> None:
        self._model, self.at_once = model, _batch(model)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> CodedChunk:
        stack = AnsStack()
        encoder = SymbolEncoder(stack)
        codes, present = codes_of(self._model, x), self._model.before_end(x)
        self._code(encoder, len(x), self._shapes(tuple(x.shape[2:])), codes, present)
        rate = encoder.bits * math.log(2)
        encoder.flush()
        return CodedChunk(Chunk((len(x),), stack.words(), 0, checksum(_flat(codes))), rate)

    @torch.inference_mode()
    def decode_codes(self, chunk: Chunk, size: tuple[int, ...], lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """Decode the codes of all levels, for examples of this size, or windows that end after so many positions."""
        count, shapes = _one_batch(chunk, self.at_once), self._shapes(size)
        if shapes != list(self._model.code_shapes):
            sizes = [math.log2(q.codebook_size) for q in self._model.levels]
            bits = count * sum(math.prod(s) * b for s, b in zip(shapes, sizes, strict=True))
            if bits > 32 * len(chunk.words) + 64:
                raise Mismatch("the bits end before the last code", code="bits-end")
        blank = _blank(self._model, lengths)
        present = [] if blank is None else self._model.before_end(blank)
        codes = self._code(SymbolDecoder(AnsStack(chunk.words)), count, shapes, None, present)
        _verify(_flat(codes), chunk)
        return codes

    def _shapes(self, size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the code shape of each level for an example of this size."""
        trained = self._model.code_shapes
        if size == self._model.schema.shape[1:]:
            return list(trained)
        if any(q.codebook_size < 2 for q in self._model.levels):
            raise SpecError(
                f"a codebook with one code cannot represent a picture's size: leave out {option('native_size')}",
                code="one-code",
            )
        strides = self._model.downsampling
        return [(shape[0], *(-(-side // t) for side in size)) for shape, t in zip(trained, strides, strict=True)]

    def _code(
        self,
        coder: SymbolCoder,
        count: int,
        shapes: list[tuple[int, ...]],
        codes: tuple[Tensor, ...] | None,
        present: Sequence[Tensor | None],
    ) -> tuple[Tensor, ...]:
        if shapes == list(self._model.code_shapes):
            return self._model.code(coder, count, codes, present=present)
        coded = []
        for level, (shape, quantizer) in enumerate(zip(shapes, self._model.levels, strict=True)):
            known = None if codes is None else codes[level].flatten()
            even = coder.code_uniform(quantizer.codebook_size, count * math.prod(shape), known)
            coded.append(even.view(count, *shape))
        return tuple(coded)


Coder = Lossless | BitsBack | CodesOnly


def contiguous_copy(x: Tensor) -> Tensor:
    """Copy a tensor into the memory layout of a new one, since rounding in kernels depends on strides.

    `contiguous` is not enough: it leaves the strides of axes of length one as they are.
    """
    return x.clone(memory_format=torch.contiguous_format)


def _observed(model: Model, x: Tensor) -> Tensor | None:
    """Return the positions of examples that are observed, `[B, T]` bool; None: all."""
    return before_end(x, 1) if model.schema.lengths else None


def _blank(model: Model, lengths: Tensor | None) -> Tensor | None:
    """Make examples of zeros that end after so many positions; None if no example of the model ends early."""
    if lengths is None or not model.schema.lengths:
        return None
    (window,) = model.schema.spatial
    blank = torch.zeros(len(lengths), 1, window)
    return blank.masked_fill(torch.arange(window) >= lengths.view(-1, 1, 1), torch.nan)


def _one_batch(chunk: Chunk, most: int) -> int:
    """Return the number of examples of a chunk that has one batch.

    Raises:
        DataError: if they are more than the networks take at once.
    """
    count = sum(chunk.batches)
    if len(chunk.batches) > 1 or count > most:
        raise _too_large()
    return count


def _too_large() -> DataError:
    return DataError("its batches are larger than compression makes them", code="batch-too-large")


def _verified(x: Tensor, chunk: Chunk) -> Tensor:
    _verify(x.numpy(), chunk)
    return x


def _verify(values: np.ndarray, chunk: Chunk) -> None:
    """Check that these are the values that were coded.

    Raises:
        Mismatch: if they are not.
    """
    if not chunk.is_of(values):
        raise Mismatch("the decoded values do not match their checksum", code="checksum")


def _seeded(count: int, step: int) -> np.ndarray:
    """Return pseudo-random initial words, the same at each call; the last is not zero."""
    numbers = Noise(0, step, "bits-back").uniform(count).double() * 2**32
    return numbers.numpy().astype(np.uint32) | 1


def _flat(codes: tuple[Tensor, ...]) -> np.ndarray:
    return torch.cat([c.flatten() for c in codes]).numpy().astype("<i4")


def _batch(model: CodeModel | LatentVariableModel) -> int:
    """Return the number of examples that the networks take at once."""
    schema = model.schema
    positions = math.prod(schema.spatial)
    return max(1, min(BATCH, PARAMETERS // (model.likelihood.parameter_channels * positions)))


def _stored_type(model: CodeModel | LatentVariableModel) -> torch.dtype:
    """Return the type of decoded values; raise SpecError if they have a density, or may be missing."""
    if model.schema.missing:
        raise SpecError(
            f"examples with missing values have no lossless code: use {option('lossy')}", code="missing-values"
        )
    if not model.schema.values.discrete:
        raise SpecError(
            f"real values have a density and no lossless code: use {option('lossy')}, or train on integers",
            code="density",
        )
    return torch.uint8 if model.schema.in_bytes else torch.float32
