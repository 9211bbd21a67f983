"""Conformance tests for likelihoods, bottlenecks, quantizers, priors, data sources and tasks."""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, cast

import numpy as np
import torch

from tessella.bottlenecks import DiagonalGaussian
from tessella.bottlenecks.gaussian import position_head
from tessella.core.configs import (
    BottleneckConfig,
    CodePriorConfig,
    InferenceNetwork,
    LikelihoodConfig,
    PriorConfig,
    QuantizerConfig,
)
from tessella.core.contracts import CodePrior, Prior, Quantizer, StoredValues
from tessella.core.outputs import Condition
from tessella.core.rng import Noise
from tessella.data.raw import WHOLE, RawDataset
from tessella.foundation import validation
from tessella.foundation.config import Config, described, hints
from tessella.foundation.registry import Entry, find
from tessella.tasks.task import Task, load_task
from tessella.testing.examples import BATCH, CLASSES, SHAPES, in_range, random_examples, refuses, schema_of

FEATURE_SHAPES = [(6,), (6, 7), (6, 1, 1), (6, 3, 5)]
GRIDS = [(1, 3), (2, 5), (1, 1, 1), (1, 1, 3), (2, 1, 1), (1, 2, 2), (3, 4, 3)]
SIZE = 4
"""Number of values of a code."""


def check_entry(entry: Entry) -> None:
    """Check a registered part: its description, the storage of its options, and the contract of its kind."""
    loaded = entry.load()
    assert callable(loaded)
    assert inspect.getdoc(loaded)
    assert entry.summary
    assert "\n" not in entry.summary
    assert not entry.summary.endswith(".")
    assert re.fullmatch(r"[a-z][a-z0-9-]*", entry.name)
    assert find(entry.kind, entry.name) == entry
    assert bool(entry.values) == (entry.kind == "likelihood")
    if entry.kind == "data":
        check_source(entry.load())
    elif entry.kind == "task":
        check_task(load_task(entry.name))
    if not (isinstance(loaded, type) and issubclass(loaded, Config)):
        return
    assert described(loaded).keys() >= hints(loaded).keys(), "each option has a line in `Attributes:`"
    config = loaded()
    assert validation.fitted(loaded, config.to_record()) == config
    assert loaded.from_options(config.changed()) == config
    if isinstance(config, LikelihoodConfig):
        for values in entry.values:
            check_likelihood(config, values)
    elif isinstance(config, BottleneckConfig):
        check_bottleneck(config)
    elif isinstance(config, QuantizerConfig):
        check_quantizer(config)
    elif isinstance(config, PriorConfig):
        check_prior(config)
    elif isinstance(config, CodePriorConfig):
        check_code_prior(small(config))


def check_source(source: Callable[[tuple[int, int] | None], RawDataset]) -> None:
    """Check that a data source is deterministic, with distinct example ids and valid labels."""
    found, again = source(None), source(None)
    assert found.parts.keys() in ({WHOLE}, {"train"}, {"train", "valid"}, {"train", "test"}, {"train", "valid", "test"})
    for name, part in found.parts.items():
        rows = np.arange(min(3, len(part.example_ids)))
        assert part.example_ids.dtype == np.uint64
        assert len(np.unique(part.example_ids)) == len(part.example_ids) == len(part.x) > 0
        assert np.array_equal(part.example_ids, again.parts[name].example_ids)
        some, same = (p.read(rows) for p in (part, again.parts[name]))
        assert np.array_equal(some, same)
        kind = np.uint8 if found.schema is None or found.schema.in_bytes else np.float32
        assert isinstance(part.x, np.ndarray) or (some.shape[1:] == part.x.shape and some.dtype == kind)
        assert part.labels is None or len(part.labels) == len(part.example_ids)
        assert part.labels is None or not found.classes or part.labels.max() < len(found.classes)


def check_task(task: Task) -> None:
    """Check that a task's config is a frozen dataclass with a description of each option."""
    assert task.config.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]
    plain = {name for name, hint in hints(task.config).items() if not is_dataclass(getattr(hint, "__origin__", hint))}
    assert described(task.config).keys() >= plain, "each option has a line in `Attributes:`"


def small(config: CodePriorConfig) -> CodePriorConfig:
    """Return the config with small width and depth, if it has them."""
    sizes = {name: size for name, size in (("width", 8), ("depth", 1)) if name in hints(type(config))}
    return type(config)(**{**config.values(), **sizes})


def check_likelihood(config: LikelihoodConfig, values: str) -> None:
    """Check shapes, range and units of p(x | z) for a type of values, a key of `VALUES`."""
    for schema in [schema_of(values, shape) for shape in SHAPES]:
        likelihood = config.build(schema)
        x = random_examples(schema)
        network = likelihood.to_network(x)
        assert network.shape == x.shape
        assert network.dtype == torch.float32
        assert network.abs().max() < 20
        distribution = likelihood(torch.randn(BATCH, likelihood.parameter_channels, *schema.shape[1:]))
        assert isinstance(distribution, StoredValues)
        assert distribution.batch_shape == (BATCH,)
        assert distribution.event_shape == schema.shape
        nats = distribution.log_prob(x)
        assert nats.shape == (BATCH,)
        assert nats.dtype == torch.float32
        assert nats.isfinite().all()
        assert schema.values.name == "real" or nats.max() <= 0
        positions = distribution.by_position(x)
        assert positions.shape == (BATCH, *(schema.shape[1:] or schema.shape))
        torch.testing.assert_close(positions.flatten(1).sum(1), nats)
        assert in_range(distribution.mean, schema)
        draw = distribution.sample()
        assert in_range(draw, schema)
        assert schema.values.name == "real" or torch.equal(draw, draw.round())


