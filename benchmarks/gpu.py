"""What a card does: the `gpu` tests, the Triton search against the processor, and the speed of all that runs networks.

One script without network, with the packages that tessella itself needs; the peer of the quantiser is measured where
it is installed. Parts share `--seconds`, each has a share of its own, and what they leave goes to recipes on CIFAR-10,
whose binary version is looked for in `--data` or TESSELLA_DATA (`cifar10`). The record is written after every part, so
that what ends early still tells what it found; a part that fails is recorded with its error.

On the device times are between CUDA events, medians after a warm-up; elsewhere they are of the clock on the wall. The
share of the card's peak is (operations of a step, counted by torch, times steps a second) over the dense bfloat16 peak
of its data sheet, and over what one large bfloat16 product reaches here.

    python benchmarks/gpu.py [--seconds 360] [--data FOLDER] [--out gpu.json]
    python benchmarks/gpu.py --device cpu --tiny --out gpu.json      a rehearsal, in less than two minutes
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

import common
from recipes import RECIPES
from tessella.bottlenecks import EMAQuantizer
from tessella.bottlenecks import nearest as searching
from tessella.coding import codes_file
from tessella.core.batches import Batch
from tessella.core.configs import CodePriorConfig
from tessella.core.device import autocast, describe_device, resolve_device
from tessella.core.outputs import Sampling
from tessella.core.rng import Noise
from tessella.core.schema import Schema
from tessella.data import Split
from tessella.data.inputs import NamedBatch
from tessella.data.raw import RawSplit, index_keys
from tessella.data.splits import PartSplit
from tessella.evaluation.bounds import evaluate
from tessella.models.base import Model
from tessella.models.codes import CodeModel
from tessella.models.spec import ModelConfig, TrainOptions
from tessella.priors import CausalTransformer
from tessella.tasks.detect.detector import Detector
from tessella.training import loop, step
from tessella.training.prior_trainer import CodePriorTrainer, encode_split

SECONDS, TINY_SECONDS = 360.0, 60.0
PEAKS = {"H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
         "4090": 165e12, "3090": 71e12}  # fmt: skip
"""Dense bfloat16 operations a second of the data sheets, by a part of the card's name."""
PRODUCTS, FASTER = 1.5, 4.0
MODELS = ("vae", "vqvae", "flow", "diffusion")
CIFAR = ("cifar10-vae", "cifar10-flow", "cifar10-vqvae", "cifar10-diffusion", "cifar10-autoregressive")
LEAST = 30.0
"""Seconds that a recipe trains at least."""


@dataclass
class Place:
    """Where and how large everything is measured.

    Attributes:
        tiny: everything as small as it can be: a rehearsal.
        until: when all must be done, of `time.monotonic`.
    """

    device: torch.device
    tiny: bool
    data: Path | None
    until: float
    made: dict[Any, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        return self.until - time.monotonic()

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], budget: float, *, warm: int = 3) -> float:
        """The median time of one call, for about `budget` seconds."""
        for _ in range(1 if self.tiny else warm):
            call()
        self.finish()
        ends, taken = time.monotonic() + budget, []
        while len(taken) < (2 if self.tiny else 3) or (time.monotonic() < ends and len(taken) < 1000):
            taken.append(self._once(call))
        return statistics.median(taken)

    def _once(self, call: Callable[[], object]) -> float:
        if self.device.type != "cuda":
            started = time.perf_counter()
            call()
            return time.perf_counter() - started
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        call()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3

    def split(self, side: int) -> Split:
        """Colour pictures of smooth colours and noise."""
        if side not in self.made:
            count, rng = 64 if self.tiny else 4096, np.random.default_rng(side)
            coarse = rng.integers(0, 256, (count, 3, 4, 4)).repeat(side // 4, 2).repeat(side // 4, 3)
            x = np.clip(coarse + rng.normal(0, 12, (count, 3, side, side)), 0, 255).astype(np.uint8)
            part = RawSplit(x, np.arange(count) % 10, index_keys(count, f"gpu {side}"))
            self.made[side] = PartSplit(part, np.arange(count))
        return self.made[side]

    def schema(self, side: int) -> Schema:
        return Schema.of((3, side, side), "uint8", classes=tuple("0123456789"))

    def model(self, name: str, side: int) -> Model:
        """A model of the catalogue with its default options (smallest if tiny), fresh weights."""
        torch.manual_seed(0)
        options: dict[str, Any] = {"width": 8, "depth": 1} if self.tiny else {}
        return ModelConfig.chosen(name).from_options(options).build(self.schema(side)).to(self.device)

    def trained(self, name: str, side: int) -> Model:
        """The same, as `steps` left it."""
        return self.made.get((name, side)) or self.model(name, side).eval()


# parts


def tests(place: Place, budget: float) -> common.Record:
    """The tests that are marked `gpu`."""
    if place.device.type != "cuda" and not place.tiny:
        return {"skipped": "there is no CUDA device"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "-rfEs", "tests"]
    try:
        done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, timeout=budget)
    except subprocess.TimeoutExpired as error:
        told = (error.stdout or b"").decode(errors="replace")
        return {"error": f"took longer than {budget:.0f} seconds", "output": told[-4000:]}
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    return {"status": done.returncode, **counts, "output": "" if done.returncode == 0 else done.stdout[-8000:]}


