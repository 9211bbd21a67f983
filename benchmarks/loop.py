"""What a training step of tessella costs beside a step of a bare PyTorch loop over the same network.

Both run in one process and take turns, a block of steps each: the training split asks for nothing but batches, so a
split that runs a block of the bare loop whenever training asks for the first batch of its next block interleaves the
two without touching `tessella.train`. A block of ours is timed from the first batch of it being asked for to the first
batch of the next being asked for, so it holds everything that `train` does in between: batches, averaged weights,
the check for bad batches, progress, metrics and TensorBoard. Start-up lies before the first block. Blocks in which the
validation split is measured and pictures are drawn are left out and reported apart (there are 12 such looks in a run,
however long it is); checkpoints are timed apart and charged at one a minute, the default.

    python benchmarks/loop.py [--cases mnist-shaped sounds tiny]
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import common
import tessella
from tessella.core.batches import Batch
from tessella.core.device import autocast
from tessella.core.rng import Noise
from tessella.data import Data, Split
from tessella.models.codes import CodeModel
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.spec import TrainOptions
from tessella.training.callbacks import EVERY, VALIDATE_AT

BAR = 1.05
BLOCK = EVERY
"""Steps in a block: as many as between two lines of metrics, so that each block pays for one."""
NEVER = 1e9
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Case:
    """A network, its data, the options of both loops and the loss of the bare one."""

    name: str
    claim: str
    make: Callable[..., Any]
    options: dict[str, Any]
    batch_size: int
    write: Callable[[Path], Path]
    bare_loss: Callable[[Any, Tensor], Tensor]
    blocks: int

    def data(self, folder: Path) -> Data:
        """Random examples in files, so that they come the way that anybody's do."""
        return tessella.open_data(str(self.write(folder / self.name)))

    def model(self, data: Data) -> Any:
        torch.manual_seed(0)
        return self.make(data.schema, **self.options)

    def training(self, steps: int, save_every: float) -> TrainOptions:
        return TrainOptions(steps=steps, batch_size=self.batch_size, save_every=save_every)

    def autocast(self, data: Data) -> torch.autocast:
        """The precision that training chooses by default, for the bare loop too."""
        return autocast("auto", data.schema, DEVICE)

    def precision(self, data: Data) -> str:
        with self.autocast(data):
            return "bfloat16 autocast" if torch.is_autocast_enabled(DEVICE.type) else "float32"


def cases() -> tuple[Case, ...]:
    """The default models of MNIST's shape and of sounds, and one so small that whatever is not the network shows."""
    vae, vqvae, small = tessella.VAE, tessella.VQVAE, {"width": 8, "depth": 1, "latent_dim": 8}
    of_pictures, of_sounds = "default VAE on 28x28, batch 128", "default VQ-VAE of sounds of 0.5 s at 8 kHz, batch 4"
    return (
        Case("mnist-shaped", of_pictures, vae, {}, 128, partial(pictures, side=28), bare_loss, 40),
        Case("sounds", of_sounds, vqvae, {}, 4, sounds, bare_loss_of_sounds, 40),
        Case("tiny", "", vae, small, 32, partial(pictures, side=8), bare_loss, 60),
    )


def pictures(path: Path, side: int, examples: int = 6000) -> Path:
    """Write random binary pictures."""
    x = np.random.default_rng(0).integers(0, 2, (examples, side, side), dtype=np.uint8)
    np.savez(path.with_suffix(".npz"), x=x)
    return path.with_suffix(".npz")


