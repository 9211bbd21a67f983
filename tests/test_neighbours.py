"""An example's number does not depend on its neighbours: alone, among others, in any order, bit for bit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import tessella
from making import make
from tessella.cli import main
from tessella.coding import codes_file
from tessella.core import batches
from tessella.core.batches import Batch
from tessella.core.rng import example_keys
from tessella.core.schema import Real, Schema
from tessella.core.tensors import read_tensors
from tessella.data.inputs import NamedBatch
from tessella.data.raw import RawSplit
from tessella.data.splits import PartSplit, Split
from tessella.evaluation import bounds
from tessella.foundation import registry
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.priors import MaskedTransformer
from tessella.priors.autoregressive import PixelCNNModule
from tessella.priors.masked import MaskedTransformerModule
from tessella.tasks.detect.detector import Detector, available
from tessella.tasks.search.features import features
from tessella.tasks.search.index_file import nearest, read_index, write_index

PICTURES = Schema.of((3, 9, 7), "uint8", classes=("a", "b"))
VECTORS = Schema.of((5,), Real(-3.0, 3.0), (0.0,), (1.0,))
COUNT = 20


def examples(schema: Schema, count: int = COUNT) -> Batch:
    generator = np.random.default_rng(0)
    label = torch.from_numpy(generator.integers(0, 2, count)) if schema.classes else None
    if schema.values.name == "real":
        return Batch(torch.from_numpy(generator.normal(size=(count, *schema.shape)).astype(np.float32)), label)
    return Batch(torch.from_numpy(generator.integers(0, 256, (count, *schema.shape)).astype(np.uint8)), label)


def made(name: str, schema: Schema) -> Model:
    """With weights that are not zero anywhere, so that all of it speaks."""
    torch.manual_seed(0)
    options = {"width": 8, "depth": 1}
    options |= {"flow_steps": 2, "dequantization": "variational"} if name == "flow" and schema.rank == 2 else {}
    model = make(name, schema, **options).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    if isinstance(model, CodeModel) and name == "vqvae" and schema.rank == 2:
        level = model.levels[0]
        model.set_prior([MaskedTransformer(width=16, depth=1).build(model.prior_shapes[0], level.codebook_size).eval()])
    return model


def of_rows(batch: Batch, rows: list[int] | Tensor) -> Batch:
    return Batch(batch.x[rows], None if batch.label is None else batch.label[rows])


def split(batch: Batch, rows: np.ndarray) -> Split:
    keys = example_keys(batch.x).numpy().view(np.uint64)
    return PartSplit(RawSplit(batch.x.numpy(), None if batch.label is None else batch.label.numpy(), keys), rows)


CASES = [(n, s) for n in registry.names("model") for s in (PICTURES, VECTORS)]
CASES = [(n, s) for n, s in CASES if s.rank == 2 or n not in ("cvae", "cvqvae", "vqvae2")]


@pytest.mark.parametrize(("name", "schema"), CASES, ids=lambda of: of if isinstance(of, str) else of.values)
def test_scores_evaluations_and_codes_are_the_examples_own(name: str, schema: Schema, monkeypatch) -> None:
    monkeypatch.setattr(batches, "MOST", 8)
    model, batch = made(name, schema), examples(schema)
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(1))
    detector = Detector(model, [s.name for s in available(model) if not s.needs_fit], steps=2)
    whole = detector.score(batch)
    for rows in (order, [3], [19, 3], list(range(1, 15))):
        part = detector.score(of_rows(batch, rows))
        for score, values in part.items():
            assert np.array_equal(values, whole[score][rows]), (score, rows)
    draws = 3 if model.has_bound else 0
    each = [measured(model, batch, [row], draws) for row in range(6)]
    mean = np.mean([list(numbers.values()) for numbers in each], 0)
    for rows in ([5, 2, 0, 1, 4, 3], [0, 1, 2, 3, 4, 5]):
        assert list(measured(model, batch, rows, draws).values()) == pytest.approx(mean.tolist(), rel=1e-12)
    if isinstance(model, CodeModel):
        codes = codes_file.codes_of(model, batch.x)
        for rows in (order, [3], [19, 3]):
            for level, kept in zip(codes_file.codes_of(model, batch.x[rows]), codes, strict=True):
                assert torch.equal(level, kept[rows])
    if not model.conditional and name != "cvae":
        whole_features = features(model, batch.x)
        for space, kept in features(model, batch.x[order]).items():
            assert torch.equal(kept, whole_features[space][order])
        for space, kept in features(model, batch.x[3:4]).items():
            assert torch.equal(kept, whole_features[space][3:4])


def measured(model: Model, batch: Batch, rows: list[int], draws: int) -> dict[str, float]:
    e = bounds.evaluate(model, split(batch, np.array(rows)), importance_samples=draws, collapse_examples=0)
    found = {"distortion": e.distortion, "mse": e.mse, "rate": e.rate}
    found |= {} if e.importance_bound is None else {"weighted": e.importance_bound.nats}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize("prior", ["masked", "pixelcnn"])
def test_the_price_of_codes_is_the_examples_own(prior: str) -> None:
    torch.manual_seed(0)
    software_versions = {"masked": MaskedTransformerModule, "pixelcnn": PixelCNNModule}[prior]
    network = software_versions((2, 4, 3), 16, width=16, depth=1).eval()
    codes = torch.randint(0, 16, (32, 2, 4, 3), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = network(codes)
        for row in (0, 5, 31):
            among = codes.roll(3, 0).clone()
            among[row] = codes[7]
            assert torch.equal(network(among)[row], whole[7])


# from the command line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pictures of several kinds of file, one of them much larger than the model's."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(30):
        size = (90, 120) if number == 7 else (8, 8)
        low = generator.integers(0, 256, (3, 3), dtype=np.uint8)
        image = Image.fromarray(low).resize(size[::-1], Image.Resampling.BICUBIC)
        image.save(folder / f"{number:02}{'.jpg' if number % 2 else '.png'}")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "vq"
    words = ["train", "vqvae", "--data", "digits", "--out", str(run), "--steps", "3", "--width", "8", "--quiet"]
    assert main([*words, "--batch-size", "8"]) == 0
    return run


def test_a_file_alone_has_the_numbers_that_it_has_in_a_folder(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def scores(*inputs: Path) -> dict[str, dict[str, str]]:
        out = tmp_path / f"scores-{len(list(tmp_path.iterdir()))}"
        assert main(["detect", str(run), *map(str, inputs), "-o", str(out), "--steps", "2"]) == 0
        with (out / "scores.csv").open(newline="") as file:
            table = {row["name"]: row for row in csv.DictReader(file)}
        told = json.loads((out / "scores.json").read_text())
        assert [one["name"] for one in told["examples"]] == list(table)
        return table

    whole = scores(folder)
    assert len(whole) == 30
    for number in (6, 7):
        (file,) = folder.glob(f"{number:02}.*")
        (alone,) = scores(file).values()
        assert alone == whole[str(file)]
    codes = {}
    for name, given in (("whole", folder), ("alone", next(folder.glob("07.*")))):
        assert main(["encode", str(run), str(given), "-o", str(tmp_path / f"{name}.npz")]) == 0
        kept = codes_file.read_codes(str(tmp_path / f"{name}.npz"))
        codes[name] = dict(zip(kept.names, kept.levels[0], strict=True))
    assert np.array_equal(codes["alone"]["07"], codes["whole"]["07"])
    capsys.readouterr()
    measured = []
    for given in (folder, folder / "again"):  # a part of it, in another place
        if given.name == "again":
            given.mkdir()
            for number in (0, 2, 4):
                (given / f"{9 - number}.png").write_bytes((folder / f"{number:02}.png").read_bytes())
        assert main(["encode", str(run), str(given), "-o", str(tmp_path / "c.npz")]) == 0
        measured.append(codes_file.read_codes(str(tmp_path / "c.npz")))
    for number in (0, 2, 4):
        place, before = measured[1].names.index(str(9 - number)), measured[0].names.index(f"{number:02}")
        assert np.array_equal(measured[1].levels[0][place], measured[0].levels[0][before])


def test_an_index_is_the_same_whatever_the_batches(run: Path, tmp_path: Path) -> None:
    model, x = tessella.load(run), examples(Schema.of((1, 8, 8), "uint8")).x
    names = [f"{i}" for i in range(COUNT)]
    for size in (9, COUNT):
        parts = [NamedBatch(names[i : i + size], Batch(x[i : i + size]), ()) for i in range(0, COUNT, size)]
        assert write_index(tmp_path / f"{size}.safetensors", model, parts, "f" * 12) == COUNT
    states = [read_tensors(tmp_path / f"{size}.safetensors") for size in (9, COUNT)]  # its checksum is right
    assert states[0].progress == states[1].progress
    assert states[0].tensors.keys() == states[1].tensors.keys()
    for name, tensor in states[0].tensors.items():
        assert tensor.dtype == states[1].tensors[name].dtype
        assert torch.equal(tensor, states[1].tensors[name]), name
    assert len(list(tmp_path.iterdir())) == 2, "nothing is left behind"
    again = read_index(tmp_path / "9.safetensors", model, "f" * 12)
    asked = features(model, x)
    several = nearest(again, asked, 3)
    alone = nearest(again, {space: rows[4:5] for space, rows in asked.items()}, 3)
    assert torch.equal(alone.distances[0], several.distances[4])
    assert torch.equal(alone.rows[0], several.rows[4])
