"""Compressed files: their length against the bound and against other coders, every value back, speed, and damage.

    python benchmarks/compression.py length RUN [--name NAME --count 1000 --prior KIND]
    python benchmarks/compression.py trips --colour RUN --grey RUN --bits RUN --data FOLDER
    python benchmarks/compression.py damage [--mutations 10000]

Each call renews its part of results/compression.json; `length` is called once a run, and with `--count 0` takes the
whole test split. The bound that a file is held against is not the coder's own: it is the model's, in float32, of the
same pictures. PNG and WebP are of the same pictures, a file each, and of all of them as one strip.
Seconds are the process's own and the clock's; on a machine that does nothing else they agree.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import resource
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import common
import containers
import tessella
from tessella.coding import files
from tessella.coding.container import Container
from tessella.coding.weights import Weights, check
from tessella.core.batches import Batch
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.data.inputs import NamedBatch
from tessella.models.base import Model
from tessella.tasks.compress import BaselineCodecs
from tessella.training import checkpoint
from tessella.training.run import Run, load

NAME, AT_ONCE = "compression", 100
STRIPS = {"PNG": {"optimize": True}, "WEBP": {"lossless": True, "quality": 100, "method": 6}}
WEBP_SIDE = 16383


# length


def length(run: str, count: int, prior: str | None, precision: Any) -> common.Record:
    """A run's file of its first test pictures."""
    model = load(run, prior=prior)
    split = Run(run).data(None, model).split("test")
    x = split.batch(range(min(count or len(split), len(split)))).x
    weights = Weights.of(run, model, prior)
    codecs = BaselineCodecs(model.schema, lossy=False)
    codecs.collect(x)
    with TemporaryDirectory() as folder:
        path = Path(folder, "file")
        named = _named([f"test-{i}" for i in range(len(x))], x)
        result, coding = timed(lambda: files.write_compressed(model, [named], str(path), weights, precision=precision))
        container = Container(str(path))
        check(container, model, weights)
        back, decoding = timed(lambda: [one for _, one in files.read_compressed(container, model)])
    assert torch.equal(torch.stack(back), x), "not what went in"
    bound, numbers = bound_of(model, x) / math.log(2) / 8, x.numel()
    others = {codec.name: codec.bytes for codec in codecs.sizes()}
    return {
        "data": Path(str(checkpoint.read_spec(run).data.get("spec"))).name,
        "stored": model.schema.values,
        "model": f"{model.name}, {type(model.likelihood).__name__}",
        "prior": weights.prior,
        "method": result.method,
        "precision": container.header.precision,
        "examples": len(x),
        "values": numbers,
        "bytes": result.bytes,
        "bits_per_dim": 8 * result.bytes / numbers,
        "bound_bytes": bound,
        "bound_bits_per_dim": 8 * bound / numbers,
        "excess_of_allowed": (result.bytes - bound) / (0.01 * bound + 200),
        "compared": codecs.count,
        "others_bits_per_dim": {name: 8 * size / codecs.numbers for name, size in others.items()}
        | strips(x[: codecs.count], model.schema),
        "compress": coding | {"megabytes_a_second": numbers / 1e6 / coding["process"]},
        "decompress": decoding | {"megabytes_a_second": numbers / 1e6 / decoding["process"]},
    }


def _named(names: list[str], x: Tensor) -> NamedBatch:
    return NamedBatch(names, Batch(x), [None] * len(x))


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    clock, own = time.perf_counter(), time.process_time()
    result = work()
    return result, {"seconds": time.perf_counter() - clock, "process": time.process_time() - own}


@torch.inference_mode()
def bound_of(model: Model, x: Tensor) -> float:
    """The model's own bound of all examples in nats, in float32."""
    total = 0.0
    for number, part in enumerate(x.split(AT_ONCE)):
        bound = model(part, noise=Noise(0, number, "benchmark")).bound
        assert bound is not None
        total += float(bound.double().sum())
    return total


def strips(x: Tensor, schema: Schema) -> dict[str, float]:
    """Bits per dimension of one tall picture of all of them."""
    if schema.rank != 2:
        return {}
    tiles = x.movedim(1, -1).flatten(0, 1).numpy()
    found = {}
    for form, options in STRIPS.items():
        size = 0
        most = WEBP_SIDE // schema.shape[1] * schema.shape[1] if form == "WEBP" else len(tiles)
        for first in range(0, len(tiles), most):
            size += _coded(tiles[first : first + most], schema, form, options)
        found[f"{form.replace('WEBP', 'WebP')}, one strip"] = 8 * size / x.numel()
    return found


