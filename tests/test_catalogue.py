"""Every entry of the catalogue keeps its kind's contract, on data of many shapes. A new part is tested by being listed.

What a part computes is tested where the part is; here is only what all of them promise.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from tessella.errors import SpecError
from tessella.likelihoods import likelihood_for
from tessella.models.model import Model
from tessella.noise import Noise
from tessella.records import Schema, Terms, Values
from tessella.registry import CATALOGUE, Entry, entries, find, names
from tessella.spec import ModelOptions, Spec

SIDES = [(1, 1), (1, 7), (5, 3), (8, 8), (28, 28), (30, 45), (33, 17), (64, 64)]
FEATURES = [1, 2, 100]
CLASSES = ("cat", "dog", "owl")
TINY = {"width": 4, "depth": 1, "units": 2}
BATCH = 3


def entries_of(kind):
    return [pytest.param(entry, id=entry.name) for entry in entries(kind)]


def schema_of(values: Values, shape: tuple[int, ...], classes: tuple[str, ...] = CLASSES) -> Schema:
    if values == "real":
        moments = tuple(10.0 + c for c in range(shape[0])), tuple(1.0 + c for c in range(shape[0]))
        return Schema(shape, values, -100.0, 100.0, *moments, classes)
    return Schema(shape, values, 0.0, 1.0 if values == "binary" else 255.0, classes=classes)


def examples(schema: Schema, count: int = BATCH) -> Tensor:
    if schema.values == "real":
        return 10 + 2 * torch.randn(count, *schema.shape)
    return torch.randint(0, int(schema.high) + 1, (count, *schema.shape), dtype=torch.uint8)


def in_range(x: Tensor, schema: Schema, count: int = BATCH) -> bool:
    """Whether x could be `count` examples' stored values or means of them."""
    inside = schema.values == "real" or bool(x.min() >= schema.low and x.max() <= schema.high)
    return x.shape == (count, *schema.shape) and x.dtype == torch.float32 and bool(x.isfinite().all()) and inside


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# The catalogue


@pytest.mark.parametrize("entry", [pytest.param(e, id=f"{e.kind}-{e.name}") for e in CATALOGUE])
def test_entry(entry: Entry) -> None:
    loaded = entry.load()
    assert callable(loaded)
    assert inspect.getdoc(loaded)
    assert entry.summary
    assert "\n" not in entry.summary
    assert not entry.summary.endswith(".")
    assert re.fullmatch(r"[a-z][a-z0-9-]*", entry.name)
    assert find(entry.kind, entry.name) is entry
    assert bool(entry.values) == (entry.kind == "likelihood")


def test_names_are_unique() -> None:
    assert len({(e.kind, e.name) for e in CATALOGUE}) == len(CATALOGUE)


def test_unknown_name_is_answered_by_the_known_ones() -> None:
    with pytest.raises(SpecError, match=f"no model is called 'vea'; there are: {', '.join(names('model'))}"):
        find("model", "vea")


# Likelihoods


SHAPES = [*[(c, h, w) for c in (1, 2, 3, 4) for h, w in ((1, 1), (5, 3), (8, 8))], *[(d,) for d in FEATURES]]


@pytest.mark.parametrize("entry", entries_of("likelihood"))
def test_likelihood(entry: Entry) -> None:
    for schema in [schema_of(values, shape) for values in entry.values for shape in SHAPES]:
        likelihood = likelihood_for(schema, entry.name)
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
        assert schema.values == "real" or nats.max() <= 0
        assert in_range(distribution.mean, schema)
        draw = distribution.sample()
        assert in_range(draw, schema)
        assert schema.values == "real" or torch.equal(draw, draw.round())


@pytest.mark.parametrize("entry", entries_of("likelihood"))
def test_likelihood_refuses_other_values(entry: Entry) -> None:
    kinds: tuple[Values, ...] = ("binary", "bytes", "real")
    for values in set(kinds) - set(entry.values):
        with pytest.raises(SpecError, match="--likelihood"):
            likelihood_for(schema_of(values, (1, 8, 8)), entry.name)


# Bottlenecks and priors


