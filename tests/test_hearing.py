"""Laws of what people see and hear of sounds, and of how sounds are measured."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import UINT8, Integers, Real, Schema
from tessella.kinds import sounds, spectra
from tessella.kinds.base import kind_of

PCM16 = Integers(1 << 16, -32_768)
SOUNDS = {
    "16 bit": Schema(1, (400,), PCM16, lengths=True, rate=8000),
    "8 bit, stereo": Schema(2, (400,), UINT8, lengths=True, rate=11_025),
    "mu-law": Schema(1, (400,), UINT8, lengths=True, rate=8000, mu_law=True),
    "real": Schema(1, (400,), Real(), lengths=True, rate=16_000),
}


def some_sounds(schema: Schema) -> Tensor:
    """Three sounds: one that ends early, one with a gap, and one complete; both extreme values occur."""
    values, draw = schema.values, torch.Generator().manual_seed(0)
    x = torch.rand(3, *schema.shape, generator=draw) * values.span + values.low
    x[:, :, :2] = torch.tensor([values.low, values.high])
    x = x.round() if values.discrete else x
    x[0, :, 300:] = math.nan
    x[1, :, 10:20] = math.nan
    return x


RATES = [1000.0, 8000.0, 16000.0, 44100.0]


@pytest.mark.parametrize("rate", RATES)
def test_a_sine_peaks_in_the_band_that_contains_it(rate: float) -> None:
    window, _ = spectra.frame_sizes(rate)
    bands = spectra.band_count(window)
    edges = spectra.band_edges(rate, bands)
    assert float(edges[-1]) == pytest.approx(rate / 2)
    assert (spectra.mel_filters(rate, window, bands).sum(1) - 1).abs().max() < 1e-5, "no band is empty"
    time = torch.arange(round(rate), dtype=torch.float64) / rate
    pitches = edges[1:-1][edges[1:-1] > 4 * rate / window][:-1]
    mel = spectra.log_mel((2 * math.pi * pitches[:, None] * time).sin(), rate)
    loudest = mel.mean(-1).argmax(1)
    assert (edges[loudest] <= pitches).all()
    assert (pitches <= edges[loudest + 2]).all()


def test_white_noise_has_its_variance_at_each_frequency() -> None:
    x = 0.3 * torch.randn(64, 4000, generator=torch.Generator().manual_seed(0))
    power = spectra.magnitudes(x, 200, 80)[..., 2:-2].square().mean((0, 2))
    assert power[1:-1].mean() == pytest.approx(0.09, rel=0.02)
    assert (power[1:-1] / 0.09 - 1).abs().max() < 0.15


def test_silence_and_gaps_are_finite_and_have_gradients() -> None:
    x = torch.zeros(2, 1, 4000)
    x[1, 0, 2000:] = math.nan
    x.requires_grad_()
    mel = spectra.log_mel(x, 8000)
    assert (mel == math.log10(spectra.FLOOR)).all()
    (mel.sum() + spectra.magnitudes(x, 200, 80).sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert spectra.observed_frames(x, 80).sum(-1).flatten().tolist() == [50, 25]


def test_a_spectrum_moves_with_its_sound() -> None:
    x = torch.randn(3, 2, 4000, generator=torch.Generator().manual_seed(0))
    whole, late = spectra.magnitudes(x, 200, 80), spectra.magnitudes(x[..., 800:], 200, 80)
    assert whole.shape == (3, 2, 129, 50)
    torch.testing.assert_close(whole[..., 12:], late[..., 2:])


@pytest.mark.parametrize("name", SOUNDS)
def test_wav_files_hold_sounds_exactly_up_to_their_end(name: str, tmp_path) -> None:
    schema = SOUNDS[name]
    kind, x = kind_of(schema), some_sounds(schema)
    assert kind.file_ending == ".wav"
    for one, length in zip(x, (300, 400, 400), strict=True):
        path = tmp_path / "a"
        kind.write(path, one)
        found, rate = soundfile.read(path, always_2d=True, dtype="float32")
        assert rate == schema.rate
        assert found.shape == (length, schema.channels)
        heard = sounds.from_pressure(torch.from_numpy(found.T), schema)
        seen = ~one[:, :length].isnan()
        assert torch.equal(sounds.pressure(heard, schema)[seen], sounds.pressure(one[:, :length], schema)[seen])
        assert (torch.from_numpy(found.T)[~seen] == 0).all(), "a gap is silent"
    assert soundfile.info(path).subtype == {"8 bit, stereo": "PCM_U8", "real": "FLOAT"}.get(name, "PCM_16")


@pytest.mark.parametrize("name", SOUNDS)
def test_pressure_runs_from_minus_one_to_one(name: str) -> None:
    schema, values = SOUNDS[name], SOUNDS[name].values
    x = torch.arange(values.low, values.high + 0.005, 1 if values.discrete else 0.01)
    p = sounds.pressure(x, schema)
    assert (p.diff() >= 0).all()
    assert -1 <= p[0] < -0.98
    assert 0.98 < p[-1] <= 1
    again = sounds.pressure(sounds.from_pressure(p, schema), schema)
    assert torch.equal(again, p)


@pytest.mark.parametrize("name", SOUNDS)
def test_tiles_are_blank_where_nothing_was_observed(name: str) -> None:
    schema = SOUNDS[name]
    tile = kind_of(schema).render(some_sounds(schema))
    assert tile.shape == (3, *kind_of(schema).tile_size, 1)
    assert (tile[0, :, -37:] == 255).all()
    assert (tile[2, -30:] < 255).all()
    nothing = torch.full((1, *schema.shape), math.nan)
    assert (kind_of(schema).render(nothing) == 255).all()
    assert (kind_of(schema).render(some_sounds(schema)[:, :, :7]) < 255).any(), "shorter than a tile is wide"


@pytest.mark.parametrize("name", SOUNDS)
def test_near_duplicates_of_a_sound_differ_a_little(name: str) -> None:
    schema = SOUNDS[name]
    x = some_sounds(schema)
    for copy in kind_of(schema).altered_copies(x, Noise(0).of(torch.arange(3))):
        assert copy.shape == x.shape
        assert copy.dtype == x.dtype
        assert not torch.equal(copy.nan_to_num(), x.nan_to_num())
        assert (copy.isnan() ^ x.isnan()).sum() <= 2 * 3 * schema.channels
        assert (copy.nan_to_num(0) >= schema.values.low - 0.1).all()


def test_audio_codecs_take_less_for_tones_than_general_ones_and_flac_is_exact() -> None:
    schema = Schema(1, (4000,), PCM16, lengths=True, rate=8000)
    time = torch.arange(4000) / 8000
    x = torch.stack([(9000 * (2 * math.pi * f * time).sin()).round()[None] for f in (313.0, 441.0)])
    x[0, 0, 2000:] = math.nan
    sizes = {c.name: c.size(list(x)) for lossy in (False, True) for c in kind_of(schema).baseline_codecs(lossy=lossy)}
    assert sizes.keys() >= {"FLAC", "zlib", "xz", "Ogg Vorbis, lowest quality", "Opus, lowest quality"}
    assert sizes["FLAC"] < sizes["zlib"] < 2 * 6000
    assert sizes["Opus, lowest quality"] < sizes["FLAC"]
    for codes in (SOUNDS["mu-law"], SOUNDS["8 bit, stereo"]):
        one = torch.arange(256.0).expand(codes.channels, -1)
        flac = sounds._encoded(*sounds._samples(one, codes), codes, "FLAC")
        found = soundfile.read(io.BytesIO(flac), dtype="int16", always_2d=True)[0]
        assert np.array_equal(found[:, 0] // 256 + 128, np.arange(256))
