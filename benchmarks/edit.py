"""How far an edit reaches, how long drawing a region anew takes, and whether neighbours are of one class.

    python benchmarks/edit.py --data FOLDER --codes NAME=RUN ... --vae NAME=RUN ... [--pictures 200]

Locality: for each run, codes (or latents) of a rectangle of half the height and width at a random place are pasted from
another test picture, and the two drawings are compared. A position of the grid is edited if half its cell lies in the
rectangle; the share of the squared change is told outside the rectangle, outside those cells, and beyond the reach of
what was edited. A VAE's whole picture depends on its one vector.

Timing: random weights, a grid of 32 x 32 codes, the default masked prior; a quarter of the grid, 8 variants.

Search: the share of the ten nearest training pictures that are of the same class as a test picture.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import common
import tessella
from tessella.bottlenecks import EMAQuantizer
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.data.inputs import NamedBatch
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.priors import MaskedTransformer
from tessella.tasks.edit.editing import box, edit_example, receptive_field
from tessella.tasks.edit.operations import Inpaint, Paste
from tessella.tasks.search.features import features as features_of
from tessella.tasks.search.index_file import Index, nearest, read_index, write_index
from tessella.training import checkpoint
from tessella.training.run import Run, load

SEED, QUERIES, MANY = 0, 1000, 60_000


def opened(run: str, data: Path) -> tuple[Model, tessella.data.Data]:  # pyright: ignore
    spec = checkpoint.read_spec(run)
    model = spec.build()
    load(run, into=model, prior="uniform" if isinstance(model, CodeModel) else None)
    return model.eval(), Run(run).own_data(str(data / Path(str(spec.data["spec"])).name))


def locality(run: str, data: Path, count: int) -> common.Record:
    """Shares of the squared change, over `count` test pictures with one of the others pasted into each."""
    model, of = opened(run, data)
    x = of.split("test").batch(range(min(2 * count, len(of.split("test"))))).x
    height, width = x.shape[2:]
    places = Noise(SEED, stream="places").uniform(count, 2)
    shares: dict[str, list[float]] = {"region": [], "cells": [], "reach": []}
    covered: list[float] = []
    for n in range(count):
        top, left = (int(places[n, k] * (side - side // 2 + 1)) for k, side in enumerate((height, width)))
        region = box((left, top, width // 2, height // 2), (height, width))
        edited = edit_example(model, x[n], region, Paste(x[(n + len(x) // 2) % len(x)]))
        for where, found in shares.items():
            found.append(float(edited.share_outside(getattr(edited, where))))
        covered.append(float(edited.reach.float().mean()))
        if n % 50 == 49:
            common.say(f"{run}: {n + 1} of {count}")
    levels = range(len(model.levels)) if isinstance(model, CodeModel) else (0,)
    return {
        "model": model.name,
        "data": Path(of.spec).name,
        "picture": [height, width],
        "codes": [list(s) for s in model.code_shapes] if isinstance(model, CodeModel) else None,
        "pictures": count,
        "receptive_field": [receptive_field(model, level) for level in levels],
        "reach_share_of_picture": statistics.mean(covered),
        **{
            f"outside_{where}": {"mean": statistics.mean(s), "median": statistics.median(s), "max": max(s)}
            for where, s in shares.items()
        },
    }


def resampling(rounds: int) -> common.Record:
    """Seconds to draw a quarter of 32 x 32 codes anew, 8 variants, decoding and all."""
    torch.manual_seed(SEED)
    model = tessella.VQVAE(
        Schema.of((3, 96, 96), "uint8"), grid_size=32, width=32, depth=2, quantizer=EMAQuantizer(codebook_size=512)
    ).eval()
    (shape,) = model.prior_shapes
    if shape[1:] != (32, 32):
        model = tessella.VQVAE(
            Schema.of((3, 128, 128), "uint8"),
            grid_size=32,
            width=32,
            depth=2,
            quantizer=EMAQuantizer(codebook_size=512),
        ).eval()
        (shape,) = model.prior_shapes
    assert shape[1:] == (32, 32), shape
    model.set_prior([MaskedTransformer().build(shape, 512).eval()])
    side = model.schema.shape[1]
    x = torch.randint(0, 256, (3, side, side), generator=torch.Generator().manual_seed(SEED)).to(torch.uint8)
    region = box((side // 4, side // 4, side // 2, side // 2), (side, side))
    wall, processor = [], []
    for seed in range(rounds + 1):
        started, used = time.perf_counter(), time.process_time()
        found = edit_example(model, x, region, Inpaint(8), seed=seed)
        wall.append(time.perf_counter() - started)
        processor.append(time.process_time() - used)
    assert int(found.levels[0].chosen.sum()) == 256
    return {
        "grid": shape,
        "positions": 256,
        "variants": 8,
        "parameters": sum(p.numel() for p in model.priors.parameters()),
        "seconds": statistics.median(wall[1:]),
        "fastest": min(wall[1:]),
        "processor_seconds": statistics.median(processor[1:]),
    }


def neighbours(run: str, data: Path, most: int) -> common.Record:
    """Precision at ten, in latent space, in the space of codes, and of pixels as they are."""
    model, of = opened(run, data)
    train, test = of.split("train"), of.split("test")
    assert train.labels is not None
    count = min(most, len(train))
    rows = range(0, count, 100)

    def batches() -> Iterator[NamedBatch]:
        for first in rows:
            some = range(first, min(first + 100, count))
            yield NamedBatch([str(n) for n in some], train.batch(some), [None] * len(some))

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        write_index(path := Path(folder, "index.safetensors"), model, batches(), "")
        index = read_index(path, model, "")
    made = time.perf_counter() - started
    queries = test.batch(range(QUERIES))
    features = {name: [] for name in index.features}
    for some in queries.x.split(100):
        for name, found in features_of(model, some).items():
            features[name].append(found)
    asked = {name: torch.cat(parts) for name, parts in features.items()}
    labels = torch.from_numpy(train.labels)
    found = {name: _precision(nearest(index, asked, 10, name).rows, labels, queries.label) for name in index.features}
    many = Index("", ("",) * MANY, {n: r[torch.arange(MANY) % count] for n, r in index.features.items()},
                        index.scale, {}, ())  # fmt: skip
    started = time.perf_counter()
    nearest(many, {name: rows[:1] for name, rows in asked.items()}, 10)
    one = time.perf_counter() - started
    plain = torch.cat(
        [train.batch(range(f, min(f + 1000, len(train)))).x.flatten(1) for f in range(0, len(train), 1000)]
    )
    raw = Index("", index.names, {"latent": plain.half()}, torch.ones(plain.shape[1]), {}, index.thumbs)
    pixels = nearest(raw, {"latent": queries.x.flatten(1).half()}, 10).rows
    return {
        "model": model.name,
        "examples": len(index),
        "queries": QUERIES,
        "numbers": {name: rows.shape[1] for name, rows in index.features.items()},
        "precision_at_10": {**found, "pixels": _precision(pixels, labels, queries.label)},
        "seconds_to_index": made,
        "seconds_a_query_of_60000": one,
    }


def _precision(rows: torch.Tensor, labels: torch.Tensor, asked: torch.Tensor | None) -> float:
    assert asked is not None
    return float((labels[rows] == asked[:, None]).float().mean())


def measured(chosen: argparse.Namespace) -> common.Record:
    """The record of all that is asked for."""
    of_codes, of_vaes, found = dict(chosen.codes), dict(chosen.vae), dict(chosen.search)
    local = {name: locality(run, chosen.data, chosen.pictures) for name, run in (of_codes | of_vaes).items()}
    rows = []
    for name in of_codes:
        share = local[name]
        about = f"editing a quarter of a picture, {name}: share of the squared change"
        rows += [
            common.row(f"{about} beyond the receptive field", 0.0, share["outside_reach"]["max"], better="lower"),
            common.row(f"{about} outside the edited cells", 0.1, share["outside_cells"]["mean"], better="lower"),
            common.row(f"{about} outside the pixels asked for", 0.1, share["outside_region"]["mean"], better="lower"),
        ]
    taken = resampling(chosen.rounds)
    claim = "drawing a quarter of 32 x 32 codes anew, 8 variants, after loading"
    rows.append(common.row(claim, 3.0, taken["seconds"], unit=" s", better="lower"))
    return {
        "about": "how far an edit reaches; seconds to draw a region anew; classes of neighbours",
        "rows": rows,
        "locality": local,
        "resampling": taken,
        "search": {name: neighbours(run, chosen.data, chosen.examples) for name, run in found.items()},
        "environment": common.environment(),
    }


def _named(text: str) -> tuple[str, str]:
    name, _, run = text.partition("=")
    return name, run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--codes", type=_named, nargs="*", default=[], help="NAME=RUN, models of codes")
    parser.add_argument("--vae", type=_named, nargs="*", default=[], help="NAME=RUN, models to compare with")
    parser.add_argument("--search", type=_named, nargs="*", default=[], help="NAME=RUN, models to search with")
    parser.add_argument("--pictures", type=int, default=200, help="of each locality")
    parser.add_argument("--examples", type=int, default=60_000, help="of the training split, at most, to search in")
    parser.add_argument("--rounds", type=int, default=3, help="of the timing")
    record = measured(parser.parse_args())
    common.write("edit", record)
    common.show(record)


if __name__ == "__main__":
    main()