@pytest.mark.parametrize("entry", entries_of("bottleneck"))
@pytest.mark.parametrize("feature_shape", [(6,), (6, 1, 1), (6, 3, 5)])
def test_bottleneck(entry: Entry, feature_shape: tuple[int, ...]) -> None:
    bottleneck = entry.load()(feature_shape, 4)
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
@pytest.mark.parametrize("latent_shape", [(4,), (4, 1, 1), (4, 3, 5)])
def test_prior(entry: Entry, latent_shape: tuple[int, ...]) -> None:
    make = entry.load()
    conditional = "classes" in inspect.signature(make).parameters
    prior = make(latent_shape, len(CLASSES)) if conditional else make(latent_shape)
    label = torch.tensor([0, 2, 1]) if conditional else None
    distribution = prior(label)
    assert distribution.event_shape == latent_shape
    assert distribution.batch_shape == ((BATCH,) if conditional else ())
    nats = distribution.log_prob(torch.randn(BATCH, *latent_shape))
    assert nats.shape == (BATCH,)
    assert nats.isfinite().all()


# Models


def check_model(entry: Entry, schema: Schema, **more: int) -> None:
    """All that a model promises, on one kind of data."""
    torch.manual_seed(0)
    model: Model = entry.load()(schema, **TINY, **more)
    x, label = examples(schema), torch.tensor([0, 1, 2])
    terms = model(x, label, noise=Noise(0, 1))
    _check_terms(terms, model)
    total = terms.distortion if terms.bound is None else terms.bound
    total.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), f"no gradient reaches {name}"
    with torch.no_grad():
        again, other = model(x, label, noise=Noise(0, 1)), model(x, label, noise=Noise(0, 2))
        assert torch.equal(again.distortion, terms.distortion)
        assert torch.equal(other.distortion, terms.distortion) != model.has_prior
        latent = model.encode(x, label)
        assert latent.z.shape == (BATCH, *model.latent_shape)
        assert in_range(model.decode(latent.z, label).mean, schema)
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
    spec = Spec.from_json(Spec(entry.name, schema, model.options).to_json(), "spec.json")
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


def _shapes(model: Model) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("entry", entries_of("model"))
@pytest.mark.parametrize("sides", SIDES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_model_of_pictures(entry: Entry, sides: tuple[int, int]) -> None:
    check_model(entry, schema_of("binary", (1, *sides)))
    for channels in (1, 2, 3, 4):
        check_model(entry, schema_of("bytes", (channels, *sides)), mixtures=2)
    check_model(entry, schema_of("real", (3, *sides)))


@pytest.mark.parametrize("entry", entries_of("model"))
@pytest.mark.parametrize("features", FEATURES)
def test_model_of_vectors(entry: Entry, features: int) -> None:
    check_model(entry, schema_of("binary", (features,)))
    check_model(entry, schema_of("bytes", (features,)), mixtures=2)
    check_model(entry, schema_of("real", (features,)))


@pytest.mark.parametrize("entry", entries_of("model"))
@pytest.mark.parametrize("likelihood", names("likelihood"))
def test_model_with_every_likelihood(entry: Entry, likelihood: str) -> None:
    for values in find("likelihood", likelihood).values:
        schema = schema_of(values, (2, 5, 3))
        model = entry.load()(schema, likelihood=likelihood, latent="grid", **TINY)
        _check_terms(model(examples(schema), torch.tensor([0, 1, 2]), noise=Noise(0)), model)


@pytest.mark.parametrize("entry", entries_of("model"))
def test_model_without_classes(entry: Entry) -> None:
    schema = schema_of("bytes", (1, 8, 8), classes=())
    if "label" in entry.summary:
        with pytest.raises(SpecError, match="needs labels"):
            entry.load()(schema, **TINY)
    else:
        model = entry.load()(schema, **TINY)
        _check_terms(model(examples(schema), noise=Noise(0)), model)


@pytest.mark.parametrize("entry", entries_of("model"))
def test_bound_does_not_depend_on_the_objective(entry: Entry) -> None:
    schema = schema_of("binary", (1, 8, 8))
    torch.manual_seed(0)
    plain = entry.load()(schema, **TINY)
    torch.manual_seed(0)
    weighted = entry.load()(schema, **TINY, beta=7.0, warmup=0.5, free_bits=0.1)
    assert weighted.objective == replace(ModelOptions(), beta=7.0, warmup=0.5, free_bits=0.1).objective
    x, label = examples(schema), torch.tensor([0, 1, 2])
    one, two = (model(x, label, noise=Noise(0)) for model in (plain, weighted))
    assert torch.equal(one.distortion, two.distortion)
    if one.rate is not None:
        assert torch.equal(one.rate, two.rate)
