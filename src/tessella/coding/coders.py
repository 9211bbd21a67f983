"""How the examples of one chunk become bits and come back. What is done is one walk, the same at both ends.

Each coder has `at_once`, the examples of a chunk; `encode`, examples `[B, *shape]` as stored to a `Coded`; and
`decode`, a chunk to the same examples. Networks run on one thread of one processor, on batches whose sizes the file
says, so that both ends compute the same floats on any number of threads; several chunks run side by side instead.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from tessella.core.outputs import Latent, Rate
from tessella.core.rng import Noise
from tessella.foundation.errors import DataError, SpecError, option
from tessella.foundation.text import shown
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.priors.normal import StandardNormalModule

PARAMETERS = 1 << 24
"""Numbers that a decoder gives at once: 64 MiB."""
BATCH, LONGEST = 1024, 1 << 24
"""Examples in a batch at most; numbers of data in a chunk of bits-back coding."""
SETTINGS = (
    "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
    "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE",
)  # fmt: skip
"""Variables of the environment that choose how floats are computed."""
BUCKETS = 16
"""Bits of a latent unit: the prior is cut into 2^16 buckets of equal mass."""


class Mismatch(DataError):
    """The bits are as they were written, and decode to something else or to nothing."""


@final
@dataclass(frozen=True)
class CodedChunk:
    """A chunk, and the model's bound for it in nats."""

    chunk: Chunk
    bound: float


@contextmanager
def single_threaded() -> Iterator[None]:
    """One thread an operation, so that sums are taken in one order whatever the machine's number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _processor() -> str:
    """The processor's name, and where the system tells it the numbers that names leave out."""
    said: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            said.setdefault(name.strip(), value.strip())
    numbers = [f"{what} {said[key]}" for what, key in (("family", "cpu family"), ("model", "model")) if key in said]
    return " ".join([said.get("model name") or platform.processor() or "unnamed processor", *numbers])


def software_versions() -> str:
    """What the floats of a file depend on, in words: versions, processor, instruction sets, libraries, settings."""
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
    """Codes under the prior, then values under p(x | codes): as long as the bound says, for q is a point mass.

    Args:
        model: a model of codes.

    Raises:
        SpecError: if its likelihood is a density.
    """

    def __init__(self, model: CodeModel) -> None:
        self._model, self.at_once = model, _batch(model)
        self.dtype = _stored_type(model)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> CodedChunk:
        stack = AnsStack()
        sender = SymbolEncoder(stack)
        codes = codes_of(self._model, x)
        self._model.code(sender, len(x), codes)
        bound = sender.bits * math.log(2)
        drawing = self._drawing(codes)
        drawing.code(sender, x)
        sender.flush()
        bound -= float(drawing.log_prob(x).double().sum())
        return CodedChunk(Chunk((len(x),), stack.words(), 0, checksum(x.numpy())), bound)

    @torch.inference_mode()
    def decode(self, chunk: Chunk) -> Tensor:
        count = _one_batch(chunk, self.at_once)
        receiver = SymbolDecoder(AnsStack(chunk.words))
        x = self._drawing(self._model.code(receiver, count)).code(receiver).to(self.dtype)
        return _verified(x, chunk)

    def _drawing(self, codes: tuple[Tensor, ...]) -> StoredValues:
        return self._model.decode(self._model.lookup(codes))


