"""Randomness as a value: every draw is a function of (seed, step, stream) and of nothing else.

So a resumed run draws what the uninterrupted one would have drawn without saving any generator's state, an
evaluation done twice gives the same digits, and several processes draw what one process with the joined batch
would draw: each draws the whole joined batch's noise and keeps its own rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Noise:
    """A source of random numbers for one step.

    Args:
        seed: the run's seed.
        step: the training step, or the batch's number.
        stream: what the numbers are for; two streams of one step are independent.
        rank, world: this process and their number; rows `[rank * B, (rank + 1) * B)` of the joined batch are ours.
    """

    def __init__(self, seed: int, step: int = 0, stream: str = "", *, rank: int = 0, world: int = 1) -> None:
        self.seed, self.step, self.stream, self.rank, self.world = seed, step, stream, rank, world
        self._generators: dict[torch.device, torch.Generator] = {}

    def split(self, stream: str) -> Noise:
        """An independent source for the same step."""
        return Noise(self.seed, self.step, f"{self.stream}/{stream}", rank=self.rank, world=self.world)

    def normal(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """`shape` draws from N(0, 1), float32; the first axis counts this process's examples."""
        return self._draw(torch.randn, shape, torch.device(device))

    def uniform(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """`shape` draws from U[0, 1), float32; the first axis counts this process's examples."""
        return self._draw(torch.rand, shape, torch.device(device))

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...], device: torch.device) -> Tensor:
        if device not in self._generators:
            key = f"{self.seed}/{self.step}/{self.stream}".encode()
            number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
            self._generators[device] = torch.Generator(device).manual_seed(number)
        rows = shape[0]
        joined = draw((rows * self.world, *shape[1:]), generator=self._generators[device], device=device)
        return joined[self.rank * rows : (self.rank + 1) * rows]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's own generators, for draws that take none; what they were is put back for the processor and `device`.

    Of an Apple GPU, whose generator cannot be forked, it is not put back.
    """
    kind = device.type if device.type in ("cuda", "xpu") else "cuda"
    with torch.random.fork_rng(devices=[device] if device.type == kind else [], device_type=kind):
        torch.manual_seed(seed)
        yield
