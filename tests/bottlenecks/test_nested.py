"""Nested codes: the first codes of each position serve without the others."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import making
from expect import raises
from tessella.coding import files
from tessella.coding.container import Container
from tessella.coding.weights import Weights
from tessella.core.batches import Batch
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.data.inputs import NamedBatch
from tessella.models.codes import CodeModel

PICTURE = Schema.of((3, 8, 8), "uint8")
SIGNAL = replace(Schema.of((2, 40), "uint8"), lengths=True)
CODES, SIZE = 3, 8


def made(schema: Schema, dropout: float = 1.0) -> CodeModel:
    torch.manual_seed(0)
    options = {"quantizer": "residual", "codes_per_position": CODES, "codebook_size": SIZE, "dropout": dropout}
    model = making.make("vqvae", schema, width=8, depth=1, grid_size=4, likelihood="logistic", **options).train()
    for step in range(4):  # starts the codebooks, each on the residual of those before
        model(examples(schema, 16), noise=Noise(0, step))
    return model.eval()


def examples(schema: Schema, count: int) -> Tensor:
    x = torch.randint(0, 256, (count, *schema.shape), generator=torch.Generator().manual_seed(0))
    if not schema.lengths:
        return x.to(torch.uint8)
    ends = torch.arange(count).view(-1, 1, 1) * 7 % 40 + 1
    return x.float().masked_fill(torch.arange(40) >= ends, torch.nan)


@pytest.mark.parametrize("schema", [PICTURE, SIGNAL])
def test_fewer_codes_cost_less_and_say_less(schema: Schema) -> None:
    model, x, errors = made(schema), examples(schema, 9), []
    whole = model.encode(x).codes[0]
    for count in (1, 2, CODES):
        model.use_codes(count)
        latent, q = model.encode(x), model.levels[0]
        codes = latent.codes[0]
        assert torch.equal(codes[:, :count], whole[:, :count])
        assert (codes[:, count:] == -1).all()
        assert torch.equal(model.lookup(latent.codes), latent.z)
        there = (codes >= 0).flatten(1).sum(1)
        torch.testing.assert_close(model.rate(latent).total, there * math.log(SIZE))
        assert there.sum() == count * (whole[:, 0] >= 0).sum()
        target = q.head(model.features(x)[0].movedim(1, -1)).movedim(-1, 1)
        errors.append(float((target - latent.z).square().masked_fill(whole[:, :1] < 0, 0).sum()))
    assert errors == sorted(errors, reverse=True)
    model.use_codes(None)
    assert torch.equal(model.encode(x).codes[0], whole)


def test_dropout_trains_each_number_of_codes_alike() -> None:
    """Each of 3 numbers has probability 1 / 3: counts of 3,000 examples are within 5 deviations of 1,000."""
    q = made(PICTURE).levels[0].train()
    features = torch.randn(3000, q.head.in_features, 1, 1)  # type: ignore[attr-defined]
    codes = q(features, Noise(1)).posterior.value[..., 0, 0]  # type: ignore[union-attr]
    counts = (codes >= 0).sum(1).bincount(minlength=CODES + 1)
    assert counts[0] == 0
    assert ((counts[1:] - 1000).abs() < 5 * math.sqrt(3000 * 2 / 9)).all()
    assert (made(PICTURE, dropout=0.0).levels[0].train()(features, Noise(1)).posterior.value >= 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize("schema", [PICTURE, SIGNAL])
@pytest.mark.parametrize("lossy", [True, False])
def test_files_hold_the_codes_that_are_used(schema: Schema, lossy: bool, tmp_path: Path) -> None:
    model, x, sizes = made(schema), examples(schema, 6), []
    weights = Weights("run", "0" * 12, "uniform")
    for count in (1, CODES):
        model.use_codes(count)
        named = NamedBatch([f"x-{i}" for i in range(len(x))], Batch(x), [None] * len(x))
        path = str(tmp_path / f"{count}")
        found = files.write_compressed(model, [named], path, weights, lossy=lossy, workers=1)
        sizes.append(found.bound)
        expected = model.reconstruct(x) if lossy else x.float()
        model.use_codes(None)
        for one, original in zip(files.read_compressed(Container(path), model, workers=1), expected, strict=True):
            seen = ~original.isnan().any(0)
            torch.testing.assert_close(one[1].float(), original[:, seen].view_as(one[1]))
    assert sizes[0] < sizes[1] or not lossy


def test_only_nested_codes_are_used_in_part() -> None:
    with raises("codes-used"):
        made(PICTURE).use_codes(CODES + 1)
    with raises("codes-used"):
        making.make("vqvae", PICTURE, width=8, depth=1, codes_per_position=2).use_codes(1)