def _coded(tile: np.ndarray, schema: Schema, form: str, options: dict[str, Any]) -> int:
    tile = tile[..., 0] if tile.shape[2] == 1 else tile
    image = Image.fromarray(tile * (255 if schema.values.name == "binary" else 1))
    buffer = io.BytesIO()
    (image.convert("1") if schema.values.name == "binary" else image).save(buffer, form, **options)
    return buffer.tell()


# every value back


def trips(colour: str, grey: str, bits: str, data: Path) -> common.Record:
    """1000 pictures of each set, and 200 that no set has."""
    found = {}
    for run, sets in ((colour, ("cifar10", "flowers", "sprites.npz")), (grey, ("mnist.npz", "fashion_mnist.npz"))):
        model = load(run, prior="uniform")
        channels = model.schema.shape[0]
        for name in sets:
            found[name] = trip(model, _pictures(data / name, channels), run)
        found[f"made up, {channels} channels"] = trip(model, _made_up(model.schema), run)
    model = load(bits, prior="uniform")
    split = Run(bits).data(None, model).split("test")
    found["binarised MNIST"] = trip(model, [split.batch(range(1000)).x], bits)
    found["made up, bits"] = trip(model, _made_up(model.schema), bits)
    return found


def trip(model: Model, xs: Iterable[Tensor], run: str) -> common.Record:
    xs = list(xs)
    named = [_named([f"{i}-{j}" for j in range(len(x))], x) for i, x in enumerate(xs)]
    with TemporaryDirectory() as folder:
        path, weights = str(Path(folder, "file")), Weights.of(run, model, "uniform")
        result = files.write_compressed(model, named, path, weights)
        container = Container(path)
        check(container, model, weights)
        back = [one for _, one in files.read_compressed(container, model)]
    originals = [one for x in xs for one in x]
    wrong = sum(not torch.equal(a, b) for a, b in zip(back, originals, strict=True))
    common.say(f"  {len(back)} pictures of {list(xs[0].shape[1:])}, {wrong} wrong")
    return {"pictures": len(back), "wrong": wrong, "bits_per_dim": 8 * result.bytes / result.numbers}


def _pictures(path: Path, channels: int) -> list[Tensor]:
    data = tessella.open_data(str(path), channels=channels)
    split = max(data.splits.values(), key=len)
    return [split.batch(range(first, first + AT_ONCE)).x for first in range(0, 1000, AT_ONCE)]


def _made_up(schema: Schema) -> list[Tensor]:
    """Noise, single values, single pixels, ramps, checkers: of the model's size and of others."""
    top, generator = 2 if schema.values.name == "binary" else 256, torch.Generator().manual_seed(0)
    found = []
    for number in range(50):
        size = schema.shape[1:] if number % 2 else (1 + number, 1 + 3 * number % 50)
        shape = (1, schema.shape[0], *size)
        noise = torch.randint(0, top, shape, generator=generator)
        flat = torch.full(shape, number * 41 % top)
        one = flat.clone()
        one[..., 0, 0] = top - 1 - one[..., 0, 0]
        ramp = torch.arange(noise.numel()).view(shape) * (number + 1) % top
        found += [noise, flat, one, ramp]
    return [x.to(torch.uint8) for x in found]


# damage


