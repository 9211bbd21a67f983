"""Laws of looking: what starts and ends where, what does not move, and whose labels are whose."""

from __future__ import annotations

import pytest
import torch

import tessella
from making import make
from tessella.core.batches import Batch
from tessella.core.outputs import Sampling
from tessella.core.schema import Schema
from tessella.foundation.errors import SpecError
from tessella.models.base import Model
from tessella.tasks import generate

GREY = Schema.of((1, 8, 8), "uint8", classes=tuple("abc"))
SMALL = {"width": 8, "depth": 1, "latent_dim": 3}


def made(kind: str = "VAE", schema: Schema = GREY, **options: object) -> Model:
    torch.manual_seed(0)
    model = make(getattr(tessella, kind), schema, **{**SMALL, **options}).eval()
    for parameter in model.parameters():  # fresh decoders ignore z
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def examples(count: int, schema: Schema = GREY, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, *schema.shape), generator=generator).to(torch.uint8)
    return Batch(x, torch.arange(count) % 3)


@pytest.mark.parametrize("kind", ["AE", "VAE", "CVAE"])
def test_a_walk_starts_at_one_reconstruction_and_ends_at_the_other(kind: str) -> None:
    model, first, last = made(kind), examples(2), examples(2, seed=1)
    walk = generate.interpolate(model, first, last, steps=5)
    assert walk.shape == (2, 7, 1, 8, 8)
    assert torch.equal(walk[:, 0], first.x.float())
    assert torch.equal(walk[:, -1], last.x.float())
    assert torch.allclose(walk[:, 1], model.reconstruct(first.x, first.label), atol=0.5)
    assert torch.allclose(walk[:, -2], model.reconstruct(last.x, last.label), atol=0.5)


def test_a_walk_on_the_sphere_keeps_its_length_and_goes_half_way() -> None:
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    a, b = 3 * a / a.norm(dim=1, keepdim=True), 3 * b / b.norm(dim=1, keepdim=True)
    middle = generate._along_sphere(a, b, 0.5)
    assert torch.allclose(middle.norm(dim=1), torch.full((4,), 3.0))
    assert torch.allclose(torch.cosine_similarity(middle, a), torch.cosine_similarity(middle, b), atol=1e-5)
    assert torch.allclose(generate._along_sphere(a, a, 0.3), a, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"), [("VAE", {}), ("CVAE", {}), ("AE", {}), ("VAE", {"latent_layout": "grid"})], ids=str
)
def test_a_traversal_moves_one_unit_and_passes_through_the_example(kind: str, options: dict[str, str]) -> None:
    model, one = made(kind, **options), examples(1)
    z = model.encode(one.x, one.label).z
    at = z.flatten(2).mean(2)[0] if z.dim() > 2 else z[0]
    units = generate.LatentStatistics(at.detach(), torch.ones(3), None)  # as if the example were the mean of all
    rows = generate.traverse(model, one, units, [2, 0], steps=5)
    assert rows.shape == (2, 5, 1, 8, 8)
    for row in rows:
        assert torch.allclose(row[2], model.reconstruct(one.x, one.label)[0], atol=1e-2)
        assert not torch.equal(row[0], row[4])


def test_units_are_surveyed_as_the_examples_use_them() -> None:
    data = tessella.open_data("digits")
    model = made(schema=data.schema)
    units = generate.unit_statistics(model, data.split("test"))
    assert units.rate is not None
    assert units.order == sorted(range(3), key=lambda j: -float(units.rate[j]))
    assert generate.unit_statistics(model, data.split("test")).mean.equal(units.mean)
    straight = generate.unit_statistics(made("AE", data.schema), data.split("test"))
    assert straight.rate is None
    assert straight.order == torch.argsort(straight.deviation, descending=True).tolist()


def test_a_grid_has_a_unit_for_each_channel() -> None:
    data = tessella.open_data("digits")
    model = made(schema=data.schema, latent="grid")
    units = generate.unit_statistics(model, data.split("valid"))
    assert units.mean.shape == units.deviation.shape == (3,)
    assert units.rate is not None
    assert units.rate.shape == (3,)


def test_reconstructions_stand_below_what_they_are_of() -> None:
    model, batch = made(), examples(5)
    rows = generate.reconstruct(model, batch, columns=3)
    assert rows.shape == (4, 3, 1, 8, 8)
    assert torch.equal(torch.cat([rows[0], rows[2]])[:5], batch.x.float())
    assert torch.allclose(torch.cat([rows[1], rows[3]])[:5], model.reconstruct(batch.x), atol=1e-2)
    assert (rows[2:, 2] == 0).all()


def test_samples_follow_the_seed_and_not_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    drawn = generate.sample(model, 10, seed=3)
    assert drawn.shape == (3, 4, 1, 8, 8)
    assert torch.equal(drawn, generate.sample(model, 10, seed=3))
    assert not torch.equal(drawn, generate.sample(model, 10, seed=4))
    monkeypatch.setattr(generate, "AT_ONCE", 4)
    passes = generate.sample(model, 10, seed=3).flatten(0, 1)
    assert len(passes) == 12
    assert not torch.equal(passes[:4], passes[4:8])


def test_a_conditional_model_draws_a_row_for_each_class() -> None:
    model = made("CVAE")
    assert generate.sample(model, 12).shape == (3, 4, 1, 8, 8)
    assert generate.sample(model, 2).flatten(0, 1).shape == (2, 1, 8, 8)
    assert generate.sample(model, 4, label=1).shape == (2, 2, 1, 8, 8)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("AE", {"count": 4}, "no prior"),
        ("VAE", {"count": 4, "label": 1}, "does not see labels"),
        ("VAE", {"count": 0}, "from 1 to"),
        ("VAE", {"count": 4, "sampling": Sampling(top_k=3)}, "top-k"),
    ],
)
def test_what_cannot_be_drawn_is_refused(kind: str, options: dict[str, float], says: str) -> None:
    with pytest.raises(SpecError, match=says):
        generate.sample(made(kind), **options)  # pyright: ignore[reportArgumentType]