def search(place: Place, budget: float) -> common.Record:
    """The nearest codes on the device against the processor: how far apart the distances of what they chose are."""
    sizes = [(1, 1, 1, 1), (3, 2, 5, 3), (64, 1, 64, 16), (65, 1, 65, 17), (1000, 3, 200, 70), (4096, 1, 8192, 32)]
    worst, differ, many = 0.0, 0, 0
    for number, (n, groups, codes, dims) in enumerate(sizes[:5] if place.tiny else sizes):
        noise = Noise(number, stream="search")
        for z, table in (
            (noise.normal(n, groups, dims), noise.normal(groups, codes, dims)),
            tuple((3 * noise.normal(*shape)).round() for shape in ((n, groups, dims), (groups, codes, dims))),  # ties
        ):
            there = searching.nearest_codes(z.to(place.device), table.to(place.device)).cpu()
            here = searching.nearest_codes(z, table)
            assert there.min() >= 0, "a code below zero"
            assert there.max() < codes, "a code beyond the table"
            own, best = (_apart(z, table, found) for found in (there, here))
            worst = max(worst, float(((own - best) / (1 + best)).max()))
            differ, many = differ + int((there != here).sum()), many + here.numel()
    wild = torch.full((70, 1, 8), torch.nan, device=place.device)
    assert 0 <= int(searching.nearest_codes(wild, torch.randn(1, 70, 8, device=place.device)).max()) < 70, (
        "NaN leads astray"
    )
    return {
        "triton": searching.TRITON and place.device.type == "cuda",
        "largest_excess": worst,  # of a squared distance over the least, relative
        "codes_that_differ": differ,
        "codes": many,
    }


def _apart(z: Tensor, table: Tensor, codes: Tensor) -> Tensor:
    """Squared distances `[N, G]` to what was chosen, in float64."""
    picked = torch.stack([table[g, codes[:, g]] for g in range(len(table))], 1)
    return (z.double() - picked.double()).square().sum(2)


