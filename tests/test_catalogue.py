"""Every entry of the catalogue keeps its kind's contract, on data of many shapes. A new part is tested by being listed.

What a part computes is tested where the part is; here is only what all of them promise.
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from expect import raises
from making import make
from tessella.bottlenecks import DiagonalGaussian
from tessella.bottlenecks.gaussian import position_head
from tessella.core.configs import InferenceNetwork
from tessella.core.outputs import Condition, Sampling, Terms
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.diffusion import chain
from tessella.foundation.config import hints
from tessella.foundation.errors import SpecError
from tessella.foundation.registry import Entry, entries, find, names
from tessella.models import diffusion
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.flow import FlowModel
from tessella.models.spec import Objective, Spec

SIDES = [(1, 1), (1, 7), (5, 3), (8, 8), (28, 28), (30, 45), (33, 17), (64, 64)]
FEATURES = [1, 2, 100]
CLASSES = ("cat", "dog", "owl")
TINY = {"width": 4, "depth": 1, "latent_dim": 2}
OF_CODES = {"width": 4, "depth": 1, "codebook_size": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "vqvae": OF_CODES,
    "vqvae2": OF_CODES,
    "flow": {"width": 16, "depth": 1},
    "diffusion": {"width": 4, "depth": 1},
}
"""What makes a model small, where it is not `TINY`."""
CODE_MODELS = ("vqvae", "vqvae2")
OF_PICTURES = ("vqvae2",)
"""Models that are for pictures only."""
BATCH = 3


def entries_of(kind):
    return [pytest.param(entry, id=entry.name) for entry in entries(kind)]


def schema_of(values: str, shape: tuple[int, ...], classes: tuple[str, ...] = CLASSES) -> Schema:
    if values == "real":
        moments = tuple(10.0 + c for c in range(shape[0])), tuple(1.0 + c for c in range(shape[0]))
        return Schema.of(shape, values, *moments, classes)
    return Schema.of(shape, values, classes=classes)


def made(entry: Entry, schema: Schema, **more: Any) -> Model:
    """A small one of these models."""
    torch.manual_seed(0)
    options = {**OPTIONS.get(entry.name, TINY), **more}
    if entry.name == "diffusion":
        options.pop("components", None)  # its likelihood has none
        return make(entry.name, schema, **options)
    if entry.name == "flow":
        return entry.load().from_options(options).build(schema)
    return make(entry.name, schema, **options)


def examples(schema: Schema, count: int = BATCH) -> Tensor:
    if schema.values.name == "real":
        return 10 + 2 * torch.randn(count, *schema.shape)
    return torch.randint(0, int(schema.values.high) + 1, (count, *schema.shape), dtype=torch.uint8)


def in_range(x: Tensor, schema: Schema, count: int = BATCH) -> bool:
    """Whether x could be `count` examples' stored values or means of them."""
    inside = schema.values.name == "real" or bool(x.min() >= schema.values.low and x.max() <= schema.values.high)
    return x.shape == (count, *schema.shape) and x.dtype == torch.float32 and bool(x.isfinite().all()) and inside


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contracts hold whatever the number of steps; what many are good for is tested where diffusion is."""
    monkeypatch.setattr(chain, "STEPS", 3)
    monkeypatch.setattr(chain, "LINKS", 3)
    monkeypatch.setattr(diffusion, "TIMES", 2)


# The catalogue


@pytest.mark.parametrize("entry", [pytest.param(e, id=f"{e.kind}-{e.name}") for e in entries()])
def test_entry(entry: Entry) -> None:
    loaded = entry.load()
    assert callable(loaded)
    assert inspect.getdoc(loaded)
    assert entry.summary
    assert "\n" not in entry.summary
    assert not entry.summary.endswith(".")
    assert re.fullmatch(r"[a-z][a-z0-9-]*", entry.name)
    assert find(entry.kind, entry.name) == entry
    assert bool(entry.values) == (entry.kind == "likelihood")


def test_names_are_unique() -> None:
    assert len({(e.kind, e.name) for e in entries()}) == len(entries())


def test_unknown_name_is_answered_by_the_known_ones() -> None:
    with pytest.raises(SpecError, match=f"no model is called 'vea'; there are: {', '.join(names('model'))}"):
        find("model", "vea")


# Likelihoods


SHAPES = [
    *[(c, h, w) for c in (1, 2, 3, 4) for h, w in ((1, 1), (5, 3), (8, 8))],
    (1, 7),
    (3, 9),
    *[(d,) for d in FEATURES],
]


@pytest.mark.parametrize("entry", entries_of("likelihood"))
def test_likelihood(entry: Entry) -> None:
    for schema in [schema_of(values, shape) for values in entry.values for shape in SHAPES]:
        likelihood = entry.load()().build(schema)
        x = examples(schema)
        network = likelihood.to_network(x)
        assert network.shape == x.shape
        assert network.dtype == torch.float32
        assert network.abs().max() < 20
        distribution = likelihood(torch.randn(BATCH, likelihood.parameter_channels, *schema.shape[1:]))
        assert isinstance(distribution, Distribution)
        assert distribution.batch_shape == (BATCH,)
        assert distribution.event_shape == schema.shape
        nats = distribution.log_prob(x)
        assert nats.shape == (BATCH,)
        assert nats.dtype == torch.float32
        assert nats.isfinite().all()
        assert schema.values.name == "real" or nats.max() <= 0
        assert in_range(distribution.mean, schema)
        draw = distribution.sample()
        assert in_range(draw, schema)
        assert schema.values.name == "real" or torch.equal(draw, draw.round())


@pytest.mark.parametrize("entry", entries_of("likelihood"))
def test_likelihood_refuses_other_values(entry: Entry) -> None:
    kinds: tuple[str, ...] = ("binary", "uint8", "real")
    for values in set(kinds) - set(entry.values):
        with pytest.raises(SpecError, match="likelihood"):
            entry.load()().build(schema_of(values, (1, 8, 8)))


# Bottlenecks and priors


@pytest.mark.parametrize("entry", entries_of("bottleneck"))
@pytest.mark.parametrize("feature_shape", [(6,), (6, 7), (6, 1, 1), (6, 3, 5)])
def test_bottleneck(entry: Entry, feature_shape: tuple[int, ...]) -> None:
    bottleneck = entry.load()().build(feature_shape, 4)
    features = torch.randn(BATCH, *feature_shape)
    assert bottleneck.latent_shape == (4, *feature_shape[1:])
    for noise in (None, Noise(0)):
        passage = bottleneck(features, noise)
        assert passage.z.shape == (BATCH, *bottleneck.latent_shape)
        assert passage.z.dtype == torch.float32
        if passage.posterior is not None:
            assert passage.posterior.batch_shape == (BATCH,)
            assert passage.posterior.event_shape == bottleneck.latent_shape
            assert passage.posterior.log_prob(passage.z).isfinite().all()
        if passage.penalty is not None:
            assert passage.penalty.shape == (BATCH,)
    assert torch.equal(bottleneck(features, Noise(7)).z, bottleneck(features, Noise(7)).z)


@pytest.mark.parametrize("entry", entries_of("prior"))
@pytest.mark.parametrize("latent_shape", [(4,), (4, 7), (4, 1, 1), (4, 3, 5)])
def test_prior(entry: Entry, latent_shape: tuple[int, ...]) -> None:
    cases = {"none": {0}, "optional": {0, len(CLASSES)}, "required": {len(CLASSES)}}[entry.load().labels]
    for classes in cases:
        _check_prior(entry, latent_shape, classes)


def _check_prior(entry: Entry, latent_shape: tuple[int, ...], classes: int) -> None:
    inference = None
    if entry.load().of_posteriors:
        bottleneck = DiagonalGaussian().build((6, *latent_shape[1:]), latent_shape[0])
        encoder = position_head((5, *latent_shape[1:]), 6)
        encoder.forward = lambda x, label, of=encoder.forward: of(x)  # pyright: ignore[reportAttributeAccessIssue]
        inference = InferenceNetwork(cast(Any, encoder), bottleneck, (5, *latent_shape[1:]), False)
    prior = entry.load()().build(latent_shape, classes, inference)
    label = torch.tensor([0, 2, 1]) if classes else None
    distribution = prior(label, None if prior.exact else Noise(0))
    assert distribution.event_shape == latent_shape
    assert distribution.batch_shape == ((BATCH,) if classes else ())
    z = torch.randn(BATCH, *latent_shape)
    nats = distribution.log_prob(z)
    assert nats.shape == (BATCH,)
    assert nats.dtype == torch.float32
    assert nats.isfinite().all()
    if prior.exact:
        assert torch.equal(nats, prior(label).log_prob(z))
    drawn = prior.sample(BATCH, Noise(1), label)
    assert drawn.shape == (BATCH, *latent_shape)
    assert drawn.dtype == torch.float32
    assert drawn.isfinite().all()
    assert torch.equal(drawn, prior.sample(BATCH, Noise(1), label))
    assert not torch.equal(drawn, prior.sample(BATCH, Noise(2), label))
    assert not any("encoder" in name for name in prior.state_dict())


# Priors over codes

SIZE = 4
GRIDS = [(1, 3), (2, 5), (1, 1, 1), (1, 1, 3), (2, 1, 1), (1, 2, 2), (3, 4, 3)]


def made_prior(entry: Entry, grid: tuple[int, ...], **more: int) -> Any:
    """A small one of these priors, and random codes of such a grid `[5, *grid]`."""
    small = {name: size for name, size in (("width", 8), ("depth", 1)) if name in hints(entry.load())}
    return entry.load()(**small).build(grid, SIZE, **more).eval(), torch.randint(0, SIZE, (5, *grid))


@pytest.mark.parametrize("entry", entries_of("code-prior"))
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("given", [{}, {"classes": 3}, {"context_channels": 2}, {"classes": 3, "context_channels": 2}])
def test_prior_over_codes(entry: Entry, grid: tuple[int, ...], given: dict[str, int]) -> None:
    if entry.name == "uniform" and "classes" in given:
        with pytest.raises(SpecError, match="does not see labels"):
            made_prior(entry, grid, **given)
        return
    prior, codes = made_prior(entry, grid, **given)
    label = torch.tensor([0, 1, 2, 1, 0]) if "classes" in given else None
    context = torch.randn(5, 2, *grid[1:]) if "context_channels" in given else None
    nats = prior(codes, Condition(label, context))
    assert nats.shape == codes.shape
    assert nats.dtype == torch.float32
    assert nats.isfinite().all()
    assert torch.equal(nats, prior(codes, Condition(label, context))), "without noise it is a function of the codes"
    estimate = prior(codes, Condition(label, context), noise=Noise(0, 3))
    assert torch.equal(estimate, prior(codes, Condition(label, context), noise=Noise(0, 3)))
    drawn = prior.sample(5, Noise(1), Condition(label, context))
    assert drawn.shape == codes.shape
    assert drawn.dtype == torch.int64
    assert 0 <= drawn.min() <= drawn.max() < SIZE
    assert torch.equal(drawn, prior.sample(5, Noise(1), Condition(label, context)))
    assert math.prod(grid) < 4 or not torch.equal(drawn, prior.sample(5, Noise(2), Condition(label, context)))


@pytest.mark.parametrize("entry", entries_of("code-prior"))
@pytest.mark.parametrize("grid", [(1, 1, 3), (1, 2, 2), (2, 1, 2)], ids=str)
def test_probabilities_of_codes_sum_to_one_at_most(entry: Entry, grid: tuple[int, ...]) -> None:
    """Estimates of a bound are averaged over 64 draws, so that what is left of their noise is far below the margin."""
    prior, _ = made_prior(entry, grid, context_channels=2)
    everything = torch.tensor(list(itertools.product(range(SIZE), repeat=math.prod(grid)))).view(-1, *grid)
    many = everything.repeat(64, 1, 1, 1)
    context = torch.randn(1, 2, *grid[1:]).expand(len(many), -1, -1, -1)
    with torch.no_grad():
        nats = prior(many, Condition(context=context), noise=Noise(0)).flatten(1).sum(1)
    total = nats.unflatten(0, (64, -1)).mean(0).exp().sum()
    assert 0.2 < total < 1.01


@pytest.mark.parametrize("entry", [e for e in entries_of("code-prior") if e.id != "uniform"])
def test_prior_over_codes_learns(entry: Entry) -> None:
    """The label is the first code, the context the last; gradients reach every weight."""
    prior, codes = made_prior(entry, (2, 3, 2), classes=SIZE, context_channels=1)
    codes = codes.repeat(3, 1, 1, 1)
    label, context = codes[:, 0, 0, 0], codes[:, :1].float() * 0 + codes[:, -1:, -1:, -1:]
    optimizer = torch.optim.Adam(prior.train().parameters(), 1e-2)
    start = 12 * math.log(SIZE)
    for step in range(60):
        optimizer.zero_grad()
        rate = -prior(codes, Condition(label, context), noise=Noise(0, step)).flatten(1).sum(1).mean()
        rate.backward()
        if step == 9:
            for name, parameter in prior.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.any(), f"no gradient reaches {name}"
        optimizer.step()
    with torch.no_grad():
        rate = -prior.eval()(codes, Condition(label, context)).flatten(1).sum(1).mean()
        assert rate < 0.5 * start
        other = -prior(codes, Condition((label + 1) % SIZE, context)).flatten(1).sum(1).mean()
        assert other > rate
        other = -prior(codes, Condition(label, (context + 1) % SIZE)).flatten(1).sum(1).mean()
        assert other > rate
        likeliest = prior.sample(15, Noise(0), Condition(label, context), sampling=Sampling(temperature=0))
        assert torch.equal(likeliest, prior.sample(15, Noise(0), Condition(label, context), sampling=Sampling(top_k=1)))
        assert (likeliest[:, 0, 0, 0] == label).float().mean() > 0.5


# Models


def check_model(entry: Entry, schema: Schema, **more: Any) -> None:
    """All that a model promises, on one kind of data."""
    model = made(entry, schema, **more)
    x, label = examples(schema), torch.tensor([0, 1, 2])
    terms = model(x, label, noise=Noise(0, 1))
    _check_terms(terms, model)
    _check_gradients(terms, model)
    model.eval()  # codebooks that are kept by statistics now stay as they are
    with torch.no_grad():
        first, again, other = (model(x, label, noise=Noise(0, step)) for step in (1, 1, 2))
        assert torch.equal(again.distortion, first.distortion)
        of_codes = isinstance(model, CodeModel)
        same = of_codes or isinstance(model, FlowModel) or not model.has_prior
        assert torch.equal(other.distortion, first.distortion) == same
        assert of_codes or torch.equal(first.distortion, terms.distortion)
        latent = model.encode(x, label)
        assert latent.z.shape == (BATCH, *model.latent_shape)
        assert in_range(model.decode(latent.z, label).mean, schema)
        if isinstance(model, CodeModel):
            _check_codes(model, latent.codes, latent.z, first)
    assert in_range(model.reconstruct(x, label), schema)
    if model.has_prior:
        assert in_range(model.sample(BATCH, label), schema)
        draws = model.sample(BATCH, label, draw=True, seed=3)
        assert in_range(draws, schema)
        assert torch.equal(draws, model.sample(BATCH, label, draw=True, seed=3))
        weights = model(x, label, noise=Noise(0), draws=2).log_weights
        assert weights.shape == (2, BATCH)
        assert weights.isfinite().all()
    else:
        with pytest.raises(SpecError, match="no prior"):
            model.sample(BATCH, label)
        with pytest.raises(SpecError, match="no prior"):
            model(x, label, noise=Noise(0), draws=2)
    if model.conditional:
        for call in (lambda: model(x), lambda: model.decode(latent.z), lambda: model.sample(BATCH)):
            with pytest.raises(SpecError, match="needs a label"):
                call()
    spec = Spec.from_json(Spec(entry.name, schema, model.config).to_json(), "spec.json")
    assert spec.schema == schema
    rebuilt = spec.build()
    assert _shapes(rebuilt) == _shapes(model)
    assert rebuilt.objective == model.objective


def _check_terms(terms: Terms, model: Model) -> None:
    numbers = {"distortion": terms.distortion, "rate": terms.rate, "penalty": terms.penalty}
    for name, nats in numbers.items():
        if nats is not None:
            assert nats.shape == (BATCH,), name
            assert nats.dtype == torch.float32, name
            assert nats.isfinite().all(), name
    assert (terms.rate is not None) == (terms.bound is not None) == model.has_prior
    if terms.rate is not None and terms.rate_per_unit is not None:
        torch.testing.assert_close(terms.rate_per_unit.sum(1), terms.rate)


def _check_gradients(terms: Terms, model: Model) -> None:
    """What training minimises teaches every weight that is to be taught, but for codes that are at no distance."""
    parts = (terms.distortion if terms.bound is None else terms.bound, terms.penalty)
    sum(part.sum() for part in parts if part is not None).backward()  # pyright: ignore[reportAttributeAccessIssue]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        settled = terms.penalty is not None and not terms.penalty.any() and name.startswith("quantizers")
        assert parameter.grad.any() or settled, f"no gradient reaches {name}"


def _check_codes(model: CodeModel, codes: tuple[Tensor, ...], z: Tensor, terms: Terms) -> None:
    """Codes are all that z is, and cost what the uniform prior says until another is fitted."""
    assert all(torch.equal(a, b) for a, b in zip(model.checked_codes(codes), codes, strict=True))
    assert [tuple(c.shape) for c in codes] == [(BATCH, *shape) for shape in model.code_shapes]
    assert torch.equal(model.lookup(codes), z)
    numbers = zip(model.code_shapes, model.levels, strict=True)
    uniform = sum(math.prod(shape) * math.log(quantizer.codebook_size) for shape, quantizer in numbers)
    assert terms.rate is not None
    torch.testing.assert_close(terms.rate, torch.full((BATCH,), uniform), rtol=1e-4, atol=1e-4)
    assert not model.fitted


def _shapes(model: Model) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("entry", entries_of("model"))
@pytest.mark.parametrize("sides", SIDES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_model_of_pictures(entry: Entry, sides: tuple[int, int]) -> None:
    check_model(entry, schema_of("binary", (1, *sides)))
    for channels in (1, 2, 3, 4):
        check_model(entry, schema_of("uint8", (channels, *sides)), components=2)
    check_model(entry, schema_of("real", (3, *sides)))


@pytest.mark.parametrize("entry", entries_of("model"))
@pytest.mark.parametrize("features", FEATURES)
def test_model_of_vectors(entry: Entry, features: int) -> None:
    if entry.name in OF_PICTURES:
        with pytest.raises(SpecError, match="use vqvae"):
            made(entry, schema_of("real", (features,)))
        return
    check_model(entry, schema_of("binary", (features,)))
    check_model(entry, schema_of("uint8", (features,)), components=2)
    check_model(entry, schema_of("real", (features,)))


@pytest.mark.parametrize("entry", [e for e in entries_of("model") if e.id != "flow"])
def test_model_of_signals(entry: Entry) -> None:
    check_model(entry, schema_of("real", (2, 9)))
    check_model(entry, schema_of("uint8", (1, 12)), components=2)


@pytest.mark.parametrize("entry", entries_of("model"))
@pytest.mark.parametrize("likelihood", names("likelihood"))
def test_model_with_every_likelihood(entry: Entry, likelihood: str) -> None:
    grid = {} if entry.name in OPTIONS else {"latent_layout": "grid"}
    for values in find("likelihood", likelihood).values:
        schema = schema_of(values, (2, 5, 3))
        if "likelihood" not in hints(entry.load()):
            with raises("no-such-option"):
                made(entry, schema, likelihood=likelihood)
            continue
        model = made(entry, schema, likelihood=likelihood, **grid)
        _check_terms(model(examples(schema), torch.tensor([0, 1, 2]), noise=Noise(0)), model)


@pytest.mark.parametrize("entry", [pytest.param(find("model", name), id=name) for name in CODE_MODELS])
@pytest.mark.parametrize("quantizer", names("quantizer"))
@pytest.mark.parametrize("codes", [1, 2])
def test_model_with_every_quantizer(entry: Entry, quantizer: str, codes: int) -> None:
    check_model(entry, schema_of("uint8", (1, 9, 8)), components=2, quantizer=quantizer, codes_per_position=codes)
    if entry.name not in OF_PICTURES:
        check_model(entry, schema_of("real", (6,)), quantizer=quantizer, codes_per_position=codes)


@pytest.mark.parametrize("entry", entries_of("model"))
def test_model_without_classes(entry: Entry) -> None:
    schema = schema_of("uint8", (1, 8, 8), classes=())
    if "label" in entry.summary:
        with pytest.raises(SpecError, match="needs labels"):
            made(entry, schema)
    else:
        model = made(entry, schema)
        _check_terms(model(examples(schema), noise=Noise(0)), model)


@pytest.mark.parametrize("entry", entries_of("model"))
def test_bound_does_not_depend_on_the_objective(entry: Entry) -> None:
    weights = {"beta": 7.0, "warmup": 0.5, "free_bits": 0.1}
    weights = {name: value for name, value in weights.items() if name in hints(entry.load())}
    schema = schema_of("binary", (1, 8, 8))
    plain, weighted = made(entry, schema), made(entry, schema, **weights)
    assert weighted.objective == replace(Objective(), **weights)
    x, label = examples(schema), torch.tensor([0, 1, 2])
    one, two = (model(x, label, noise=Noise(0)) for model in (plain, weighted))
    assert torch.equal(one.distortion, two.distortion)
    if one.rate is not None:
        assert torch.equal(one.rate, two.rate)