def damage(mutations: int) -> common.Record:
    """Mutations of the files of five small models: what came of them, the longest, and the most memory."""
    valid = []
    with TemporaryDirectory() as folder:
        path = Path(folder, "file")
        weights = files.Weights("run", "0" * 12, "uniform")
        for make, schema, options, lossy in (
            (tessella.VQVAE, Schema.of((1, 8, 8), "binary"), {"side": 4, "codebook_size": 8}, False),
            (tessella.VQVAE, Schema.of((3, 16, 16), "uint8"), {"side": 8, "codebook_size": 64}, False),
            (tessella.VQVAE2, Schema.of((1, 9, 10), "uint8"), {"side": 4, "codebook_size": 8}, True),
            (tessella.VAE, Schema.of((1, 8, 8), "binary"), {"latent_dim": 4}, False),
            (tessella.VAE, Schema.of((6,), "uint8"), {"latent_dim": 2}, False),
        ):
            torch.manual_seed(1)
            model = make(schema, width=8, depth=1, **options).eval()
            x = torch.randint(0, 2 if schema.values.name == "binary" else 256, (6, *schema.shape), dtype=torch.uint8)
            parts = [x[:4], x[4:]] if schema.rank == 2 else [x]
            if schema.rank == 2 and not lossy:
                parts.append(x[:1].repeat(1, 1, 2, 3)[..., : schema.shape[1] + 3, :])
            named = [_named([f"a{i}-{j}" for j in range(len(part))], part) for i, part in enumerate(parts)]
            files.write_compressed(model, named, str(path), weights, lossy=lossy, workers=1)
            container = Container(str(path))
            originals = [one for _, one in files.read_compressed(container, model, workers=1)]
            valid.append((path.read_bytes(), model, originals))
        rng, outcomes, longest = np.random.default_rng(0), {"refused": 0, "same": 0}, 0.0
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(mutations):
            data, model, originals = valid[number % len(valid)]
            path.write_bytes(containers.mutated(data, [v[0] for v in valid], rng))
            started = time.process_time()
            outcomes[containers.judged(path, model, weights, originals)] += 1
            longest = max(longest, time.process_time() - started)
            if number % 1000 == 999:
                common.say(f"  {number + 1} mutations: {outcomes}, {longest:.2f} s the longest")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "mutations": mutations,
        **outcomes,
        "wrong": 0,
        "longest_seconds": longest,
        "mebibytes": most / 1024,
        "mebibytes_before": before / 1024,
    }


# the record


def rows(record: common.Record) -> list[common.Record]:
    found = []
    for name, r in record.get("runs", {}).items():
        many = f"{name}, {r['examples']:,} test pictures"
        sequential = r["prior"] != "uniform" or "Autoregressive" in r["model"]
        if sequential:
            claim = f"{many}: file beyond the bound / what is allowed, 1 % + 200 bytes"
            found.append(common.row(claim, 1, r["excess_of_allowed"], better="lower"))
            if "cifar" in r["data"]:
                for other, size in r["others_bits_per_dim"].items():
                    found.append(common.row(f"{many}: file / {other}", 1, r["bits_per_dim"] / size, better="lower"))
                found.append(common.row(f"{many}: file", 4.2, r["bits_per_dim"], unit=" bits/dim", better="lower"))
            if (r["data"], r["stored"]) == ("mnist.npz", "bytes"):
                found.append(common.row(f"{many}: file", 1.29, r["bits_per_dim"], unit=" bits/dim", better="lower"))
        else:  # nothing is told one after the other: what the bar of speed is for
            for way in ("compress", "decompress"):
                speed = r[way]["megabytes_a_second"]
                claim = f"{name}, {way}: raw pixels a second of one core (the bar is of two)"
                found.append(common.row(claim, 0.5, speed, unit=" MB/s", better="higher"))
    for name, r in record.get("trips", {}).items():
        claim = f"{name}: pictures of {r['pictures']} that do not come back exactly"
        found.append(common.row(claim, 0, r["wrong"], better="lower"))
    if d := record.get("damage"):
        claim = f"{d['mutations']:,} damaged files: wrong pixels, tracebacks"
        found.append(common.row(claim, 0, d["wrong"], better="lower"))
        found.append(common.row("the longest to refuse one", 10, d["longest_seconds"], unit=" s", better="lower"))
        found.append(common.row("most memory while reading them", 1024, d["mebibytes"], unit=" MiB", better="lower"))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("length")
    one.add_argument("run")
    one.add_argument("--name")
    one.add_argument("--count", type=int, default=1000)
    one.add_argument("--prior")
    one.add_argument("--precision", default="auto")
    all_ = parts.add_parser("trips")
    for name in ("--colour", "--grey", "--bits", "--data"):
        all_.add_argument(name, required=True)
    parts.add_parser("damage").add_argument("--mutations", type=int, default=10_000)
    chosen = parser.parse_args()
    measured: dict[str, Callable[[], common.Record]] = {
        "length": lambda: length(chosen.run, chosen.count, chosen.prior, chosen.precision),
        "trips": lambda: trips(chosen.colour, chosen.grey, chosen.bits, Path(chosen.data)),
        "damage": lambda: damage(chosen.mutations),
    }
    found = measured[chosen.part]()
    path = common.RESULTS / f"{NAME}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if chosen.part == "length":
        record.setdefault("runs", {})[chosen.name or Path(chosen.run).name] = found
    else:
        record[chosen.part] = found
    kept = {part: record[part] for part in ("runs", "trips", "damage") if part in record}
    about = "Compressed files: length against the bound and other coders, round trips, speed, damage."
    final = {"about": about, "rows": rows(kept), **kept, "environment": common.environment()}
    common.write(NAME, final)
    common.show(final)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