def check_bottleneck(config: BottleneckConfig) -> None:
    """Check shapes of z and q(z | x), and that a sample is a function of its noise."""
    for feature_shape in FEATURE_SHAPES:
        bottleneck = config.build(feature_shape, 4)
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


def check_quantizer(config: QuantizerConfig) -> None:
    """Check that codes determine z on any grid, and that gradients reach the features."""
    for feature_shape in FEATURE_SHAPES:
        quantizer: Quantizer = config.build(feature_shape)
        features = torch.randn(BATCH, *feature_shape, requires_grad=True)
        quantizer.train()(features, Noise(0))  # codebooks that are kept by statistics start
        quantizer.eval()
        passed = quantizer(features, None)
        codes = passed.posterior.value
        assert codes.shape == (BATCH, *quantizer.code_shape)
        assert codes.dtype == torch.int64
        assert 0 <= codes.min() <= codes.max() < quantizer.codebook_size
        assert passed.z.shape == (BATCH, *quantizer.latent_shape)
        assert torch.equal(quantizer.lookup(codes), passed.z)
        assert passed.penalty is None or passed.penalty.shape == (BATCH,)
        passed.z.square().sum().backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()
        near, log_q = quantizer.sample_proposal(features.detach(), Noise(1))
        assert near.shape == codes.shape
        assert log_q.shape == (BATCH, *feature_shape[1:])
        assert log_q.isfinite().all()
        assert log_q.max() <= 0
        wide = torch.randn(BATCH, feature_shape[0], *(side + 1 for side in feature_shape[1:]))
        assert quantizer(wide, None).posterior.value.shape[2:] == wide.shape[2:]


def check_prior(config: PriorConfig) -> None:
    """Check log p(z) and samples of z, also with labels if the prior supports them."""
    for latent_shape in ((4,), (4, 7), (4, 1, 1), (4, 3, 5)):
        for classes in {"none": (0,), "optional": (0, len(CLASSES)), "required": (len(CLASSES),)}[config.labels]:
            _check_prior(config, latent_shape, classes)


def _check_prior(config: PriorConfig, latent_shape: tuple[int, ...], classes: int) -> None:
    inference = None
    if config.of_posteriors:
        bottleneck = DiagonalGaussian().build((6, *latent_shape[1:]), latent_shape[0])
        encoder = position_head((5, *latent_shape[1:]), 6)
        encoder.forward = lambda x, label, of=encoder.forward: of(x)  # pyright: ignore[reportAttributeAccessIssue]
        inference = InferenceNetwork(cast(Any, encoder), bottleneck, (5, *latent_shape[1:]), False)
    prior: Prior = config.build(latent_shape, classes, inference)
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


def check_code_prior(config: CodePriorConfig) -> None:
    """Check log p(codes) and samples, with labels and context, and that probabilities sum to at most 1."""
    for grid in GRIDS:
        for classes in (0, 3) if config.labels != "none" else (0,):
            for channels in (0, 2):
                _check_code_prior(config, grid, classes, channels)
    if config.labels == "none":
        refuses(lambda: config.build(GRIDS[0], SIZE, classes=3), "sees-no-labels")
    for grid in ((1, 1, 3), (1, 2, 2), (2, 1, 2)):
        _check_sum(config, grid)


def _check_code_prior(config: CodePriorConfig, grid: tuple[int, ...], classes: int, channels: int) -> None:
    prior: CodePrior = config.build(grid, SIZE, context_channels=channels, classes=classes).eval()
    codes = torch.randint(0, SIZE, (5, *grid))
    label = torch.tensor([0, 1, 2, 1, 0]) if classes else None
    context = torch.randn(5, 2, *grid[1:]) if channels else None
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


def _check_sum(config: CodePriorConfig, grid: tuple[int, ...]) -> None:
    """Check that the probabilities of all codes sum to at most 1, up to noise. Bounds are averaged over 64 samples."""
    prior = config.build(grid, SIZE, context_channels=2).eval()
    everything = torch.tensor(list(itertools.product(range(SIZE), repeat=math.prod(grid)))).view(-1, *grid)
    many = everything.repeat(64, 1, 1, 1)
    context = torch.randn(1, 2, *grid[1:]).expand(len(many), -1, -1, -1)
    with torch.no_grad():
        nats = prior(many, Condition(context=context), noise=Noise(0)).flatten(1).sum(1)
    total = nats.unflatten(0, (64, -1)).mean(0).exp().sum()
    assert 0.2 < total < 1.01
