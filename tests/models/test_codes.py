"""Models of codes: what their codes stand for, what they cost, and that more draws bound the same p(x) from below."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from expect import raises
from making import make
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.evaluation.codebook import coarse_only
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import names
from tessella.models.codes import CodeModel
from tessella.models.presets import VQVAE, VQVAE2
from tessella.priors import PixelCNN

TINY = {"width": 8, "depth": 1, "codebook_size": 16}
QUANTIZERS = names("quantizer")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def started(model: CodeModel, x: Tensor) -> CodeModel:
    """The model in evaluation mode, its codebooks started on x."""
    with torch.no_grad():
        model(x, noise=Noise(0))
    return model.eval()


def pictures(count: int, *shape: int) -> Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 9), (1, 1, 7), (6,)])
def test_codes_stand_for_z(quantizer: str, shape: tuple[int, ...]) -> None:
    x = pictures(3, *shape)
    kinds = [VQVAE] if len(shape) == 1 else [VQVAE, VQVAE2]
    for kind in kinds:
        model = started(make(kind, Schema.of(shape, "uint8"), quantizer=quantizer, grid_size=4, **TINY), x)
        latent = model.encode(x)
        assert [tuple(c.shape[1:]) for c in latent.codes] == list(model.code_shapes)
        assert torch.equal(model.lookup(latent.codes), latent.z)
        count = sum(math.prod(s) for s in model.code_shapes)
        torch.testing.assert_close(model.rate(latent).total, torch.full((3,), count * math.log(16)))
        assert model.checked_codes(latent.codes)[0].dtype == torch.int64


def test_larger_pictures_give_larger_grids() -> None:
    x, large = pictures(2, 1, 8, 8), pictures(2, 1, 12, 20)
    model = started(make(VQVAE2, Schema.of((1, 8, 8), "uint8"), grid_size=4, **TINY), x)
    latent = model.encode(large)
    assert [c.shape[2:] for c in latent.codes] == [(3, 5), (6, 10)]
    assert torch.equal(model.lookup(latent.codes), latent.z)


def test_a_fine_level_is_encoded_given_the_coarse_one() -> None:
    x = pictures(2, 1, 8, 8)
    model = started(make(VQVAE2, Schema.of((1, 8, 8), "uint8"), grid_size=4, **TINY), x)
    before = model.encode(x)
    with torch.no_grad():
        model.levels[0].books[0].vectors.mul_(-3)  # pyright: ignore
    after = model.encode(x)
    assert not torch.equal(
        before.z[:, -model.levels[1].latent_shape[0] :], after.z[:, -model.levels[1].latent_shape[0] :]
    )


def test_the_coarse_level_alone_says_nothing_of_the_fine_one() -> None:
    x = pictures(4, 1, 8, 8)
    model = started(make(VQVAE2, Schema.of((1, 8, 8), "uint8"), grid_size=4, **TINY), x)
    codes = model.encode(x).codes
    other = (codes[0], codes[1].roll(1, 0))
    assert not torch.equal(model.lookup(codes), model.lookup(other))
    assert torch.equal(coarse_only(model, model.lookup(codes)), coarse_only(model, model.lookup(other)))


def log_p(model: CodeModel, x: Tensor) -> Tensor:
    """log p(x) by summing over all codes, `[B]`."""
    size, shape = model.levels[0].codebook_size, model.code_shapes[0]
    every = torch.tensor(list(itertools.product(range(size), repeat=math.prod(shape)))).view(-1, *shape)
    terms = []
    prior = model.log_prob_codes((every,))[0].flatten(1).sum(1)
    for c, nats in zip(every, prior, strict=True):
        z = model.lookup((c[None].expand(len(x), *shape),))
        terms.append(model.decode(z).log_prob(x) + nats)
    return torch.stack(terms).logsumexp(0)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_bounds_lie_below_the_log_likelihood(quantizer: str) -> None:
    """By one term exactly; by 10 draws in expectation: 400 times, within five standard errors, 1 in 3 * 10^5 seeds."""
    x = torch.randint(0, 2, (6, 1, 2, 2), dtype=torch.uint8)
    options = {
        "codebook_size": 4,
        "codes_per_position": 2,
        "width": 8,
        "depth": 1,
        "grid_size": 1,
        "quantizer": quantizer,
    }
    model = started(make(VQVAE, Schema.of((1, 2, 2), "binary"), **options), x)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2)
        exact, bound = log_p(model, x), model(x).bound
        weights = model(x, noise=Noise(1), draws=4000).log_weights
    assert (bound >= -exact - 1e-5).all()
    sharper = weights.view(400, 10, -1).logsumexp(1) - math.log(10)
    assert (sharper.mean(0) <= exact + 5 * sharper.std(0) / 20 + 1e-5).all()


def test_weights_average_to_the_likelihood() -> None:
    """Where any codes are drawn often enough, within five standard errors: a false alarm in 1 of 3 * 10^5 seeds."""
    x = torch.randint(0, 2, (6, 1, 2, 2), dtype=torch.uint8)
    options = {"codebook_size": 4, "codes_per_position": 2, "width": 8, "depth": 1, "grid_size": 1, "quantizer": "lfq"}
    model = make(VQVAE, Schema.of((1, 2, 2), "binary"), **options).eval()
    with torch.no_grad():
        exact = log_p(model, x).exp().double()
        p = model(x, noise=Noise(1), draws=4000).log_weights.double().exp()
    error = p.std(0) / math.sqrt(len(p))
    assert ((p.mean(0) - exact).abs() <= 5 * error + 1e-9).all()


def test_several_draws_train_the_likelihood() -> None:
    """The decoder's gradient is that of -log p(x), and q's, by the penalty, leads toward p(codes | x).

    By 8000 draws, within a tenth; another seed in ten thousand might be off by that.
    """
    x = torch.randint(0, 2, (2, 1, 2, 2), dtype=torch.uint8)
    options = {
        "codebook_size": 4,
        "codes_per_position": 2,
        "width": 8,
        "depth": 1,
        "grid_size": 1,
        "quantizer": "lfq",
        "iwae_samples": 2,
    }
    model = make(VQVAE, Schema.of((1, 2, 2), "binary"), **options)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(2)
    decoder, encoder = list(model.decoder.parameters()), list(model.encoder.parameters())
    terms = model(x, noise=Noise(1), draws=8000)
    bound = (terms.log_weights.logsumexp(0) - math.log(8000)).sum()
    exact = log_p(model, x).sum()
    assert agree(torch.autograd.grad(bound, decoder, retain_graph=True), torch.autograd.grad(exact, decoder))

    before = cross_entropy(model, x)
    toward = torch.autograd.grad(terms.penalty.sum(), encoder, retain_graph=True)
    assert torch.autograd.grad(bound, encoder, allow_unused=True, retain_graph=True)[0] is None
    with torch.no_grad():
        for parameter, gradient in zip(encoder, toward, strict=True):
            parameter.sub_(1e-2 * gradient)
    assert cross_entropy(model, x) < before - 0.5e-2 * sum(float(g.square().sum()) for g in toward)


def cross_entropy(model: CodeModel, x: Tensor) -> float:
    """-E log q(c | x), c ~ p(c | x), summed over x; by draws whose noise is always the same."""
    with torch.no_grad():
        log_w = model(x, noise=Noise(2), draws=8000).log_weights
        _, _, log_q = model._proposed(x, Noise(2), 8000)
        return -float((log_w.softmax(0) * log_q.view(len(x), -1).T).sum())


def agree(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    a, b = torch.cat([t.flatten() for t in found]), torch.cat([t.flatten() for t in expected])
    return bool((a - b).norm() <= 0.1 * b.norm())


def test_a_fitted_prior_may_see_labels_and_encoding_needs_none() -> None:
    schema, x = Schema.of((1, 4, 4), "uint8", classes=("a", "b")), pictures(2, 1, 4, 4)
    model = started(make(VQVAE, schema, grid_size=2, **TINY), x)
    assert not model.fitted
    uniform = model.sample(3)
    (shape,) = model.prior_shapes
    model.set_prior([PixelCNN(width=8, depth=1).build(shape, 16, classes=2)])
    assert model.fitted
    assert model.conditional
    assert torch.equal(model.sample_uniform(3), uniform)
    latent, label = model.encode(x), torch.tensor([0, 1])
    with raises("no-label"):
        model.rate(latent)
    torch.testing.assert_close(model.rate(latent, label).total, model(x, label).rate)
    with raises("no-label"):
        model.sample(3)
    label = torch.tensor([0, 1, 1])
    assert torch.equal(model.sample(3, label, seed=4), model.sample(3, label, seed=4))
    cold = model.sample_codes(3, label, sampling=Sampling(temperature=0))
    assert torch.equal(cold[0][1], cold[0][2])


def test_codes_that_are_not_the_models_are_refused() -> None:
    model = make(VQVAE2, Schema.of((1, 8, 8), "uint8"), grid_size=4, **TINY)
    fine, coarse = torch.zeros(2, 1, 4, 4, dtype=torch.int64), torch.zeros(2, 1, 2, 2, dtype=torch.int64)
    assert len(model.checked_codes((coarse, fine))) == 2
    for codes, complaint in (
        ((fine,), "has 2 levels of codes, got 1"),
        ((coarse, fine + 16), "must be between 0 and 15"),
        ((coarse - 1, fine), "must be between 0 and 15"),
        ((coarse[:, 0], fine), "have shape 2x2 per example"),
        ((fine, fine), "does not match the coarser"),
    ):
        with pytest.raises(SpecError, match=complaint):
            model.checked_codes(codes)


def test_options_that_mean_nothing_are_refused() -> None:
    schema = Schema.of((1, 8, 8), "uint8")
    for options, code in (
        ({"latent_dim": 3}, "no-such-option"),
        ({"quantizer": "fsq", "commitment": 0.1}, "no-such-option"),
        ({"quantizer": "fsq", "codebook_size": 34}, "bad-codebook-size"),
        ({"quantizer": "nearest"}, "no-such-part"),
        ({"codebook_size": 0}, "bad-option"),
    ):
        with raises(code):
            make(VQVAE, schema, **options)
    with raises("pictures-only"):
        VQVAE2(Schema.of((6,), "uint8"))
