"""Codes of recordings of any length, piece by piece, in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, final

import torch
from torch import Tensor

from tessella.core.contracts import Decoder, Encoder, Quantizer, StoredValues
from tessella.core.outputs import Latent
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError
from tessella.kinds.base import kind_of

WINDOW = 1 << 14
"""Samples of a window, about, besides its margins."""


class StreamedModel(Protocol):
    """Model of signals whose codes and samples can be computed in windows; a `CodeModel` may be one."""

    name: str
    downsampling: tuple[int, ...]
    encoder: Encoder
    decoder: Decoder

    @property
    def levels(self) -> Sequence[Quantizer]: ...
    @property
    def schema(self) -> Schema: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def level_margin(self) -> int: ...
    def eval(self) -> Any: ...
    def features(self, x: Tensor) -> list[Tensor]: ...
    def quantise(self, grids: Sequence[Tensor], *, present: Sequence[Tensor | None]) -> Latent: ...
    def lookup(self, codes: Sequence[Tensor]) -> Tensor: ...
    def decode(self, z: Tensor) -> StoredValues: ...


@final
class Stream:
    """Encodes and decodes recordings that come in pieces; the result does not depend on how they are cut.

    A recording is continued by silence on both sides, which networks see as 0. As convolutions see a limited part of
    it, its codes are computed in windows that overlap by this much, of one size and at the same places whatever the
    pieces. So the results are equal bit for bit.

    Args:
        model: model of signals with codes; it is evaluated, without labels.

    Raises:
        SpecError: if each code depends on the whole example.
    """

    def __init__(self, model: StreamedModel) -> None:
        encoder, decoder = model.encoder.margin, model.decoder.margin
        if not kind_of(model.schema).timed or encoder is None or decoder is None:
            raise SpecError(f"the model {model.name} does not encode signals piece by piece", code="no-stream")
        model.eval()
        self.model = model
        self.coarsest = model.downsampling[0]
        self.window = -(-WINDOW // self.coarsest) * self.coarsest
        between = model.level_margin
        self.before_codes = -(-(encoder + between) // self.coarsest) * self.coarsest
        self.before_samples = -(-decoder // self.coarsest) * self.coarsest

    @torch.inference_mode()
    def encode(self, pieces: Iterable[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Encode a recording that comes in pieces `[C, n]` of stored values.

        Yields the codes `[codes, n]` of each level, coarsest first, as soon as the samples that they depend on are
        there.
        """
        channels = self.model.schema.channels
        kept = torch.full((channels, self.before_codes), torch.nan)
        start, end = -self.before_codes, 0
        whole = self.window + 2 * self.before_codes
        for piece in pieces:
            kept, end = torch.cat([kept, piece.float()], 1), end + piece.shape[1]
            while kept.shape[1] >= whole:
                yield self._codes(kept[:, :whole], start, None)
                kept, start = kept[:, self.window :], start + self.window
        while start + self.before_codes < end:
            missing = whole - kept.shape[1]
            full = torch.cat([kept, torch.full((channels, max(0, missing)), torch.nan)], 1)[:, :whole]
            yield self._codes(full, start, end)
            kept, start = kept[:, self.window :], start + self.window

    @torch.inference_mode()
    def decode(self, pieces: Iterable[tuple[Tensor, ...]], length: int | None = None) -> Iterator[Tensor]:
        """Decode codes of each level, in pieces as `encode` returns them, to the mean of p(x | codes) `[C, n]`.

        Args:
            pieces: codes; the pieces may be cut at any position of the coarsest level.
            length: samples of the recording. Default: as many as the codes stand for.
        """
        model, margin = self.model, self.before_samples
        kept = [torch.full((q.code_shape[0], margin // stride), -1) for q, stride in self._levels()]
        whole = self.window + 2 * margin
        done = given = 0
        for piece in pieces:
            kept = [torch.cat([k, c.to("cpu")], 1) for k, c in zip(kept, piece, strict=True)]
            given += piece[-1].shape[1] * model.downsampling[-1]
            while all(k.shape[1] * stride >= whole for k, (_, stride) in zip(kept, self._levels(), strict=True)):
                yield self._samples(kept)
                kept = [k[:, self.window // stride :] for k, (_, stride) in zip(kept, self._levels(), strict=True)]
                done += self.window
        end = given if length is None else min(length, given)
        while done < end:
            yield self._samples(kept)[:, : end - done]
            kept = [k[:, self.window // stride :] for k, (_, stride) in zip(kept, self._levels(), strict=True)]
            done += self.window

    def _levels(self) -> Iterator[tuple[Quantizer, int]]:
        return zip(self.model.levels, self.model.downsampling, strict=True)

    def _codes(self, x: Tensor, start: int, end: int | None) -> tuple[Tensor, ...]:
        """Encode a window with its margins, `[C, samples]` from position `start`; `end` is the recording's, if near."""
        model, samples = self.model, x.shape[1]
        present = []
        for stride in model.downsampling:
            at = start + stride * torch.arange(samples // stride)
            inside = (at >= 0) & (at < (start + samples if end is None else end))
            present.append(inside[None].to(model.device))
        codes = model.quantise(model.features(x[None].to(model.device)), present=present).codes
        found = []
        for level, stride in zip(codes, model.downsampling, strict=True):
            first, count = self.before_codes // stride, self.window // stride
            if end is not None:
                count = min(count, -(-(end - start - self.before_codes) // stride))
            found.append(level[0, :, first : first + count].cpu())
        return tuple(found)

    def _samples(self, kept: list[Tensor]) -> Tensor:
        """Decode a window of codes with its margins; what is missing at its end is nothing."""
        model, margin = self.model, self.before_samples
        codes = []
        for level, (_, stride) in zip(kept, self._levels(), strict=True):
            count = (self.window + 2 * margin) // stride
            short = level[:, :count]
            nothing = torch.full((len(level), count - short.shape[1]), -1)
            codes.append(torch.cat([short, nothing], 1)[None].to(model.device))
        mean = model.decode(model.lookup(codes)).mean[0]
        return mean[:, margin : margin + self.window].cpu()
