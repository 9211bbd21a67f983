"""Laws of the code atlas: patches lie where they were taken from, means are means, and most used comes first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import tessella
from making import make
from tessella.coding import code_atlas
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.models.codes import CodeModel

SMALL = {"width": 8, "depth": 1, "codebook_size": 16}
GREY = Schema.of((1, 8, 12), "uint8")


def coded_of(
    codes: torch.Tensor, x: torch.Tensor, size: int = 9, schema: Schema = GREY, stride: int = 4
) -> code_atlas.CodedExamples:
    return code_atlas.CodedExamples(schema, x, None, (codes,), (size,), grids=True, strides=(stride,))


@pytest.fixture(scope="module")
def pictures_and_codes() -> code_atlas.CodedExamples:
    """250 pictures of 8 x 12 whose 2 x 3 positions hold two codes each."""
    x = (Noise(0).uniform(250, 1, 8, 12) * 256).to(torch.uint8)
    codes = (Noise(1).uniform(250, 2, 2, 3) ** 2 * 8).long()  # 8 does not occur
    return coded_of(codes, x)


def made(schema: Schema, kind: str = "vqvae", **options: object) -> CodeModel:
    torch.manual_seed(0)
    return make(kind, schema, **{**SMALL, **options}).eval()


def test_a_patch_is_the_picture_at_its_position_and_its_surroundings_around_it(
    pictures_and_codes: code_atlas.CodedExamples,
) -> None:
    coded = pictures_and_codes
    patches = coded.patches(0, slice(0, 5))
    assert patches.shape == (5, 2, 3, 1, 4, 4)
    assert torch.equal(patches[3, 1, 2, 0], coded.x[3, 0, 4:8, 8:12].float())
    around = coded.patches(0, slice(0, 5), margin=2)
    assert torch.equal(around[..., 2:-2, 2:-2], patches)
    assert torch.equal(around[3, 0, 1, 0, 2:], coded.x[3, 0, 0:6, 2:10].float())
    assert torch.equal(around[3, 0, 0, 0, 0], around[3, 0, 0, 0, 2])  # the edge is repeated


@pytest.mark.parametrize(("side", "positions", "stride"), [(28, 7, 4), (25, 7, 4), (17, 3, 8), (8, 8, 1)])
def test_patches_fill_the_picture_at_any_stride(side: int, positions: int, stride: int) -> None:
    x = torch.zeros(2, 1, side, side, dtype=torch.uint8)
    codes = torch.zeros(2, 1, positions, positions, dtype=torch.int64)
    coded = coded_of(codes, x, schema=Schema.of((1, side, side), "uint8"), stride=stride)
    assert coded.patches(0, slice(0, 2)).shape == (2, positions, positions, 1, stride, stride)
    assert code_atlas.patch_reconstruction(coded, slice(0, 1)).shape == (1, 1, side, side)


def test_the_mean_patch_of_a_code_is_the_mean_over_all_its_places(pictures_and_codes: code_atlas.CodedExamples) -> None:
    coded = pictures_and_codes
    means = code_atlas.mean_patches(coded, 0, 1, torch.tensor([5, 8, 0]), margin=1)
    every = coded.patches(0, slice(None), margin=1)
    for mean, code in zip(means, (5, 8, 0), strict=True):
        places = every[coded.codes[0][:, 1] == code]
        expected = places.mean(0) if len(places) else torch.zeros_like(mean)
        assert torch.allclose(mean, expected, atol=1e-3)


def test_an_atlas_has_the_most_used_codes_first_with_places_that_hold_them(
    pictures_and_codes: code_atlas.CodedExamples,
) -> None:
    coded = pictures_and_codes
    patches = code_atlas.atlas(coded, 0, 0, most=20, examples=3)
    codes = coded.codes[0][:, 0]
    assert [p.code for p in patches] == sorted(set(codes.flatten().tolist()), key=lambda k: -int((codes == k).sum()))
    assert sum(p.share for p in patches) == pytest.approx(1)
    every = coded.patches(0, slice(None), margin=2)
    for patch in patches:
        held = every[codes == patch.code]
        assert patch.share == pytest.approx(len(held) / codes.numel())
        assert torch.allclose(patch.mean, held.mean(0), atol=1e-3)
        assert patch.examples.shape == (3, 1, 8, 8)
        assert all((held == one).flatten(1).all(1).any() for one in patch.examples)
    assert len(code_atlas.atlas(coded, most=2)) == 2


def test_a_picture_is_laid_with_the_mean_patches_of_its_codes() -> None:
    """Pictures made of nine patches, one a code, are given back exactly."""
    patches = (Noise(3).uniform(9, 1, 4, 4) * 256).to(torch.uint8)
    codes = (Noise(4).uniform(40, 1, 2, 3) * 9).long()
    x = patches[codes[:, 0]].permute(0, 3, 1, 4, 2, 5).reshape(40, 1, 8, 12)
    coded = coded_of(codes, x)
    assert torch.allclose(code_atlas.patch_reconstruction(coded, slice(3, 9)), x[3:9].float(), atol=1e-3)


@pytest.mark.parametrize(
    "options", [{}, {"codes_per_position": 2}, {"quantizer": "fsq"}, {"quantizer": "lfq"}], ids=str
)
def test_codes_are_seen_as_the_model_says_them(options: dict[str, object]) -> None:
    data = tessella.open_data("digits")
    model = made(data.schema, **options)
    coded = code_atlas.encode_examples(model, data.split("test"), 130)
    with torch.no_grad():
        assert torch.equal(coded.codes[0], model.encode(coded.x).codes[0])
    assert int(coded.used[0].sum()) == coded.codes[0].numel()
    palette = code_atlas.code_colours(model, 0, coded.codes[0].shape[1] - 1)
    assert palette.shape == (16, 3)
    assert len(np.unique(palette, axis=0)) > 8


def test_codes_with_like_vectors_have_like_colours() -> None:
    model = made(GREY, quantizer="fsq", codebook_size=64)
    palette = code_atlas.code_colours(model).astype(float)
    vectors = model.levels[0].lookup(torch.arange(64)[:, None])
    near = torch.cdist(vectors, vectors).fill_diagonal_(9).argmin(1).numpy()
    apart = np.abs(palette[:, None] - palette).sum(-1)
    assert apart[np.arange(64), near].mean() < 0.7 * apart.mean()


def test_vectors_have_patches_that_are_the_whole_example(tmp_path) -> None:
    table = tmp_path / "table.csv"
    rows = Noise(0).normal(80, 5).tolist()
    table.write_text("\n".join(",".join(f"{v:.4f}" for v in row) for row in rows))
    data = tessella.open_data(str(table))
    model = made(data.schema)
    coded = code_atlas.encode_examples(model, data.split("train"))
    patches = code_atlas.atlas(coded)
    assert sum(p.share for p in patches) == pytest.approx(1)
    assert patches[0].mean.shape == (5,)
    assert code_atlas.patch_card(patches[0], coded).width > 50


def test_cells_are_coloured_by_code_and_numbered_where_there_is_room(
    pictures_and_codes: code_atlas.CodedExamples,
) -> None:
    coded = pictures_and_codes
    palette = np.zeros((9, 3), np.uint8)
    code = int(coded.codes[0][0, 0, 1, 2])
    palette[code] = (255, 0, 0)
    small = np.asarray(code_atlas.code_map(coded, 0, palette, side=36)).astype(int)  # 3 pixels a pixel: no room
    large = np.asarray(code_atlas.code_map(coded, 0, palette, side=360)).astype(int)
    grey = np.kron(coded.x[0, 0].numpy(), np.ones((3, 3)))
    red = np.kron((coded.codes[0][0, 0] == code).numpy(), np.ones((12, 12)))
    assert np.abs(small[..., 0] - (code_atlas.TINT * 255 * red + (1 - code_atlas.TINT) * grey)).max() <= 1
    assert np.abs(small[..., 1] - (1 - code_atlas.TINT) * grey).max() <= 1
    assert large.shape == (240, 360, 3)
    assert (large.min(-1) > 150).any()  # digits are written in white


def test_what_codes_cost_colours_the_dearest_most(pictures_and_codes: code_atlas.CodedExamples) -> None:
    nats = torch.tensor([[0.0, 1.0, 2.0], [8.0, 0.0, 0.0]])
    image = np.asarray(code_atlas.rate_map(pictures_and_codes, 0, nats, side=36)).astype(float)
    colour = (image.max(-1) - image.min(-1)).reshape(2, 12, 3, 12).mean((1, 3))
    assert colour[1, 0] > colour[0, 2] > colour[0, 1] > colour[0, 0] == 0


def test_cards_keep_the_patch_and_fade_what_is_around_it(pictures_and_codes: code_atlas.CodedExamples) -> None:
    patch = code_atlas.CodePatch(0, 1.0, torch.full((1, 8, 8), 250.0), torch.zeros(1, 1, 8, 8))
    card = np.asarray(code_atlas.patch_card(patch, pictures_and_codes).convert("RGB"))[..., 0]
    large = np.asarray(Image.fromarray(card[:, : card.shape[0]]).resize((8, 8), Image.Resampling.NEAREST))
    assert (large[2:6, 2:6] == 250).all()
    assert large[0, 0] == round(code_atlas.FADED * 250 + (1 - code_atlas.FADED) * 128)