def sounds(path: Path, examples: int = 600, rate: int = 8000) -> Path:
    """Write a folder of recordings of noise."""
    path.mkdir(exist_ok=True)
    for i, x in enumerate(np.random.default_rng(0).integers(-9000, 9000, (examples, rate // 2), dtype=np.int16)):
        soundfile.write(path / f"{i}.wav", x, rate)
    return path


# the bare loop


def bare_loss(model: LatentVariableModel, x: Tensor, eps: Tensor | None = None) -> Tensor:
    """The bound of a Gaussian VAE with a Bernoulli likelihood as one writes it by hand: nats per dimension."""
    features = model.encoder(model.likelihood.to_network(x), None)
    with torch.autocast(x.device.type, enabled=False):
        mu, log_sigma = model.bottleneck.head(features.float()).chunk(2, 1)  # pyright: ignore
    log_sigma = log_sigma.clamp(-8, 4)
    sigma = log_sigma.exp()
    z = mu + sigma * (torch.randn_like(mu) if eps is None else eps)
    rate = (0.5 * (mu**2 + sigma**2 - 1) - log_sigma).sum(1)
    logits = model.decoder(z, None).float()
    distortion = F.binary_cross_entropy_with_logits(logits, x.float(), reduction="none").flatten(1).sum(1)
    return (rate + distortion).mean() / model.schema.dims


def bare_loss_of_sounds(model: CodeModel, x: Tensor) -> Tensor:
    """The loss of a VQ-VAE of sounds, whose prior is uniform: nats per dimension."""
    out = model.levels[0](model.encoder(model.likelihood.to_network(x), None), None, None)
    p_x = model.likelihood(model.decoder(out.z, None))
    assert model.spectral_penalty is not None
    return (out.penalty - p_x.log_prob(x) + model.spectral_penalty(p_x.mean, x)).mean() / model.schema.dims


def bare_loop(case: Case, data: Data) -> Callable[[int], None]:
    """A loop of that many steps that does nothing but learn: no metrics, averages, checkpoints or progress."""
    model = case.model(data).to(DEVICE, memory_format=torch.channels_last).train()  # pyright: ignore
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    split = data.split("train")
    x = split.batch(np.arange(len(split))).x.to(DEVICE)
    size, order, at = case.batch_size, torch.randperm(len(x)), 0

    def run(steps: int) -> None:
        nonlocal order, at
        for _ in range(steps):
            if at + size > len(x):
                order, at = torch.randperm(len(x)), 0
            rows = order[at : at + size]
            at += size
            optimizer.zero_grad(set_to_none=True)
            with case.autocast(data):
                loss = case.bare_loss(model, x[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        _finish()

    return run


def _finish() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


# turns


class Turns(Split):
    """A training split that gives somebody else a turn before each block of `block` batches.

    Attributes:
        ours: seconds of each block of training but the last, which nobody sees the end of.
        theirs: seconds of each turn.
    """

    def __init__(self, base: Split, block: int, turn: Callable[[int], None]) -> None:
        self.base, self.block, self.turn = base, block, turn
        self.example_ids, self.labels, self.factors = base.example_ids, base.labels, base.factors
        self.fetched = 0
        self.since: float | None = None
        self.ours: list[float] = []
        self.theirs: list[float] = []

    @property
    def in_memory(self) -> bool:
        return self.base.in_memory

    def batch(self, indices: Any, noise: Noise | None = None) -> Batch:
        if self.fetched % self.block == 0:
            _finish()
            now = time.perf_counter()
            if self.since is not None:
                self.ours.append(now - self.since)
            self.turn(self.block)
            self.since = time.perf_counter()
            self.theirs.append(self.since - now)
        self.fetched += 1
        return self.base.batch(indices, noise)


def train_in_turns(
    case: Case, data: Data, steps: int, *, block: int, turn: Callable[[int], None], save: float
) -> Turns:
    """Train for `steps` steps, silently but with all that a terminal would be shown."""
    turns = Turns(data.split("train"), block, turn)
    watched = Data(data.spec, data.options, data.schema, {**data.splits, "train": turns}, data.notes)
    with tempfile.TemporaryDirectory() as folder, common.silenced():
        tessella.train(case.model(data), watched, Path(folder) / "run", case.training(steps, save))
    return turns


def with_looks(steps: int, block: int) -> set[int]:
    """The blocks in which training stops to look at what it has learned."""
    return {ceil(look * steps) // block for look in VALIDATE_AT}


# measure


def measure(case: Case, blocks: int, block: int, folder: Path) -> common.Record:
    """One case: interleaved blocks, what a checkpoint and a look cost, and where the time goes."""
    data = case.data(folder)
    bare = bare_loop(case, data)
    bare(3)
    steps = blocks * block + 1
    common.say(f"{case.name}: {blocks} blocks of {block} steps of each loop")
    turns = train_in_turns(case, data, steps, block=block, turn=bare, save=NEVER)
    looks = with_looks(steps, block)
    clean = [i for i in range(1, len(turns.ours)) if i not in looks]
    looking = [i for i in range(1, len(turns.ours)) if i in looks]
    ours, theirs = [turns.ours[i] for i in clean], [turns.theirs[i] for i in clean]
    ratio = common.ratios(ours, theirs)
    step = statistics.median(ours) / block
    bare_step = statistics.median(theirs) / block

    saving = train_in_turns(case, data, 41, block=1, turn=lambda count: None, save=0.0)
    plain = train_in_turns(case, data, 41, block=1, turn=lambda count: None, save=NEVER)
    save = max(0.0, statistics.median(saving.ours) - statistics.median(plain.ours))
    look = statistics.median([turns.ours[i] - statistics.median(ours) for i in looking]) if looking else None
    checkpoints = save / TrainOptions().save_every
    return {
        "batch_size": case.batch_size,
        "precision": case.precision(data),
        "parameters": sum(p.numel() for p in case.model(data).parameters()),
        "steps": {"a block": block, "compared": len(clean) * block},
        "step_ms": {"ours": 1e3 * step, "bare": 1e3 * bare_step},
        "ratio": {**ratio, "median_with_checkpoints": ratio["median"] * (1 + checkpoints)},
        "checkpoint": {"ms": 1e3 * save, "share_at_one_a_minute": checkpoints},
        "look": None if look is None else {"seconds": look, "share_of_10_minutes": 12 * look / 600},
        "overhead_ms": profile(case, data, bare_step),
    }


PARTS = {
    "averaged weights": ("state.py", "update"),
    "progress, metrics and TensorBoard": ("callbacks.py", "after_step"),
    "batches": ("splits.py", "batch"),
    "noise": ("rng.py", "_draw"),
    "gradient clipping (the bare loop has it too)": ("clip_grad.py", "clip_grad_norm_"),
    "optimizer (the bare loop has it too)": ("adam.py", "step"),
    "finite check: numbers to Python": ("~", "<method 'tolist' of 'torch._C.TensorBase' objects>"),
    "finite check: stacking": ("~", "<built-in method torch.stack>"),
}
"""Whose time in a profile is whose: (file, function) by a name to report it under."""


def profile(case: Case, data: Data, bare_step: float, steps: int = 200) -> common.Record:
    """Milliseconds a step of what `train` does besides the network, by cProfile, which inflates small calls.

    `model by parts` is not of the profile: forward and backward through `LatentVariableModel`, its distributions and
    records, less the same written by hand.
    """
    watched = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder, common.silenced():
        model, options = case.model(data), case.training(steps, NEVER)
        watched.runcall(tessella.train, model, data, Path(folder) / "run", options)
    stats: dict[tuple[str, int, str], Any] = pstats.Stats(watched).stats  # pyright: ignore
    found: dict[str, float | None] = {}
    for name, (file, function) in PARTS.items():
        taken = [s[3] for (path, _, f), s in stats.items() if Path(path).name == file and f == function]
        found[name] = 1e3 * sum(taken) / steps if taken else None
    batch = data.split("train").batch(np.arange(case.batch_size)).x.to(DEVICE)
    made = model.to(DEVICE).train()
    number = 0

    def timed(loss: Callable[[], Tensor]) -> Callable[[], float]:
        def once() -> float:
            started = time.perf_counter()
            with case.autocast(data):
                value = loss()
            value.backward()
            _finish()
            return time.perf_counter() - started

        return once

    def by_parts() -> Tensor:
        nonlocal number
        number += 1
        bound = made(batch, None, noise=Noise(0, number, "latent")).bound
        return bound.mean() / data.schema.dims

    by = common.alternate({"parts": timed(by_parts), "hand": timed(lambda: case.bare_loss(made, batch))}, 30)
    found["model by parts"] = 1e3 * (statistics.median(by["parts"]) - statistics.median(by["hand"]))
    return {**found, "bare step, for comparison": 1e3 * bare_step}


def loop(chosen: Sequence[str], block: int = BLOCK) -> common.Record:
    """The record of the cases of these names."""
    some = [case for case in cases() if case.name in chosen]
    with tempfile.TemporaryDirectory() as folder:
        taken = {case.name: measure(case, case.blocks, block, Path(folder)) for case in some}
    claim = "training step / step of a bare PyTorch loop"
    rows = [
        common.row(f"{claim}, {case.claim}", BAR, taken[case.name]["ratio"]["median_with_checkpoints"], better="lower")
        for case in some
        if case.claim
    ]
    return {
        "about": "seconds a step of tessella.train over those of a bare loop of the same network, in turns",
        "rows": rows,
        **taken,
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [case.name for case in cases()]
    parser.add_argument("--cases", nargs="*", choices=names, default=names)
    parser.add_argument("--block", type=int, default=BLOCK, help="steps in a block")
    parser.add_argument("--record", default="loop", help="write results/NAME.json")
    o = parser.parse_args()
    record = loop(o.cases, o.block)
    common.write(o.record, record)
    common.show(record)


if __name__ == "__main__":
    main()