def quantiser(place: Place, budget: float) -> common.Record:
    """A codebook quantiser in training against a bare product with argmax, and the peer where it is installed."""
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError:
        VectorQuantize = None
    cases = [(8192, 512, 64), (8192, 1024, 64), (16384, 8192, 32), (4096, 16384, 8), (65536, 1024, 64)]
    cases = [(256, 64, 8)] if place.tiny else cases
    each, found = budget / len(cases) / 5, {}
    for n, codes, dims in cases:
        torch.manual_seed(0)
        z, table = (torch.randn(count, dims, device=place.device) for count in (n, codes))
        quantizer = EMAQuantizer(codebook_size=codes, code_dim=dims).build((dims, 1, n // 8)).to(place.device).train()
        quantizer.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        features = z.view(8, 1, n // 8, dims).movedim(3, 1).detach().requires_grad_()
        calls: dict[str, Callable[[], object]] = {
            "quantiser": lambda q=quantizer, f=features: q(f, Noise(0, 1)),
            "search": lambda z=z, t=table: searching.nearest_codes(z[:, None], t[None]),
            "product_and_argmax": lambda z=z, t=table: (z @ t.T).argmax(1),
        }
        if VectorQuantize is not None:
            peer = VectorQuantize(dim=dims, codebook_size=codes, decay=0.99).to(place.device).train()
            rows = z.view(8, -1, dims).detach().requires_grad_()
            calls["peer"] = lambda p=peer, r=rows: p(r)
        ms = {name: 1e3 * place.seconds(call, each) for name, call in calls.items()}
        found[f"N = {n}, K = {codes}, D = {dims}"] = {
            "ms": ms,
            "search_over_product": ms["search"] / ms["product_and_argmax"],
            "quantiser_over_product": ms["quantiser"] / ms["product_and_argmax"],
            "peer_over_quantiser": ms["peer"] / ms["quantiser"] if "peer" in ms else None,
        }
    return {"peer": "measured" if VectorQuantize else "vector-quantize-pytorch is not installed", "cases": found}


def steps(place: Place, budget: float) -> common.Record:
    """The training loop as users run it: examples a second, and the share of the card's bfloat16 peak."""
    sides, batches = ((16,), (16,)) if place.tiny else ((32, 64), (64, 512))
    cases = [(name, side, batch) for side in sides for name in (*MODELS, "transformer") for batch in batches]
    peak, found, ends = _peak(place), {}, time.monotonic() + budget
    for done, (name, side, batch) in enumerate(cases):
        each = max(1.0, (ends - time.monotonic()) / (len(cases) - done))
        try:
            found[f"{name}, {side} x {side}, batch {batch}"] = _step(place, name, side, batch, each, peak)
        except torch.cuda.OutOfMemoryError:
            found[f"{name}, {side} x {side}, batch {batch}"] = {"skipped": "the card's memory"}
            torch.cuda.empty_cache()
    return {"peak": peak, "cases": found}


def _step(place: Place, name: str, side: int, batch: int, budget: float, peak: common.Record) -> common.Record:
    split: Split = place.split(side)
    module: Any
    if name == "transformer":
        model = place.trained("vqvae", side)
        assert isinstance(model, CodeModel)
        split = encode_split(CodePriorTrainer(model), split, "auto")
        torch.manual_seed(0)
        size: dict[str, Any] = {"width": 16, "depth": 1} if place.tiny else {}
        module = CodePriorTrainer(model)
        module.set_prior(model.build_priors(CausalTransformer(**size)))
        module = module.to(place.device)
    else:
        module = place.model(name, side)
    flops = _operations(place, module, split, batch)
    clocked = _Clocked(split)
    if place.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place.device)
    options = TrainOptions(minutes=0.7 * budget / 60, batch_size=batch, device=str(place.device))
    if place.tiny:
        options = TrainOptions(steps=6, batch_size=batch, device=str(place.device))
    loop.fit(module, clocked, options)
    if name == "transformer":
        place.made["transformer", side] = model.eval()
    elif batch == 64 or place.tiny:
        place.made[name, side] = module
    later = clocked.asked[len(clocked.asked) // 2 :]
    seconds = statistics.median(b - a for a, b in pairwise(later))
    rate = None if flops is None else flops / seconds
    return {
        "examples_per_second": batch / seconds,
        "ms_per_step": 1e3 * seconds,
        "steps": len(clocked.asked),
        "gigaflops_per_step": None if flops is None else flops / 1e9,
        "share_of_sheet": rate / peak["sheet"] if rate and peak["sheet"] else None,
        "share_of_product": rate / peak["product"] if rate else None,
        "memory_mib": torch.cuda.max_memory_allocated() / 2**20 if place.device.type == "cuda" else None,
    }


@final
class _Clocked(Split):
    """A split that notes when it is asked for batches: in memory it is asked once a step."""

    def __init__(self, base: Split) -> None:
        self._base, self.asked = base, []
        self.example_ids, self.factors, self.labels = base.example_ids, base.factors, base.labels

    @property
    def in_memory(self) -> bool:
        return True

    def batch(self, indices: Any, noise: Noise | None = None) -> Batch:
        self.asked.append(time.perf_counter())
        return self._base.batch(indices, noise)


def _operations(place: Place, module: Any, split: Split, batch: int) -> float | None:
    """Floating-point operations of a forward and a backward pass, by torch's count of products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    x = split.batch(np.arange(min(batch, len(split)))).x.to(place.device)
    with FlopCounterMode(display=False) as counted, autocast("auto", module.schema, place.device):
        terms = module.train()(x, None, noise=Noise(0))
        step.objective(terms, module.objective, 1.0).backward()
    module.zero_grad(set_to_none=True)
    total = counted.get_total_flops() * batch / len(x)
    return float(total) or None


def _peak(place: Place) -> common.Record:
    """Operations a second in bfloat16: of the data sheet, and of a large product here."""
    name = describe_device(place.device)
    side = 256 if place.tiny else 8192 if place.device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=place.device, dtype=torch.bfloat16) for _ in range(2))
    sheet = next((peak for part, peak in PEAKS.items() if part in name), None)
    return {"card": name, "sheet": sheet, "product": 2 * side**3 / place.seconds(lambda: a @ b, 0.5)}


def sampling(place: Place, budget: float) -> common.Record:
    """Codes a second of priors that draw one after the other with what is kept, and examples a second of models."""
    shape = (1, 4, 4) if place.tiny else (1, 32, 32)
    count, found = (4 if place.tiny else 64), {}
    options: dict[str, Any] = {"width": 16, "depth": 1} if place.tiny else {}
    for kind in ("pixelcnn", "transformer", "masked"):
        torch.manual_seed(0)
        prior = CodePriorConfig.chosen(kind).from_options(options).build(shape, 512).eval().to(place.device)
        with torch.inference_mode():
            seconds = place.seconds(lambda p=prior: p.sample(count, Noise(0)), budget / 8, warm=1)
        found[kind] = {"seconds": seconds, "batch": count, "codes_per_second": count * np.prod(shape).item() / seconds}
    side = 16 if place.tiny else 32
    for name in MODELS:
        model = place.trained(name, side)
        how = Sampling(steps=4 if place.tiny else 50) if name == "diffusion" else None
        seconds = place.seconds(lambda m=model, h=how: m.sample(count, sampling=h), budget / 8, warm=1)
        found[name] = {"seconds": seconds, "batch": count, "examples_per_second": count / seconds, "side": side}
    return found


def uses(place: Place, budget: float) -> common.Record:
    """Evaluation, detection, encoding and decoding: examples a second, beside those of the bare network."""
    side = 16 if place.tiny else 32
    split = place.split(side)
    found: common.Record = {}
    each = budget / 12
    batch = split.batch(np.arange(min(500, len(split))))
    for name in ("vae", "vqvae"):
        model = place.trained(name, side).eval()
        at_once = batch.x.to(place.device)

        @torch.inference_mode()
        def bare(model: Model = model, x: Tensor = at_once) -> Tensor:
            return model(x, noise=Noise(0)).distortion

        detector = Detector(model, ["bound"])
        rates = {
            "bare_network": len(at_once) / place.seconds(bare, each),
            "evaluate": len(split) / place.seconds(lambda m=model: evaluate(m, split), each, warm=1),
            "detect": len(batch.x) / place.seconds(lambda d=detector: d.score(batch), each, warm=1),
        }
        if isinstance(model, CodeModel):
            calls = _coding(model, batch.x)
            rates |= {what: len(batch.x) / place.seconds(call, each, warm=1) for what, call in calls.items()}
        found[name] = {"examples_per_second": rates}
    return found


def _coding(model: CodeModel, x: Tensor) -> dict[str, Callable[[], object]]:
    """What `tessella encode` and `tessella decode` do with these examples."""
    named = NamedBatch([str(number) for number in range(len(x))], Batch(x), [None] * len(x))
    coded = codes_file.encode_codes(model, [named], "")
    return {
        "encode": lambda: codes_file.encode_codes(model, [named], ""),
        "decode": lambda: list(codes_file.decode_codes(model, coded)),
    }


def recipes(place: Place, budget: float) -> common.Record:
    """As many recipes on CIFAR-10 as fit, each with what time there is instead of its own."""
    file = None if place.data is None else place.data / "cifar10"
    if file is None or not file.is_dir():
        where = "no --data and no TESSELLA_DATA" if place.data is None else f"no cifar10 in {place.data.name}"
        return {"skipped": where}
    found: common.Record = {}
    overhead = 25.0  # to start, to read and to evaluate
    for number, name in enumerate(CIFAR):
        waiting = min(len(CIFAR) - number, max(1, int(place.left // (LEAST + overhead))))
        seconds = place.left / waiting - overhead
        if seconds < LEAST:
            found[name] = {"skipped": "no time was left"}
            continue
        found[name] = _recipe(place, name, seconds, file.parent)
    return found


def _recipe(place: Place, name: str, seconds: float, folder: Path) -> common.Record:
    recipe = RECIPES[name]
    share = 2 / 3 if recipe.prior else 1.0
    device = ["--device", str(place.device)]
    with tempfile.TemporaryDirectory() as home:
        run = str(Path(home, "run"))
        words = _for_minutes(recipe.sized.format(data=shlex.quote(str(folder))), seconds * share / 60)
        commands = [["train", *words, "--out", run, "--quiet", *device]]
        if recipe.prior:
            words = _for_minutes(recipe.prior, seconds * (1 - share) / 60)
            commands.append(["fit-prior", run, *words, "--quiet", *device])
        commands.append(["evaluate", run, "--json", *shlex.split(recipe.evaluate), *device])
        said = ""
        for command in commands:
            process = [sys.executable, "-m", "tessella", *command]
            try:
                done = subprocess.run(process, capture_output=True, text=True, timeout=max(5.0, place.left))
            except subprocess.TimeoutExpired:
                return {"error": f"{command[0]} took longer than was left"}
            if done.returncode:
                return {"error": f"{command[0]}: {done.stderr[-2000:]}"}
            said = done.stdout
        evaluation = json.loads(said)
    return {
        "claim": recipe.claim,
        "seconds": seconds,
        "figure": recipe.figure(evaluation),
        "bar": recipe.bar,
        "bits_per_dim": evaluation.get("bits_per_dim"),
        "examples": evaluation.get("examples"),
    }


def _for_minutes(words: str, minutes: float) -> list[str]:
    """A recipe's options with another budget."""
    split = shlex.split(words)
    split[split.index("--minutes") + 1] = f"{minutes:.3f}"
    return split


PARTS: dict[str, tuple[Callable[[Place, float], common.Record], float]] = {
    "tests": (tests, 0.35),
    "search": (search, 0.03),
    "quantiser": (quantiser, 0.06),
    "steps": (steps, 0.27),
    "sampling": (sampling, 0.08),
    "uses": (uses, 0.06),
    "recipes": (recipes, 0.15),
}
"""What is done, in this order, and the share of the time that it may take."""


def rows(record: common.Record) -> list[common.Record]:
    """The lines of the table, of a record that was made on a card."""
    lines = [
        common.row("gpu: tests that fail on a card", 0, _failed(record["tests"]), better="lower"),
        common.row("gpu: squared distance of the code that the Triton search chose / the least, minus 1", 1e-4,
                   record["search"].get("largest_excess"), better="lower"),
    ]  # fmt: skip
    for case, found in record["quantiser"].get("cases", {}).items():
        figure = found["search_over_product"]
        lines.append(common.row(f"gpu: search / bare product and argmax, {case}", PRODUCTS, figure, better="lower"))
        if found["peer_over_quantiser"]:
            claim = f"gpu: vector-quantize-pytorch's time / the quantiser's, {case}"
            lines.append(common.row(claim, FASTER, found["peer_over_quantiser"], better="higher"))
    return lines


def _failed(found: common.Record) -> int | None:
    return found.get("failed", 0) + found.get("error", 0) if "status" in found else None


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda; another is a rehearsal")
    parser.add_argument("--seconds", type=float, default=None, help=f"for all of it; {SECONDS:g} unless given")
    parser.add_argument("--data", type=Path, default=os.environ.get("TESSELLA_DATA"), help="where cifar10 lies")
    parser.add_argument("--out", type=Path, default=None, help="a file for the record, instead of results/gpu.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=tuple(PARTS), help="some of the parts")
    parser.add_argument("--tiny", action="store_true", help="the smallest of everything, to see that it runs")
    chosen = parser.parse_args()
    device = resolve_device(chosen.device)
    if chosen.out is None and (device.type != "cuda" or chosen.tiny or len(chosen.only) < len(PARTS)):
        parser.error("what is not all of it, on a card, is no record of ours: say where to write it with --out")
    seconds = chosen.seconds or (TINY_SECONDS if chosen.tiny else SECONDS)
    started = time.monotonic()
    data = None if chosen.data is None else Path(chosen.data)
    place = Place(device, chosen.tiny, data, started + seconds)
    record: common.Record = {
        "about": "a card: tests, the Triton search against the processor, and the speed of what runs networks",
        "device": describe_device(device),
        "tiny": chosen.tiny,
        "seconds": seconds,
        "rows": [],
        "environment": common.environment(),
    }
    for name in chosen.only:
        part, share = PARTS[name]
        budget = max(1.0, min(place.left, share * seconds))
        common.say(f"== {name}: {budget:.0f} of {place.left:.0f} seconds")
        before = time.monotonic()
        try:
            record[name] = part(place, budget)
        except Exception as error:  # the other parts are worth having without it
            record[name] = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()[-4000:]}
        record[name]["took"] = time.monotonic() - before
        if "error" in record[name]:
            common.say(str(record[name].get("traceback", record[name]["error"])))
        _write(chosen.out, record, done=name == chosen.only[-1])
    return int(any("error" in record[name] for name in chosen.only))


def _write(out: Path | None, record: common.Record, *, done: bool) -> None:
    if out is not None:
        out.write_text(json.dumps(common.rounded({"name": "gpu", **record}), indent=2, allow_nan=False) + "\n")
        return
    if done:
        record["rows"] = rows(record)
        common.write("gpu", record)
        common.show(record)


if __name__ == "__main__":
    sys.exit(main())
