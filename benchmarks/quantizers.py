"""What a quantiser costs: its forward pass in training, with the update of its codebook by exponential averages.

Against `VectorQuantize` of vector-quantize-pytorch (euclidean, decay 0.99, the rest as it comes: no k-means, no revived
codes; ours has both) and against the bare matrix product of N x D by D x K, written into memory that is there already.
Everything is float32, and features ask for a gradient, but nothing is backpropagated. The peer maps no features, so
ours is given an identity for its head; with its head it is timed too. The three take turns; a figure is the median of
the ratios of neighbouring turns.

Memory is the highest sum of the tensors that one call holds at a time beyond those that it was given, its results among
them: on a CPU added up from the allocations that PyTorch's profiler records, on a GPU as its allocator says.

On a machine that others use, barriers between threads wait for their turns and not for work: `--one-thread` counts
the processor's time of a single thread instead, and says so in the record.

    python benchmarks/quantizers.py [--seconds 20] [--one-thread]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

import common
from tessella.bottlenecks import EMAQuantizer
from tessella.core.rng import Noise

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FASTER = 4.0 if DEVICE.type == "cuda" else 8.0
SMALLER = 1 / 8
PRODUCTS = 1.5
EXAMPLES = 8


@dataclass(frozen=True)
class Case:
    """N vectors of D numbers against K codes."""

    vectors: int
    codes: int
    dims: int

    def __str__(self) -> str:
        return f"N = {self.vectors}, K = {self.codes}, D = {self.dims}"

    def ours(self, *, head: bool) -> Callable[[], object]:
        rows = self.vectors // EXAMPLES
        quantizer = (
            EMAQuantizer(codebook_size=self.codes, code_dim=self.dims).build((self.dims, 1, rows)).to(DEVICE).train()
        )
        if not head:
            quantizer.head = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        features = self.features().view(EXAMPLES, 1, rows, self.dims).movedim(3, 1)
        step = 0

        def call() -> object:
            nonlocal step
            step += 1
            return quantizer(features, Noise(0, step))

        return call

    def peer(self) -> Callable[[], object]:
        quantizer = VectorQuantize(dim=self.dims, codebook_size=self.codes, decay=0.99).to(DEVICE).train()
        features = self.features().view(EXAMPLES, -1, self.dims)
        return lambda: quantizer(features)

    def product(self) -> Callable[[], object]:
        left, right = self.features().detach(), torch.randn(self.codes, self.dims, device=DEVICE)
        out = torch.empty(self.vectors, self.codes, device=DEVICE)
        return lambda: torch.mm(left, right.T, out=out)

    def features(self) -> Tensor:
        return torch.randn(self.vectors, self.dims, device=DEVICE, requires_grad=True)


CASES = (Case(8192, 512, 64), Case(8192, 1024, 64), Case(16384, 8192, 32), Case(4096, 16384, 8))


def seconds(call: Callable[[], object]) -> float:
    """Of one call: of the processor if there is one thread, else by the clock on the wall."""
    clock = time.thread_time if DEVICE.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    _finish()
    started = clock()
    call()
    _finish()
    return clock() - started


def _finish() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def peak(call: Callable[[], object]) -> int:
    """Bytes that one call holds at most, beyond what is there before it."""
    if DEVICE.type == "cuda":
        _finish()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        kept = call()
    del kept
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure(case: Case, budget: float) -> common.Record:
    """One case, for about `budget` seconds."""
    calls = {
        "ours": case.ours(head=False),
        "peer": case.peer(),
        "product": case.product(),
        "with_head": case.ours(head=True),
    }
    for call in calls.values():  # k-means, buffers, threads
        call()
        call()
    turn = sum(seconds(call) for call in calls.values())
    rounds = max(5, round(budget / turn))
    common.say(f"{case}: {rounds} rounds")
    taken = common.alternate({name: lambda call=call: seconds(call) for name, call in calls.items()}, rounds)
    memory = {name: peak(calls[name]) for name in ("ours", "peer")}
    return {
        "ms": {name: 1e3 * statistics.median(times) for name, times in taken.items()},
        "times_faster": common.ratios(taken["peer"], taken["ours"]),
        "products": common.ratios(taken["ours"], taken["product"]),
        "times_faster_with_head": common.ratios(taken["peer"], taken["with_head"]),
        "peak_mib": {name: size / 2**20 for name, size in memory.items()},
        "peak_share": memory["ours"] / memory["peer"],
    }


def quantizers(budget: float = 20.0) -> common.Record:
    """The record of all cases."""
    torch.manual_seed(0)
    taken = {str(case): measure(case, budget) for case in CASES}
    rows, alone = [], ", one thread" if torch.get_num_threads() == 1 else ""
    for case, found in taken.items():
        name, faster, products = case + alone, found["times_faster"]["median"], found["products"]["median"]
        rows += [
            common.row(f"vector-quantize-pytorch's time / the quantiser's, {name}", FASTER, faster, better="higher"),
            common.row(f"its peak memory / theirs, {name}", SMALLER, found["peak_share"], better="lower"),
            common.row(f"its time / a bare matrix product's, {name}", PRODUCTS, products, better="lower"),
        ]
    return {
        "about": "a codebook quantiser in training against vector-quantize-pytorch and a matrix product, in turns",
        "clock": "processor time of one thread" if torch.get_num_threads() == 1 else "wall time",
        "rows": rows,
        **taken,
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each of the four sizes")
    parser.add_argument("--one-thread", action="store_true", help="processor time of one thread")
    chosen = parser.parse_args()
    if chosen.one_thread:
        torch.set_num_threads(1)
    record = quantizers(chosen.seconds)
    common.write("quantizers", record)
    common.show(record)


if __name__ == "__main__":
    main()
