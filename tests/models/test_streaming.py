"""A recording has the same codes and samples however it comes in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import making
from expect import raises
from tessella.core.rng import Noise
from tessella.core.schema import Integers, Schema
from tessella.models import streaming
from tessella.models.codes import CodeModel

SOUND = replace(Schema.of((1, 1024), Integers(1 << 16, -32768.0)), lengths=True, rate=8000.0)
LENGTHS = (1, 2, 63, 64, 65, 100, 511, 512, 513, 1000, 1024, 1500, 2047, 2048, 2049, 3333, 4096, 5001)


@pytest.fixture(params=["vqvae", "vqvae2"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CodeModel:
    torch.manual_seed(0)
    monkeypatch.setattr(streaming, "WINDOW", 1024)
    model = making.make(request.param, SOUND, width=8, depth=1).train()
    model(torch.stack([recording(1024), recording(1024).cumsum(1) / 9]), noise=Noise(0))  # starts the codebooks
    return model.eval()


def recording(length: int) -> Tensor:
    return torch.randint(-(2**15), 2**15, (1, length), generator=torch.Generator().manual_seed(length)).float()


def pieces(x: Tensor, size: int) -> Iterator[Tensor]:
    return iter(x.split(size, 1))


def joined(parts: Iterator[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(level, 1) for level in zip(*parts, strict=True))


@pytest.mark.parametrize("size", [1, 77, 1024, 2500])
def test_pieces_change_nothing(model: CodeModel, size: int) -> None:
    stream = model.stream()
    for length in LENGTHS if size > 1 else LENGTHS[:6]:
        x = recording(length)
        codes = joined(stream.encode([x]))
        assert [c.shape[1] for c in codes] == [-(-length // stride) for stride in model.downsampling]
        assert all(map(torch.equal, codes, joined(stream.encode(pieces(x, size)))))
        whole = torch.cat(list(stream.decode([codes], length)), 1)
        assert whole.shape == x.shape
        assert whole.isfinite().all()
        each = [max(1, size // model.downsampling[0]) * (model.downsampling[0] // s) for s in model.downsampling]
        cut = zip(*(c.split(n, 1) for c, n in zip(codes, each, strict=True)), strict=True)
        assert torch.equal(whole, torch.cat(list(stream.decode(cut, length)), 1))


def test_windows_overlap_by_what_codes_depend_on(model: CodeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    x = recording(9000)
    small = model.stream()
    monkeypatch.setattr(streaming, "WINDOW", 1 << 14)
    large = model.stream()
    codes = joined(large.encode([x]))
    assert all(map(torch.equal, joined(small.encode([x])), codes))
    torch.testing.assert_close(torch.cat(list(small.decode([codes])), 1), torch.cat(list(large.decode([codes])), 1))
    other = x.clone()
    other[:, 4000:4200] = 32767
    moved = joined(small.encode([other]))
    for before, after, stride in zip(codes, moved, model.downsampling, strict=True):
        changed = (before != after).any(0).nonzero().flatten() * stride
        assert len(changed)
        assert 4000 - small.before_codes - stride <= changed.min()
        assert changed.max() < 4200 + small.before_codes + stride


def test_memory_does_not_grow_with_the_recording(model: CodeModel) -> None:
    seen: list[int] = []

    def endless() -> Iterator[Tensor]:
        for i in range(40):
            seen.append(i)
            yield recording(1000)

    stream, first = model.stream(), []
    for codes in stream.encode(endless()):
        first.append(seen[-1])
        assert codes[-1].shape[1] * model.downsampling[-1] <= stream.window
    assert first[0] <= 2 + (stream.window + 2 * stream.before_codes) // 1000
    assert first == sorted(first)


def test_models_whose_codes_depend_on_everything_have_no_stream() -> None:
    torch.manual_seed(0)
    with raises("no-stream"):
        making.make("vqvae", Schema.of((1, 8, 8), "uint8"), width=8, depth=1).stream()