@final
class BitsBack:
    """z by bits-back coding, then values under p(x | z) (Townsend et al. 2019, section 2; Hinton & van Camp 1993).

    Each unit of z is one of 2^16 buckets of equal mass under the prior. To code x: pop z from the stack as a draw from
    q(z | x), which takes bits off; push x under p(x | z); push z under p(z). The net price is the bound. Decoding does
    the same backwards and puts the bits that z took back. The first draws need bits to start from: the first examples
    go alone, and as the stack grows batches do.

    Args:
        model: a model with a normal q(z | x) and a normal prior.

    Raises:
        SpecError: if it is another, or its likelihood is a density.
    """

    def __init__(self, model: LatentVariableModel) -> None:
        if not model.has_bound:
            raise model.no_prior_error()
        if not isinstance(model.prior, StandardNormalModule):
            raise SpecError(
                f"bits-back coding is for the prior N(0, I), and this one is another: give {option('prior')} trained, "
                "or train a vae with the normal prior",
                code="not-normal",
            )
        if not isinstance(model.bottleneck, DiagonalGaussianModule):
            raise SpecError(
                f"bits-back coding is for a Gaussian posterior, not another: train a vae without {option('posterior')}",
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
            drawing = self._drawing(at)
            sender = SymbolEncoder(stack)
            q.code_prior(sender, at)
            drawing.code(sender, part)
            sender.flush()
            bound += float(
                cast(Rate, self._model.rate(latent)).total.double().sum() - drawing.log_prob(part).double().sum()
            )
            sizes.append(count)
            done += count
        stack.drop_initial_bits(untouched)
        return CodedChunk(Chunk(tuple(sizes), stack.words(), spare - untouched, checksum(x.numpy())), bound)

    @torch.inference_mode()
    def decode(self, chunk: Chunk) -> Tensor:
        if max(chunk.batches) > self._batch or sum(chunk.batches) > self.at_once:
            raise _too_large()
        stack, parts = AnsStack(chunk.words), []
        for count in reversed(chunk.batches):
            if stack.bits < (count - 1) * math.prod(self._model.latent_shape) * BUCKETS:
                raise Mismatch("the bits end before its examples do", code="bits-end")
            receiver = SymbolDecoder(stack)
            at = Buckets.drawn(receiver, count, self._model.latent_shape)
            x = self._drawing(at).code(receiver).to(self.dtype)
            sender = SymbolEncoder(stack)
            self._posterior(x)[1].code(sender, at)
            sender.flush()
            parts.append(x)
        return _verified(torch.cat(parts[::-1]), chunk)

    def _posterior(self, x: Tensor) -> tuple[Latent, Buckets]:
        latent = self._model.encode(contiguous_copy(x))
        return latent, Buckets(latent.posterior)

    def _drawing(self, at: Tensor) -> StoredValues:
        return self._model.decode(Buckets.middle(contiguous_copy(at)).float())


@final
class Buckets:
    """q(z | x) over the buckets of N(0, 1): bucket i goes from the quantile i / 2^16 to the next. In float64.

    Args:
        posterior: independent normals, batch shape `[B]`.
    """

    def __init__(self, posterior: Distribution | None) -> None:
        if not isinstance(posterior, Independent) or not isinstance(posterior.base_dist, Normal):
            raise SpecError("bits-back coding is for a normal q(z | x): train a vae", code="not-normal")
        self._mean, self._deviation = posterior.mean.double(), posterior.stddev.double()
        self.units = math.prod(posterior.event_shape)

    @staticmethod
    def middle(at: Tensor) -> Tensor:
        """z `[B, *latent_shape]` float64 of the buckets' numbers."""
        return torch.special.ndtri((at.double() + 0.5) / 2**BUCKETS)

    @staticmethod
    def drawn(receiver: SymbolCoder, count: int, shape: tuple[int, ...]) -> Tensor:
        """Numbers of buckets `[count, *shape]` from the prior."""
        return receiver.code_uniform(2**BUCKETS, count * math.prod(shape), None).view(count, *shape)

    def code(self, coder: SymbolCoder, at: Tensor | None = None) -> Tensor:
        """Numbers of buckets under q, `[B, *latent_shape]` int64."""

        def below(t: Tensor) -> Tensor:
            return torch.special.ndtr((torch.special.ndtri(t / 2**BUCKETS) - self._mean) / self._deviation)

        known = None if at is None else at.double()
        return code_from_cdf(coder, below, BUCKETS, known, torch.zeros_like(self._mean)).long()

    def code_prior(self, sender: SymbolCoder, at: Tensor) -> None:
        """The numbers under the prior."""
        sender.code_uniform(2**BUCKETS, at.numel(), at.flatten())


@final
class CodesOnly:
    """Codes under the prior, and nothing else: what they stand for is drawn when they are decoded.

    A picture of another size than the model's has another grid, which no learned prior knows: its codes are told as
    equally probable.

    Args:
        model: a model of codes.
    """

    def __init__(self, model: CodeModel) -> None:
        self._model, self.at_once = model, _batch(model)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> CodedChunk:
        stack = AnsStack()
        sender = SymbolEncoder(stack)
        codes = codes_of(self._model, x)
        self._code(sender, len(x), self._shapes(tuple(x.shape[2:])), codes)
        rate = sender.bits * math.log(2)
        sender.flush()
        return CodedChunk(Chunk((len(x),), stack.words(), 0, checksum(_flat(codes))), rate)

    @torch.inference_mode()
    def decode_codes(self, chunk: Chunk, size: tuple[int, ...]) -> tuple[Tensor, ...]:
        """The codes of all levels, of examples of that size."""
        count, shapes = _one_batch(chunk, self.at_once), self._shapes(size)
        if shapes != list(self._model.code_shapes):
            sizes = [math.log2(q.codebook_size) for q in self._model.levels]
            bits = count * sum(math.prod(s) * b for s, b in zip(shapes, sizes, strict=True))
            if bits > 32 * len(chunk.words) + 64:
                raise Mismatch("the bits end before its codes do", code="bits-end")
        codes = self._code(SymbolDecoder(AnsStack(chunk.words)), count, shapes, None)
        _verify(_flat(codes), chunk)
        return codes

    def _shapes(self, size: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Of the codes of an example of that size, a level each."""
        trained = self._model.code_shapes
        if size == self._model.schema.shape[1:]:
            return list(trained)
        if any(q.codebook_size < 2 for q in self._model.levels):
            raise SpecError(
                f"codes that are always the same say nothing of a picture's size: leave out {option('native_size')}",
                code="one-code",
            )
        strides = self._model.downsampling
        return [(shape[0], *(-(-side // t) for side in size)) for shape, t in zip(trained, strides, strict=True)]

    def _code(
        self, coder: SymbolCoder, count: int, shapes: list[tuple[int, ...]], codes: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, ...]:
        if shapes == list(self._model.code_shapes):
            return self._model.code(coder, count, codes)
        told = []
        for level, (shape, quantizer) in enumerate(zip(shapes, self._model.levels, strict=True)):
            known = None if codes is None else codes[level].flatten()
            even = coder.code_uniform(quantizer.codebook_size, count * math.prod(shape), known)
            told.append(even.view(count, *shape))
        return tuple(told)


Coder = Lossless | BitsBack | CodesOnly


def contiguous_copy(x: Tensor) -> Tensor:
    """A copy that lies in memory as a new tensor does: kernels choose by strides how they round.

    `contiguous` is not enough, for the strides of an axis of one may be anything.
    """
    return x.clone(memory_format=torch.contiguous_format)


def _one_batch(chunk: Chunk, most: int) -> int:
    """The examples of a chunk of one batch.

    Raises:
        DataError: if they are more than go through the networks at once.
    """
    count = sum(chunk.batches)
    if len(chunk.batches) > 1 or count > most:
        raise _too_large()
    return count


def _too_large() -> DataError:
    return DataError("its batches are larger than any that are made", code="batch-too-large")


def _verified(x: Tensor, chunk: Chunk) -> Tensor:
    _verify(x.numpy(), chunk)
    return x


def _verify(values: np.ndarray, chunk: Chunk) -> None:
    """Whether these are the values that were coded.

    Raises:
        Mismatch: if they are not.
    """
    if not chunk.is_of(values):
        raise Mismatch("the decoded values do not match their checksum", code="checksum")


def _seeded(count: int, step: int) -> np.ndarray:
    """Random words to start from, always the same ones; the last is not zero."""
    numbers = Noise(0, step, "bits-back").uniform(count).double() * 2**32
    return numbers.numpy().astype(np.uint32) | 1


def _flat(codes: tuple[Tensor, ...]) -> np.ndarray:
    return torch.cat([c.flatten() for c in codes]).numpy().astype("<i4")


def _batch(model: CodeModel | LatentVariableModel) -> int:
    """Examples that go through the networks at once."""
    schema = model.schema
    positions = math.prod(schema.spatial)
    return max(1, min(BATCH, PARAMETERS // (model.likelihood.parameter_channels * positions)))


def _stored_type(model: CodeModel | LatentVariableModel) -> torch.dtype:
    """Type of decoded values; SpecError if they have a density."""
    if not model.schema.values.discrete:
        raise SpecError(
            f"real values have a density, which no code reaches: give {option('lossy')}, or train on integers",
            code="density",
        )
    return torch.uint8 if model.schema.values.in_bytes else torch.float32
