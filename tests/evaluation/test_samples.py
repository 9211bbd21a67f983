"""Laws of samples, reconstructions, interpolations and traversals: where they start and end, and what does not move."""

from __future__ import annotations

import pytest
import torch

import tessella
from expect import raises
from making import make
from tessella.core.batches import Batch
from tessella.core.outputs import Sampling
from tessella.core.schema import Schema
from tessella.evaluation import samples
from tessella.evaluation.samples import (
    LatentStatistics,
    interpolate_rows,
    latent_statistics,
    reconstruct_rows,
    sample_rows,
    slerp,
    traverse_rows,
)
from tessella.models.base import Model

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
    walk = interpolate_rows(model, first, last, steps=5)
    assert walk.shape == (2, 7, 1, 8, 8)
    assert torch.equal(walk[:, 0], first.x.float())
    assert torch.equal(walk[:, -1], last.x.float())
    assert torch.allclose(walk[:, 1], model.reconstruct(first.x, first.label), atol=0.5)
    assert torch.allclose(walk[:, -2], model.reconstruct(last.x, last.label), atol=0.5)


def test_a_walk_on_the_sphere_keeps_its_length_and_goes_half_way() -> None:
    a, b = torch.randn(4, 6), torch.randn(4, 6)
    a, b = 3 * a / a.norm(dim=1, keepdim=True), 3 * b / b.norm(dim=1, keepdim=True)
    middle = slerp(a, b, 0.5)
    assert torch.allclose(middle.norm(dim=1), torch.full((4,), 3.0))
    assert torch.allclose(torch.cosine_similarity(middle, a), torch.cosine_similarity(middle, b), atol=1e-5)
    assert torch.allclose(slerp(a, a, 0.3), a, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"), [("VAE", {}), ("CVAE", {}), ("AE", {}), ("VAE", {"latent_layout": "grid"})], ids=str
)
def test_a_traversal_moves_one_unit_and_passes_through_the_example(kind: str, options: dict[str, str]) -> None:
    model, one = made(kind, **options), examples(1)
    z = model.encode(one.x, one.label).z
    at = z.flatten(2).mean(2)[0] if z.dim() > 2 else z[0]
    statistics = LatentStatistics(at.detach(), torch.ones(3), None)  # as if the example were the mean of all
    rows = traverse_rows(model, one, statistics, [2, 0], steps=5)
    assert rows.shape == (2, 5, 1, 8, 8)
    for row in rows:
        assert torch.allclose(row[2], model.reconstruct(one.x, one.label)[0], atol=1e-2)
        assert not torch.equal(row[0], row[4])


def test_units_are_surveyed_as_the_examples_use_them() -> None:
    data = tessella.open_data("digits")
    model = made(schema=data.schema)
    statistics = latent_statistics(model, data.split("test"))
    assert statistics.rate is not None
    assert statistics.order == sorted(range(3), key=lambda j: -float(statistics.rate[j]))
    assert latent_statistics(model, data.split("test")).mean.equal(statistics.mean)
    straight = latent_statistics(made("AE", data.schema), data.split("test"))
    assert straight.rate is None
    assert straight.order == torch.argsort(straight.deviation, descending=True).tolist()


def test_a_grid_has_a_unit_for_each_channel() -> None:
    data = tessella.open_data("digits")
    model = made(schema=data.schema, latent_layout="grid")
    statistics = latent_statistics(model, data.split("valid"))
    assert statistics.mean.shape == statistics.deviation.shape == (3,)
    assert statistics.rate is not None
    assert statistics.rate.shape == (3,)


def test_reconstructions_stand_below_what_they_are_of() -> None:
    model, batch = made(), examples(5)
    rows = reconstruct_rows(model, batch, columns=3)
    assert rows.shape == (4, 3, 1, 8, 8)
    assert torch.equal(torch.cat([rows[0], rows[2]])[:5], batch.x.float())
    assert torch.allclose(torch.cat([rows[1], rows[3]])[:5], model.reconstruct(batch.x), atol=1e-2)
    assert rows[2:, 2].isnan().all()


def test_samples_follow_the_seed_and_not_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made()
    drawn = sample_rows(model, 12, seed=3)
    assert drawn.shape == (3, 4, 1, 8, 8)
    assert torch.equal(drawn, sample_rows(model, 12, seed=3))
    assert not torch.equal(drawn, sample_rows(model, 12, seed=4))
    monkeypatch.setattr(samples, "CHUNK", 4)
    passes = sample_rows(model, 12, seed=3).flatten(0, 1)
    assert len(passes) == 12
    assert not torch.equal(passes[:4], passes[4:8])


def test_a_conditional_model_draws_a_row_for_each_class() -> None:
    model = made("CVAE")
    assert sample_rows(model, 12).shape == (3, 4, 1, 8, 8)
    assert sample_rows(model, 2).flatten(0, 1).shape == (2, 1, 8, 8)
    assert sample_rows(model, 4, label=1).shape == (2, 2, 1, 8, 8)


@pytest.mark.parametrize(
    ("kind", "options", "code"),
    [
        ("AE", {"count": 4}, "no-prior"),
        ("VAE", {"count": 4, "label": 1}, "unconditional"),
        ("VAE", {"count": 0}, "out-of-range"),
        ("VAE", {"count": 4, "sampling": Sampling(top_k=3)}, "no-codes"),
    ],
)
def test_what_cannot_be_sampled_is_refused(kind: str, options: dict[str, float], code: str) -> None:
    with raises(code):
        sample_rows(made(kind), **options)  # pyright: ignore[reportArgumentType]
