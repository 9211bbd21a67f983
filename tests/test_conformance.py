"""Every registered part keeps its kind's promises, on data of many shapes. A new part is tested by being registered.

The promises stand in `tessella.testing`. What a part computes is tested where the part is.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from expect import raises
from tessella import testing
from tessella.core.outputs import Condition, Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.diffusion import chain
from tessella.foundation.config import hints, slots
from tessella.foundation.registry import Entry, entries, find, names
from tessella.models import diffusion
from tessella.models.spec import Objective
from tessella.testing.examples import VALUES, random_examples, schema_of
from tessella.testing.models import check_terms, small_model
from tessella.testing.parts import SIZE, small

SIDES = [(1, 1), (1, 7), (5, 3), (8, 8), (28, 28), (30, 45), (33, 17), (64, 64)]
CODE_MODELS = ("vqvae", "vqvae2")
OF_PICTURES = ("vqvae2",)
"""Models that are for pictures only."""


def entries_of(kind):
    return [pytest.param(entry, id=entry.name) for entry in entries(kind)]


def check_model(entry: Entry, schema: Schema, **more: Any) -> None:
    """Bytes have a mixture of two logistics, for speed; in a flow of width 4 too many units are dead."""
    if entry.name == "flow":
        more = {"width": 16, **more}
    if schema.values.name == "uint8" and "likelihood" in slots(entry.load()):
        more = {"likelihood": "logistic", "components": 2, **more}
    testing.check_model(small_model(entry.name, schema, **more))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _short_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contracts hold whatever the number of steps; what many are good for is tested where diffusion is."""
    monkeypatch.setattr(chain, "STEPS", 3)
    monkeypatch.setattr(chain, "LINKS", 3)
    monkeypatch.setattr(diffusion, "TIMES", 2)


@pytest.mark.parametrize("entry", [pytest.param(e, id=f"{e.kind}-{e.name}") for e in entries()])
def test_entry(entry: Entry) -> None:
    testing.check_entry(entry)


@pytest.mark.parametrize("entry", entries_of("likelihood"))
def test_likelihood_refuses_other_values(entry: Entry) -> None:
    for values in VALUES.keys() - set(entry.values):
        with raises("wrong-values"):
            entry.load()().build(schema_of(values, (1, 8, 8)))


@pytest.mark.parametrize("entry", [e for e in entries_of("code-prior") if e.id != "uniform"])
def test_prior_over_codes_learns(entry: Entry) -> None:
    """The label is the first code, the context the last; gradients reach every weight."""
    prior = small(entry.load()()).build((2, 3, 2), SIZE, classes=SIZE, context_channels=1)
    codes = torch.randint(0, SIZE, (5, 2, 3, 2)).repeat(3, 1, 1, 1)
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


@pytest.mark.parametrize("entry", entries_of("model"))
@pytest.mark.parametrize("sides", SIDES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_model_of_pictures(entry: Entry, sides: tuple[int, int]) -> None:
    """Any size; the numbers of channels from 1 to 4 come by turns."""
    check_model(entry, schema_of("binary", (1, *sides)))
    check_model(entry, schema_of("uint8", (1 + SIDES.index(sides) % 4, *sides)))
    check_model(entry, schema_of("real", (3, *sides)))


@pytest.mark.parametrize("entry", entries_of("model"))
@pytest.mark.parametrize("features", [1, 2, 100])
def test_model_of_vectors(entry: Entry, features: int) -> None:
    if entry.name in OF_PICTURES:
        with raises("pictures-only"):
            small_model(entry.name, schema_of("real", (features,)))
        return
    check_model(entry, schema_of("binary", (features,)))
    check_model(entry, schema_of("uint8", (features,)))
    check_model(entry, schema_of("real", (features,)))


@pytest.mark.parametrize("entry", entries_of("model"))
def test_model_of_signals(entry: Entry) -> None:
    check_model(entry, schema_of("real", (2, 9)))
    check_model(entry, schema_of("uint8", (1, 12)))
    check_model(entry, schema_of("integers", (2, 6)))
    check_model(entry, schema_of("symbols", (1, 7)))


@pytest.mark.parametrize("entry", entries_of("model"))
@pytest.mark.parametrize("likelihood", names("likelihood"))
def test_model_with_every_likelihood(entry: Entry, likelihood: str) -> None:
    grid = {"latent_layout": "grid"} if "latent_layout" in hints(entry.load()) else {}
    for values in find("likelihood", likelihood).values:
        schema = schema_of(values, (2, 5, 3))
        if "likelihood" not in hints(entry.load()):
            with raises("no-such-option"):
                small_model(entry.name, schema, likelihood=likelihood)
            continue
        model = small_model(entry.name, schema, likelihood=likelihood, **grid)
        check_terms(model(random_examples(schema), torch.tensor([0, 1, 2]), noise=Noise(0)), model)


@pytest.mark.parametrize("entry", [pytest.param(find("model", name), id=name) for name in CODE_MODELS])
@pytest.mark.parametrize("quantizer", names("quantizer"))
@pytest.mark.parametrize("codes", [1, 2])
def test_model_with_every_quantizer(entry: Entry, quantizer: str, codes: int) -> None:
    check_model(entry, schema_of("uint8", (1, 9, 8)), quantizer=quantizer, codes_per_position=codes)
    if entry.name not in OF_PICTURES:
        check_model(entry, schema_of("real", (6,)), quantizer=quantizer, codes_per_position=codes)


@pytest.mark.parametrize("entry", entries_of("model"))
def test_model_without_classes(entry: Entry) -> None:
    schema = schema_of("uint8", (1, 8, 8), classes=())
    if entry.name in ("cvae", "cvqvae"):
        with raises("no-labels"):
            small_model(entry.name, schema)
    else:
        model = small_model(entry.name, schema)
        check_terms(model(random_examples(schema), noise=Noise(0)), model)


@pytest.mark.parametrize("entry", entries_of("model"))
def test_bound_does_not_depend_on_the_objective(entry: Entry) -> None:
    weights = {"beta": 7.0, "warmup": 0.5, "free_bits": 0.1}
    weights = {name: value for name, value in weights.items() if name in hints(entry.load())}
    schema = schema_of("binary", (1, 8, 8))
    plain, weighted = small_model(entry.name, schema), small_model(entry.name, schema, **weights)
    assert weighted.objective == replace(Objective(), **weights)
    testing.check_bound(plain, weighted)
