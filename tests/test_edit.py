"""Laws of editing: what stays stays to the bit, what changes lies within reach, and what cannot be is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tessella
from expect import raises
from making import make
from tessella.bottlenecks import EMAQuantizer
from tessella.cli import main
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Real, Schema
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.priors import Uniform
from tessella.priors.autoregressive import CausalTransformerModule, PixelCNNModule
from tessella.priors.masked import MaskedTransformerModule
from tessella.tasks.edit.editing import box, edit_example, read_mask, receptive_field
from tessella.tasks.edit.operations import Blend, Inpaint, Operation, Paste, SetCode
from tessella.tasks.edit.result import Edited

TINY = {"width": 8, "depth": 1}
MODELS = {
    "codes": ("VQVAE", Schema.of((3, 40, 36), "uint8"), {"grid_size": 12, "codebook_size": 12}),
    "codes and alpha": ("VQVAE", Schema.of((4, 40, 36), "uint8"), {"grid_size": 12, "codebook_size": 12}),
    "scalars": ("VQVAE", Schema.of((1, 41, 37), "uint8"), {"grid_size": 12, "quantizer": "fsq", "codebook_size": 15}),
    "bits": ("VQVAE", Schema.of((1, 40, 40), "binary"), {"grid_size": 12, "codebook_size": 12}),
    "two levels": ("VQVAE2", Schema.of((1, 54, 50), "uint8"), {"grid_size": 16, "codebook_size": 12}),
    "three levels": ("VQVAE2", Schema.of((1, 60, 60), "uint8"), {"grid_size": 16, "levels": 3, "codebook_size": 12}),
    "pixel by pixel": (
        "VQVAE",
        Schema.of((1, 18, 16), "uint8"),
        {"grid_size": 8, "codebook_size": 12, "likelihood": "autoregressive", "pixel_width": 8, "pixel_depth": 1},
    ),
    "vector": ("VAE", Schema.of((1, 16, 16), "uint8"), {"latent_dim": 5}),
    "grid": ("VAE", Schema.of((1, 64, 64), "uint8"), {"latent_dim": 3, "latent_layout": "grid"}),
}  # fmt: skip
OF_CODES = [name for name in MODELS if name not in ("vector", "grid")]


def made(name: str = "codes") -> Model:
    kind, schema, options = MODELS[name]
    torch.manual_seed(0)
    model: Model = make(getattr(tessella, kind), schema, **{**TINY, **options})
    model(examples(model, 24))  # in training mode codebooks start from data
    for parameter in model.parameters():  # fresh decoders hardly look at z
        parameter.data += (0.3 if "pixel" in name else 0.15) * torch.randn_like(parameter)
    return model.eval()


def examples(model: Model, count: int, size: tuple[int, int] | None = None) -> Tensor:
    shape = (count, model.schema.shape[0], *(size or model.schema.shape[1:]))
    return torch.randint(0, int(model.schema.values.high) + 1, shape, generator=torch.Generator().manual_seed(1)).byte()


def region_of(model: Model) -> Tensor:
    height, width = model.schema.shape[1:]
    return box((3, 2, width // 3, height // 3), (height, width))


def edited(name: str = "codes", operation: Operation | None = None, **options) -> tuple[CodeModel, Edited]:
    model = made(name)
    a, b = examples(model, 2)
    found = edit_example(model, a, region_of(model), operation or Paste(b), **options)
    return model, found  # pyright: ignore[reportReturnType]


# what stays


@pytest.mark.parametrize("name", OF_CODES)
def test_codes_outside_stay_and_pixels_beyond_reach_too(name: str) -> None:
    model, found = edited(name)
    a, b = model.encode(examples(model, 2)).codes, found.levels
    for codes, level in zip(a, b, strict=True):
        assert torch.equal(level.before, codes[0])
        assert torch.equal(level.after[0], torch.where(level.chosen, codes[1], codes[0]))
    changed = (found.after[0] != found.before).any(0)
    assert changed[found.cells].any()
    assert not (changed & ~found.reach).any()
    assert float(found.share_outside(found.reach)) == 0
    for level in found.levels:  # a region is rounded to cells
        share = torch.nn.functional.avg_pool2d(found.region.float()[None], level.cell, ceil_mode=True)[0]
        assert torch.equal(level.chosen, share >= 0.5)
    assert (found.reach | ~found.cells).all()


@pytest.mark.parametrize("name", ["codes", "scalars", "two levels", "three levels"])
def test_reach_is_what_a_change_reaches_and_no_more(name: str) -> None:
    """Large random changes of the vectors move every pixel within reach, so that it is no mere upper bound."""
    model, found = edited(name)
    assert not found.reach.all()
    z, moved = model.lookup([v.before[None] for v in found.levels]), []
    for seed in range(3):
        other = z.clone()
        first = 0
        for level, quantizer in zip(found.levels, model.levels, strict=True):
            width, times = quantizer.latent_shape[0], level.cell // found.levels[-1].cell
            spread = level.chosen.repeat_interleave(times, 0).repeat_interleave(times, 1)[: z.shape[2], : z.shape[3]]
            noise = 30 * torch.randn(z[:, first : first + width].shape, generator=torch.Generator().manual_seed(seed))
            other[:, first : first + width] += noise * spread
            first += width
        with torch.no_grad():
            moved.append((model.decoder(z, None) != model.decoder(other, None)).any(1)[0])
    height, width = found.reach.shape
    assert torch.equal(torch.stack(moved).any(0)[:height, :width], found.reach)


def test_the_receptive_field_is_that_of_the_layers() -> None:
    plain, two = made("codes"), made("two levels")
    # entry and two convolutions of a block at stride 4, two of a block and the head at stride 2
    assert receptive_field(plain) == (18, 18, 18, 18)
    assert receptive_field(two, 0) == receptive_field(two, 1)
    assert receptive_field(made("vector")) is None


def test_one_level_alone() -> None:
    model, found = edited("two levels", level=0)
    coarse, fine = found.levels
    assert coarse.chosen.any()
    assert not fine.chosen.any()
    assert torch.equal(fine.after[0], fine.before)
    assert {change["level"] for change in found.changed(0)} == {0}
    for level in (2, -1):
        with raises("no-such-level"):
            edit_example(model, examples(model, 1)[0], region_of(model), SetCode(1), level=level)


def test_a_region_smaller_than_half_a_cell_edits_one_code() -> None:
    model = made("two levels")
    one = torch.zeros(54, 50, dtype=torch.bool)
    one[53, 0] = True  # a corner, in a cell that the border cuts off
    found = edit_example(model, examples(model, 1)[0], one, SetCode(3))
    assert [int(level.chosen.sum()) for level in found.levels] == [0, 1]
    assert found.levels[1].chosen[-1, 0]
    assert found.levels[0].cell == 2 * found.levels[1].cell


# operations


def test_pasting_from_a_place_takes_what_is_there() -> None:
    model = made()
    a, b = examples(model, 2)
    region = region_of(model)
    here = edit_example(model, a, region, Paste(b))
    same = edit_example(model, a, region, Paste(b, at=(3, 2)))
    assert torch.equal(here.after, same.after)
    moved = edit_example(model, a, region, Paste(torch.roll(b, (8, 4), (1, 2)), at=(3 + 4, 2 + 8)))
    inner = box((4, 4, 4, 4), region.shape)  # away from the border, where what is repeated plays no part
    level, other = here.levels[0], moved.levels[0]
    assert (level.after == other.after).float().mean() > 0.9
    assert torch.equal(here.cells, moved.cells)
    assert inner.any()
    for at in ((-1, 0), (0, 99), (30, 0)):
        with raises("paste-outside"):
            edit_example(model, a, region, Paste(b, at=at))
    with raises("paste-outside"):
        edit_example(model, a, region, Paste(b[:, :8, :8], at=(0, 0)))
    for operation in (Paste(b[:, :-1]), Blend(b[:, :-1], 0.5)):
        with raises("other-size"):
            edit_example(model, a, region, operation)


@pytest.mark.parametrize("name", ["codes", "scalars", "two levels", "vector", "grid"])
def test_a_blend_goes_from_this_picture_to_the_other(name: str) -> None:
    model = made(name)
    a, b = examples(model, 2)
    ends = [edit_example(model, a, region_of(model), Blend(b, amount)) for amount in (0.0, 1.0)]
    assert torch.equal(ends[0].after[0], ends[0].before)
    assert float(ends[0].share_outside(ends[0].region)) == 0
    torch.testing.assert_close(ends[1].after, edit_example(model, a, region_of(model), Paste(b)).after)
    for amount in (-0.1, 1.1, float("nan")):
        with raises("out-of-range"):
            Blend(b, amount)


def test_a_code_is_set_everywhere_and_must_exist() -> None:
    model, found = edited("scalars", SetCode(14))
    assert (found.levels[0].after[0][:, found.levels[0].chosen] == 14).all()
    for number in (15, -1):
        with raises("no-such-code"):
            edit_example(model, examples(model, 1)[0], region_of(model), SetCode(number))
    with raises("no-codes"):
        edit_example(made("vector"), examples(made("vector"), 1)[0], region_of(made("vector")), SetCode(1))


@pytest.mark.parametrize("kind", [MaskedTransformerModule, PixelCNNModule, CausalTransformerModule])
def test_resampling_draws_from_the_prior_given_all_else(kind: type) -> None:
    model = made("two levels")
    assert isinstance(model, CodeModel)
    torch.manual_seed(0)
    options = {"width": 8, "depth": 1}
    shapes = zip(model.prior_shapes, model.levels, model.context_channels, strict=True)
    model.set_prior([kind(s, q.codebook_size, context_channels=c, **options).eval() for s, q, c in shapes])
    x = examples(model, 1)[0]
    found = edit_example(model, x, region_of(model), Inpaint(3), seed=5)
    for level in found.levels:
        assert torch.equal(level.after[:, :, ~level.chosen], level.before[None][:, :, ~level.chosen].expand(3, -1, -1))
        assert not torch.equal(level.after[0], level.after[1])
    again = edit_example(model, x, region_of(model), Inpaint(3), seed=5)
    assert torch.equal(found.after, again.after)
    assert not torch.equal(found.after, edit_example(model, x, region_of(model), Inpaint(3), seed=6).after)
    likeliest = edit_example(model, x, region_of(model), Inpaint(2, Sampling(temperature=0)))
    if kind is not MaskedTransformerModule:  # whose order is drawn
        assert torch.equal(likeliest.after[0], likeliest.after[1])
    large = examples(model, 1, (90, 80))[0]
    for place in ((0, 0, 20, 20), (30, 44, 20, 20), (60, 70, 20, 20)):  # the prior sees the part around it
        found = edit_example(model, large, box(place, (90, 80)), Inpaint(2), seed=5)
        for level in found.levels:
            kept = ~level.chosen
            assert torch.equal(level.after[..., kept], level.before[..., kept].expand(2, -1, -1))
        assert not torch.equal(found.levels[-1].after[0], found.levels[-1].after[1])
    for place, size in (((0, 0, 60, 9), (90, 80)), ((0, 0, 9, 9), (40, 40))):
        with raises("grid-of-prior"):
            edit_example(model, examples(model, 1, size)[0], box(place, size), Inpaint(1))
    with raises("out-of-range"):
        Inpaint(0)


def test_a_uniform_fill_keeps_what_is_known() -> None:
    prior, grids = Uniform().build((2, 3, 3), 7), torch.arange(18).view(1, 2, 3, 3) % 7
    known = grids % 2 == 0
    drawn = prior.inpaint(grids.expand(50, -1, -1, -1), known.expand(50, -1, -1, -1), Noise(0))
    assert (drawn[:, known[0]] == grids[known]).all()
    assert drawn[:, ~known[0]].unique().tolist() == list(range(7))


@pytest.mark.parametrize("kind", [MaskedTransformerModule, PixelCNNModule, CausalTransformerModule])
@pytest.mark.parametrize("codes", [1, 3])
def test_a_sequential_fill_is_conditional_on_what_is_known(kind: type, codes: int) -> None:
    """Of a prior that all but decides a code by the one before, the fill of a gap follows what stands before it."""
    torch.manual_seed(0)
    prior = kind((codes, 2, 3), 5, width=8, depth=1).eval()
    grids = torch.randint(0, 5, (400, codes, 2, 3), generator=torch.Generator().manual_seed(2))
    known = torch.ones_like(grids, dtype=torch.bool)
    known[:, -1, 1, 2] = False  # the last of all: given everything under every prior
    drawn = prior.inpaint(grids, known, Noise(3))
    assert torch.equal(drawn[known], grids[known])
    with torch.no_grad():
        each = []
        for code in range(5):
            grids[:, -1, 1, 2] = code
            if isinstance(prior, MaskedTransformerModule):
                order = torch.arange(grids[0].numel())
                each.append(prior.log_prob_in_order(grids, order)[:, -1, 1, 2])
            else:
                each.append(prior(grids)[:, -1, 1, 2])
    p = torch.stack(each, 1).exp()
    torch.testing.assert_close(p.sum(1), torch.ones(400))
    expected = p.mean(0)
    share = torch.bincount(drawn[:, -1, 1, 2], minlength=5) / 400
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / 400).sqrt()).all()  # 5 at 4 sigma: 1 in 3000


# pictures of other sizes, pixels that are kept


@pytest.mark.parametrize("size", [(64, 80), (41, 37), (40, 37), (21, 13)])
def test_pictures_of_other_sizes(size: tuple[int, int]) -> None:
    model = made()
    a, b = examples(model, 2, size)
    found = edit_example(model, a, box((2, 3, 5, 6), size), Paste(b))
    assert found.after.shape[2:] == found.reach.shape == size
    assert float(found.share_outside(found.reach)) == 0
    assert float(found.change.sum()) > 0


@pytest.mark.parametrize("name", ["codes", "pixel by pixel", "vector"])
def test_kept_pixels_are_the_pictures_own_and_have_no_seam(name: str) -> None:
    _, found = edited(name, blend_original=True)
    cell = found.levels[0].cell if found.levels else 1
    ring = 2 * cell
    near = torch.nn.functional.max_pool2d(found.region.float()[None], 2 * ring + 1, 1, ring)[0] > 0
    assert not near.all()
    assert torch.equal(found.result[0][:, ~near], found.x.float()[:, ~near])
    # in the region what is drawn, and between them a weight that falls by no more than a step a pixel
    if name != "pixel by pixel":
        torch.testing.assert_close(found.result[0][:, found.region], found.after[0][:, found.region])
        gap = found.after[0] - found.x.float()
        weight = ((found.result[0] - found.x.float()) / gap.where(gap.abs() > 1, torch.nan))[0]
        steps = torch.cat([weight.diff(dim=0).flatten(), weight.diff(dim=1).flatten()])
        steps = steps[~steps.isnan()]
        assert len(steps) > 50
        assert float(steps.abs().max()) <= 1 / (ring + 1) + 1e-3


def test_one_reads_what_changed_and_how_far() -> None:
    _, found = edited("two levels")
    record = json.loads(json.dumps(found.to_json()))
    assert record["region"] == {"x": 3, "y": 2, "width": 16, "height": 18, "pixels": 16 * 18}
    (variant,) = record["variants"]
    rebuilt = [v.before.clone() for v in found.levels]
    for change in variant["codes_changed"]:
        place = change["slot"], change["row"], change["column"]
        assert int(rebuilt[change["level"]][place]) == change["from"] != change["to"]
        rebuilt[change["level"]][place] = change["to"]
    assert all(torch.equal(a, v.after[0]) for a, v in zip(rebuilt, found.levels, strict=True))
    assert variant["share_outside_reach"] == 0 <= variant["share_outside_cells"] <= variant["share_outside_region"] < 1
    outside = (found.after[0] - found.before).double().square().sum(0)[~found.region].sum()
    assert variant["share_outside_region"] == pytest.approx(float(outside / variant["squared_change"]))


def test_a_vae_changes_as_a_whole_and_says_how_far_z_went() -> None:
    model, found = edited("vector")
    assert found.levels == ()
    assert found.reach.all()
    with torch.no_grad():
        a, b = model.encode(examples(model, 2)).z
    assert found.moved is not None
    assert torch.equal(found.after, edited("vector")[1].after)
    assert float(found.moved[0]) == pytest.approx(float((b - a).norm() / a.norm()), rel=1e-4)
    _, of_grid = edited("grid")
    assert not of_grid.reach.all()
    assert float(of_grid.share_outside(of_grid.reach)) == 0
    with raises("no-codes"):
        edited("vector", level=0)


# bad regions


def test_regions_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for bad in ((0, 0, 0, 3), (0, 0, 3, -1)):
        with raises("empty-region"):
            box(bad, (10, 10))
    for bad in ((8, 0, 3, 3), (0, -1, 3, 3), (0, 9, 1, 2)):
        with raises("region-outside"):
            box(bad, (10, 10))
    mask = tmp_path / "mask.png"
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(mask)
    with raises("empty-region"):
        read_mask(str(mask), (10, 12))
    with raises("mask-size"):
        read_mask(str(mask), (12, 12))
    mask.write_bytes(b"no picture")
    with raises("unreadable-mask"):
        read_mask(str(mask), (12, 12))
    model = made()
    x = examples(model, 1)[0]
    with raises("mask-size"):
        edit_example(model, x, torch.ones(10, 10, dtype=torch.bool), SetCode(0))
    with raises("empty-region"):
        edit_example(model, x, torch.zeros(40, 36, dtype=torch.bool), SetCode(0))
    with raises("too-small"):
        edit_example(model, x[:, :2, :9], torch.ones(2, 9, dtype=torch.bool), SetCode(0))
    rows = tessella.VQVAE(
        Schema.of((5,), Real(-3.0, 3.0)), width=8, depth=1, quantizer=EMAQuantizer(codebook_size=8)
    ).eval()
    with raises("no-regions"):
        edit_example(rows, torch.zeros(5), torch.ones(5, 1, dtype=torch.bool), SetCode(0))


# the command


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("edit")
    size = ("--steps", "20", "--batch-size", "32", "--width", "8", "--depth", "1", "--quiet")
    train = ["train", "vqvae", "--data", "digits", *size, "--grid-size", "4", "--codebook-size", "8"]
    assert main([*train, "--out", str(folder / "vq")]) == 0
    enough = ("--steps", "100", *size[2:])  # for a prior that costs less than the uniform one
    assert main(["fit-prior", str(folder / "vq"), "--kind", "pixelcnn", *enough, "--class-conditional"]) == 0
    assert main(["train", "vae", "--data", "digits", *size, "--out", str(folder / "vae")]) == 0
    return folder


def test_an_edit_at_the_command_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, mask = tmp_path / "out", tmp_path / "mask.png"
    painted = np.zeros((8, 8), np.uint8)
    painted[2:5, 4:7] = 255
    Image.fromarray(painted).save(mask)
    command = ["edit", str(runs / "vq"), "3", "-o", str(out)]
    assert main([*command, "--region", "4,2,3,3", "--paste", "7@0,1"]) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(first) == {"edited.png", "sheet.png", "edit.json", "edit.html"}
    assert Image.open(out / "edited.png").size == (8, 8)
    assert main([*command, "--mask", str(mask), "--paste", "7@0,1"]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first
    record = json.loads((out / "edit.json").read_text())
    assert record["files"] == ["edited.png"]
    assert record["variants"][0]["share_outside_reach"] == 0
    assert "lies beyond the reach of the edit" in capsys.readouterr().out
    page = (out / "edit.html").read_text()
    assert "<img" in page
    assert "http" not in page
    assert main([*command, "--region", "0,0,8,4", "--code", "5"]) == 0
    codes = json.loads((out / "edit.json").read_text())["variants"][0]["codes_changed"]
    assert {change["to"] for change in codes} == {5}
    vae = ["edit", str(runs / "vae"), "3", "--region", "0,0,4,4", "-o", str(tmp_path / "vae")]
    assert main([*vae, "--blend", "7", "0.5"]) == 0
    assert main([*vae, "--resample", "-n", "2"]) == 0


def test_resampling_at_the_command_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["edit", str(runs / "vq"), "3", "-o", str(out), "--region", "4,2,3,3", "--resample", "-n", "3"]) == 0
    said = capsys.readouterr()
    assert {"edited-1.png", "edited-3.png"} <= {path.name for path in out.iterdir()}
    assert "only on those before it" in said.err
    assert "--kind masked" in said.err
    assert len(json.loads((out / "edit.json").read_text())["variants"]) == 3
    masked = [
        "fit-prior",
        str(runs / "vq"),
        "--kind",
        "masked",
        "--steps",
        "2",
        "--width",
        "8",
        "--depth",
        "1",
        "--quiet",
    ]
    assert main(masked) == 0
    capsys.readouterr()
    assert main(["edit", str(runs / "vq"), "3", "-o", str(out), "--region", "4,2,3,3", "--resample"]) == 0
    said = capsys.readouterr()
    assert (out / "edited-8.png").is_file()
    assert "raster order" not in said.err


def test_edits_that_cannot_be_are_refused(runs: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    out, picture = tmp_path / "out", tmp_path / "in.png"
    Image.fromarray(np.full((9, 12), 99, np.uint8)).save(picture)
    Image.fromarray(np.full((1, 2), 99, np.uint8)).save(tmp_path / "speck.png")
    where = ("--region", "4,2,3,3")
    cases = [
        ("vq", "3", [*where], "no operation is given"),
        ("vq", "3", [*where, "--code", 1, "--paste", 7], "--paste and --code cannot be combined"),
        ("vq", "3", ["--code", 1], "--region x,y,width,height, --seconds START:END and --mask"),
        ("vq", "3", [*where, "--mask", picture, "--code", 1], "--seconds START:END and --mask"),
        ("vq", "3", ["--region", "4,2,3", "--code", 1], "four integers"),
        ("vq", "3", ["--region", "4,2,30,3", "--code", 1], "which is 8x8 at the model's size"),
        ("vq", "3", ["--region", "4,2,0,3", "--code", 1], "no area"),
        ("vq", "3", ["--mask", picture, "--code", 1], "give a mask of that size"),
        ("vq", "3", ["--seconds", "0.1:0.2", "--code", 1], "--seconds is for sounds"),
        ("vq", "3", ["--seconds", "0.1-0.2", "--code", 1], "such as 0.4:0.9"),
        ("vq", "3", [*where, "--code", 8], "from 0 to 7"),
        ("vq", "3", [*where, "--code", 1, "--level", 1], "there is no level 1"),
        ("vq", "3", [*where, "--code", 1, "-n", 3], "can only be used with --resample"),
        ("vq", "3", [*where, "--resample", "-n", 0], "from 1 to 1000"),
        ("vq", "3", [*where, "--paste", "7@9,9"], "does not lie inside the other example"),
        ("vq", "3", [*where, "--paste", "nowhere.png"], "no such input: nowhere.png"),
        ("vq", "3", [*where, "--blend", "7", "1.5"], "from 0 to 1"),
        ("vq", "3", [*where, "--resample", "--prior", "transformer"], "there are: "),
        ("vq", picture, [*where, "--resample", "--prior", "pixelcnn"], "--label"),
        (
            "vq",
            tmp_path / "speck.png",
            ["--region", "0,0,1,1", "--code", 1, "--native-size"],
            "smaller than the cell of one code",
        ),
        ("vq", picture, [*where, "--blend", tmp_path / "speck.png", 0.5, "--native-size"], "one of the same size"),
        ("vq", "999999", [*where, "--code", 1], "has no example 999999"),
        ("vae", "3", [*where, "--code", 1], "no codes to set"),
        ("vae", "3", [*where, "--paste", 7, "--level", 0], "leave out --level"),
        ("nowhere", "3", [*where, "--code", 1], "not a run"),
    ]
    for run, given, options, says in cases:
        line = refused("edit", runs / run, given, *options, "-o", out)
        assert says in line, (options, line)
        assert not out.exists()
    assert "give a folder" in refused("edit", runs / "vq", "3", *where, "--code", 1, "-o", picture)
