"""The spectral penalty measures what is heard, and trains reconstructions that are near in it."""

from __future__ import annotations

from dataclasses import replace

import torch

import making
from expect import raises
from tessella.core.rng import Noise
from tessella.core.schema import UINT8, Integers, Real, Schema
from tessella.kinds import sounds
from tessella.models.penalties import SpectralPenalty

SOUND = replace(Schema.of((1, 2048), Integers(1 << 16, -32768.0)), lengths=True, rate=8000.0)


def tones(count: int, schema: Schema = SOUND, loudness: float = 0.3) -> torch.Tensor:
    at = torch.arange(schema.spatial[0]) / schema.rate
    pitch = 200 * 1.3 ** torch.arange(count)[:, None, None]
    noise = torch.randn(schema.spatial[0], generator=torch.Generator().manual_seed(0))
    return sounds.from_pressure(loudness * (torch.sin(2 * torch.pi * pitch * at) + 0.1 * noise), schema)


def test_the_penalty_is_of_magnitudes_and_not_of_phases() -> None:
    x, penalty = tones(3), SpectralPenalty(SOUND, 1.0)
    assert not penalty(x, x).any()
    louder = penalty(tones(3, loudness=0.03), x)
    torch.testing.assert_close(louder, torch.full((3,), 2048.0), rtol=0.15, atol=0)  # a factor of ten everywhere
    late = torch.cat([x[..., 7:], x[..., :7]], -1)
    assert (penalty(late, x) < 0.3 * louder).all()
    assert (penalty(torch.zeros_like(x), x) > louder).all()


def test_all_values_of_a_sound_have_the_same_penalty() -> None:
    found = []
    for values, mu_law in ((SOUND.values, False), (UINT8, True), (Real(), False)):
        schema = replace(SOUND, values=values, mu_law=mu_law)
        found.append(SpectralPenalty(schema, 2.0)(tones(2, schema, 0.1), tones(2, schema, 0.4)))
    torch.testing.assert_close(found[0], found[2], rtol=0.02, atol=0)
    torch.testing.assert_close(found[0], found[1], rtol=0.25, atol=0)


def test_the_penalty_counts_up_to_the_end() -> None:
    x, penalty = tones(2), SpectralPenalty(SOUND, 1.0)
    short = x.clone()
    short[1, :, 1024:] = torch.nan
    y = tones(2, loudness=0.05).requires_grad_()
    long, half = penalty(y, x), penalty(y, short)
    assert long[0] == half[0]
    torch.testing.assert_close(half[1], long[1] / 2, rtol=0.15, atol=0)
    (gradient,) = torch.autograd.grad(half.sum(), y)
    assert not gradient[1, :, 1024:].any()
    assert gradient.isfinite().all()


def test_models_add_it_in_training_only() -> None:
    torch.manual_seed(0)
    x = tones(4)
    plain, heard = (making.make("vqvae", SOUND, width=8, depth=1, spectral_penalty=w) for w in (0.0, 5.0))
    heard.load_state_dict(plain.state_dict())
    a, b = (model.train()(x, noise=Noise(0)) for model in (plain, heard))
    assert (b.penalty > a.penalty).all()
    assert torch.equal(a.bound, b.bound)
    a, b = (model.eval()(x) for model in (plain, heard))
    assert torch.equal(a.penalty, b.penalty)


def test_sounds_have_it_by_default_and_others_none() -> None:
    x = tones(4)
    losses = []
    for weight in (None, 5.0):
        torch.manual_seed(0)
        model = making.make("vqvae", SOUND, width=8, depth=1, spectral_penalty=weight).train()
        losses.append(model(x, noise=Noise(0)).penalty)
    assert torch.equal(*losses)
    making.make("vqvae", SOUND, likelihood="autoregressive", width=8, depth=1)


def test_it_is_refused_where_there_is_nothing_to_hear() -> None:
    with raises("no-sound"):
        making.make("vqvae", Schema.of((1, 8, 8), "uint8"), spectral_penalty=1.0)
    with raises("sequential-mean"):
        making.make("vqvae", SOUND, spectral_penalty=1.0, likelihood="autoregressive")
