"""Conformance tests for models of any composition."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tessella.core.outputs import Terms
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.foundation import config
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.flow import FlowModel
from tessella.models.spec import ModelConfig, Spec
from tessella.testing.examples import BATCH, in_range, random_examples, refuses

SMALL = {"width": 4, "depth": 1, "latent_dim": 2, "codebook_size": 8}
"""Options for a small model, used if the model has them."""


def small_model(name: str, schema: Schema, **options: Any) -> Model:
    """Build a small model with weights from seed 0: `small_model("vqvae", schema, quantizer="fsq")`."""
    torch.manual_seed(0)
    kind = ModelConfig.chosen(name)
    known = config.options(kind, config.choices(kind, options))
    return kind.from_options({**{n: v for n, v in SMALL.items() if n in known}, **options}).build(schema)


def check_model(model: Model) -> None:
    """Check terms, gradients, reconstructions, samples, codes and the specification of a fresh model."""
    schema = model.schema
    x, label = random_examples(schema), torch.tensor([0, 1, 2])
    terms = model(x, label, noise=Noise(0, 1))
    check_terms(terms, model)
    _check_gradients(terms, model)
    model.eval()  # codebooks updated by statistics do not change from here on
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
        refuses(lambda: model.sample(BATCH, label), "no-prior")
        refuses(lambda: model(x, label, noise=Noise(0), draws=2), "no-prior")
    if model.conditional:
        for call in (lambda: model(x), lambda: model.decode(latent.z), lambda: model.sample(BATCH)):
            refuses(call, "no-label")
    if model.config is None:  # a model that is not registered
        return
    spec = Spec.from_json(Spec(model.name, schema, model.config).to_json(), "spec.json")
    assert spec.schema == schema
    rebuilt = spec.build()
    assert _shapes(rebuilt) == _shapes(model)
    assert rebuilt.objective == model.objective


def check_terms(terms: Terms, model: Model) -> None:
    """Check the terms of the bound: nats per example, and a bound if the model has a prior."""
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
    """Check that the loss has a gradient for each trained weight, except quantizers with zero penalty."""
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
    """Check that codes determine z, and that the rate is the uniform prior's before fitting."""
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


def check_bound(one: Model, other: Model) -> None:
    """Check that two models with equal weights but different objectives report the same bound."""
    x, label = random_examples(one.schema), torch.tensor([0, 1, 2])
    first, second = (model(x, label, noise=Noise(0)) for model in (one, other))
    assert torch.equal(first.distortion, second.distortion)
    if first.rate is not None:
        assert torch.equal(first.rate, second.rate)
