"""Laws of what people see and hear of sounds, and of how sounds are measured."""

from __future__ import annotations

import base64
import io
import math
import re

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from expect import raises
from tessella.bottlenecks import ResidualQuantizer
from tessella.coding.code_atlas import encode_examples
from tessella.core.batches import Batch
from tessella.core.rng import Noise
from tessella.core.schema import UINT8, Integers, Real, Schema, Values
from tessella.data import open_data
from tessella.data.raw import RawSplit
from tessella.data.splits import PartSplit
from tessella.data.tones import RATE, TONE_FACTORS, pitch_hertz, render_tones
from tessella.evaluation.bounds import evaluate
from tessella.evaluation.metric_text import numbers
from tessella.evaluation.quality.sounds import log_mel_distance, si_sdr, stoi
from tessella.evaluation.results import Evaluation
from tessella.foundation.blocks import Charts, Clips, Page, Rows
from tessella.kinds import sounds, spectra
from tessella.kinds.base import kind_of
from tessella.kinds.figures import MOST_CLIPS, MOST_SECONDS, named_examples, players
from tessella.models.presets import CVQVAE, VQVAE, VQVAE2
from tessella.pages.html import html_page
from tessella.pages.terminal import print_page
from tessella.priors import PixelCNN
from tessella.tasks.generate import SheetResult
from tessella.tasks.signal_code_blocks import codes_along, sounds_of_codes

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
    long = Schema(1, (3_000_000,), PCM16, rate=8000)
    assert sounds.codecs(long, lossy=True)[0].size([torch.zeros(long.shape)]) > 100, "no overflow"
    assert sounds.codecs(Schema(9, (4,), PCM16, rate=8000), lossy=True) == ()
    for codes in (SOUNDS["mu-law"], SOUNDS["8 bit, stereo"]):
        one = torch.arange(256.0).expand(codes.channels, -1)
        flac = sounds._encoded(*sounds._samples(one, codes), codes, "FLAC")
        found = soundfile.read(io.BytesIO(flac), dtype="int16", always_2d=True)[0]
        assert np.array_equal(found[:, 0] // 256 + 128, np.arange(256))


def test_examples_are_named_by_their_rows_and_blanks_left_out() -> None:
    x = torch.arange(8.0).reshape(4, 2, 1, 1)
    x[2:, 1] = math.nan
    found = named_examples(x, ["input", "copy"] * 2)
    assert [name for name, _ in found] == ["input 1", "copy 1", "input 2", "copy 2", "input 3", "copy 3"]
    assert [float(one) for _, one in found] == [0, 2, 1, 3, 4, 6]
    assert [name for name, _ in named_examples(x, ())] == ["1", "2", "3", "4", "5", "7"]


def test_pages_hold_the_sounds_that_they_play() -> None:
    schema = Schema(1, (8000 * (MOST_SECONDS + 1),), PCM16, rate=8000)
    x = torch.randint(-32_768, 32_768, (MOST_CLIPS + 1, *schema.shape)).float()
    clips = players([(f"<{n}>", one) for n, one in enumerate(x)], schema, "Heard.")
    assert clips is not None
    assert clips.caption == f"Heard. Each player holds the first {MOST_SECONDS} seconds."
    page = Page("Sounds", [clips])
    held = re.findall(r'<audio [^>]*src="data:audio/wav;base64,([^"]+)"', html_page(page))
    assert len(held) == MOST_CLIPS
    for one, text in zip(x, held, strict=False):
        found, rate = soundfile.read(io.BytesIO(base64.b64decode(text)), dtype="int16")
        assert rate == 8000
        assert np.array_equal(found, one[0, : 8000 * MOST_SECONDS].numpy())
    assert "&lt;0&gt;" in html_page(page)
    print_page(page, text := io.StringIO())
    assert text.getvalue().startswith("8 sounds to play")
    pictures = Schema.of((1, 8, 8), "uint8")
    assert players([("a", torch.zeros(1, 8, 8))], pictures) is None


def test_sheets_of_sounds_are_saved_as_pictures_sounds_and_folders(tmp_path) -> None:
    schema = SOUNDS["16 bit"]
    x = some_sounds(schema)[[0, 2]]
    sheet = SheetResult("Reconstructions", x[:, None], schema, ("input", "reconstruction"))
    assert any(isinstance(block, Clips) for block in sheet.page().blocks)
    for name in ("a.png", "a.wav", "folder"):
        sheet.save(tmp_path / name)
    pause = round(sounds.PAUSE * 8000)
    together = soundfile.read(tmp_path / "a.wav", dtype="int16")[0]
    assert np.array_equal(together, torch.cat([x[0, 0, :300], torch.zeros(pause), x[1, 0]]).numpy())
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["input-1.wav", "reconstruction-1.wav"]
    assert len(soundfile.read(tmp_path / "folder" / "input-1.wav")[0]) == 300
    with raises("no-sounds"):
        SheetResult("Samples", torch.zeros(1, 1, 1, 8, 8), Schema.of((1, 8, 8), "uint8")).save(tmp_path / "b.wav")


def test_tones_have_the_pitch_loudness_vibrato_and_timbre_of_their_factors() -> None:
    split = open_data("tones").all_examples
    assert split is not None
    values = split.factors
    assert {name: int(of.max()) + 1 for name, of in values.items()} == TONE_FACTORS
    assert np.array_equal(values["timbre"], split.labels)
    rows = np.random.default_rng(0).choice(len(split), 40, replace=False)
    x = split.batch(rows).x[:, 0]
    hertz = pitch_hertz(values["pitch"][rows])
    power = torch.fft.rfft(x * torch.hann_window(x.shape[1]), 1 << 15).abs().square()
    step = RATE / (1 << 15)
    near = (torch.arange(power.shape[1]) * step)[None] / torch.from_numpy(hertz)[:, None]
    loudest = power.where((near > 0.75) & (near < 1.5), torch.zeros(())).argmax(1) * step
    assert np.abs(np.log2(loudest.numpy() / hertz) * 1200).max() < 60, "less than vibrato and half a bin"
    second = power.where((near > 1.8) & (near < 2.2), torch.zeros(())).amax(1) / power.amax(1)
    assert ((second > 0.05).numpy() == (values["timbre"][rows] == 3)).all(), "the sawtooth alone has even harmonics"
    assert not (x.signbit() & (x == 0)).any(), "files would not come back bit for bit"
    louder = render_tones(np.array([[5, 1, loudness, 0] for loudness in range(4)])).max((1, 2))
    assert np.allclose(louder / louder[0], [1, 2, 4, 8], rtol=2e-3)
    swung = render_tones(np.array([[5, 0, 3, vibrato] for vibrato in range(4)]))[:, 0]
    assert np.abs(swung - swung[:1]).max(1).argsort().tolist() == [0, 1, 2, 3]
    with raises("no-pictures"):
        open_data("tones", size=32)


def speech(count: int = 4) -> Tensor:
    """Noise whose level rises and falls as that of speech, `[count, 1, 8000]`, at 8 kHz."""
    draw = torch.Generator().manual_seed(0)
    level = (torch.arange(8000) / 8000 * 2 * math.pi * 4).sin() + 1.1
    return 0.1 * torch.randn(count, 1, 8000, generator=draw) * level


def test_si_sdr_is_that_of_its_noise_whatever_the_gain() -> None:
    x = speech()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    noise -= x * (noise * x).sum(2, keepdim=True) / x.square().sum(2, keepdim=True)
    noise *= x.norm(dim=2, keepdim=True) / noise.norm(dim=2, keepdim=True) / 10
    for gain in (0.01, 1.0, 30.0):
        torch.testing.assert_close(si_sdr(x, gain * (x + noise)), torch.full((4,), 20.0).double(), rtol=0, atol=1e-3)
        assert (si_sdr(x, gain * x) > 99).all()
    assert (si_sdr(x, 0 * x) == -100).all()
    silent = x * 0
    assert si_sdr(silent, x).isfinite().all()


def test_log_mel_distance_is_the_gain_in_powers_of_ten_and_ignores_what_was_not_observed() -> None:
    x = speech()
    assert float(log_mel_distance(x, x, 8000)) == 0
    assert float(log_mel_distance(x, x / 10, 8000)) == pytest.approx(1, abs=0.01)
    ended = x.clone()
    ended[..., 4000:] = math.nan
    assert float(log_mel_distance(ended, x, 8000)) == 0
    assert (si_sdr(ended, x) == 100).all()


def test_stoi_is_one_for_copies_falls_with_noise_and_needs_time() -> None:
    x = speech(1)[0]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    scores = [stoi(x, x + level * noise, 8000) for level in (0, 0.03, 0.1, 0.5)]
    assert scores[0] == pytest.approx(1, abs=1e-4)
    assert scores == sorted(scores, reverse=True)
    assert stoi(x[:, :2400], x[:, :2400], 8000) is None
    ended = x.clone()
    ended[:, 6000:] = math.nan
    assert stoi(ended, torch.cat([x[:, :6000], noise[:, 6000:]], 1), 8000) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("values", [PCM16, Real()])
def test_evaluations_of_sounds_count_bits_per_second(values: Values) -> None:
    schema = Schema(2, (512,), values, rate=1000)
    model = VQVAE(schema, grid_size=8, width=8, depth=1).eval()
    x = (torch.rand(6, *schema.shape) * 2 - 1) * (30_000 if values.discrete else 1)
    part = RawSplit(x.round().numpy() if values.discrete else x.numpy(), None, np.arange(6, dtype=np.uint64))
    e = evaluate(model, PartSplit(part, np.arange(6)), collapse_examples=0)
    s = e.sound
    assert s is not None
    assert s.rate_per_second == pytest.approx(e.rate / math.log(2) / 0.512)
    assert s.quality is not None
    assert s.quality.clips == 6
    assert s.quality.stoi_clips <= 6
    if values.discrete:
        assert s.bits_per_sample == pytest.approx(e.bits_per_dim)
        assert s.bits_per_second == pytest.approx(e.bound / math.log(2) / 0.512)
    else:
        assert (s.bits_per_sample, s.bits_per_second) == (None, None), "a density has no bits"
    assert Evaluation.from_json(e.to_json()) == e
    names = [row.name for row in numbers(e, schema)]
    assert {"SI-SDR", "log-mel distance", "bits per second, latent"} <= set(names)
    assert ("bits per second" in names) == values.discrete


@pytest.mark.parametrize(
    ("kind", "bands", "heard"), [("vqvae", 1, 2), ("residual", 3, 1), ("vqvae2", 2, 1), ("cvqvae", 1, 2)]
)
def test_the_codes_of_a_sound_are_drawn_priced_and_heard(kind: str, bands: int, heard: int) -> None:
    torch.manual_seed(0)
    schema = Schema(1, (400,), PCM16, lengths=True, rate=2000, classes=("ann", "bob"))
    small = {"grid_size": 25, "width": 8, "depth": 1}
    model = {
        "vqvae": lambda: VQVAE(schema, **small),
        "residual": lambda: VQVAE(schema, quantizer=ResidualQuantizer(codebook_size=16, codes_per_position=3), **small),
        "vqvae2": lambda: VQVAE2(schema, **small),
        "cvqvae": lambda: CVQVAE(schema, **small),
    }[kind]().eval()
    x = (torch.rand(6, 1, 400) * 60_000 - 30_000).round()
    x[:5, :, 330:] = math.nan
    part = RawSplit(x.numpy(), np.arange(6) % 2, np.arange(6, dtype=np.uint64))
    coded = encode_examples(model, PartSplit(part, np.arange(6)))
    (rows,) = codes_along(model, coded)
    assert isinstance(rows, Rows)
    assert len(rows.rows) == 1 + bands
    blocks = sounds_of_codes(model, coded)
    clips = [block for block in blocks if isinstance(block, Clips)]
    assert len(clips) == heard
    for clip in (clip for block in clips for clip in block.clips):
        assert np.abs(soundfile.read(io.BytesIO(clip.audio))[0]).max() > 0
    model.set_prior(model.build_priors(PixelCNN(width=8, depth=1)))
    _, charts = codes_along(model, coded)
    assert isinstance(charts, Charts)
    seconds = [stride / 2000 for stride in model.downsampling]
    of_whole = coded.x.isnan().flatten(1).any(1).logical_not().nonzero().item()
    batch = Batch(coded.x, coded.label)[of_whole : of_whole + 1]
    rate = model.rate(model.encode(batch.x), batch.label)
    bits = sum(s * sum(series.y) for s, series in zip(seconds, charts.charts[0].series, strict=True))
    assert bits == pytest.approx(float(rate.total.detach()) / math.log(2), rel=1e-4), (
        "the clip that is not cut is the longest"
    )
