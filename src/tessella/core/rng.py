"""Counter-based random numbers: each is a function of (seed, step, stream) and, optionally, of an example's key.

So a resumed run continues with the numbers of an uninterrupted run without saving any generator's state, an evaluation
repeated gives the same digits, and several processes use the numbers that one process would use for the joined batch:
each generates the noise of the whole joined batch and keeps its own rows.

Training derives a batch's numbers from its step. Measurements derive them from the examples' keys, so that an example's
result depends neither on its neighbours nor on its position.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from tessella.core.device import has_float64, precise

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
"""Increment of SplitMix64's counter, as a signed number."""
BITS = 24
"""Random bits per number: as many as float32 resolves between 1/2 and 1."""


@final
class Noise:
    """Source of random numbers for one step, or for given examples.

    Args:
        seed: the run's seed.
        step: the training step, or the batch's number.
        stream: name of the use; two streams of one step are independent.
        rank, world: index of this process and number of processes; this process owns rows `[rank * B, (rank + 1) * B)`
            of the joined batch.
        keys: `[B]` int64 (`example_keys`): row i's numbers then depend on `keys[i]` instead of i.
        draw: index of an example's first sample, used only with keys.
    """

    def __init__(
        self,
        seed: int,
        step: int = 0,
        stream: str = "",
        *,
        rank: int = 0,
        world: int = 1,
        keys: Tensor | None = None,
        draw: int = 0,
    ) -> None:
        self.seed, self.step, self.stream, self.rank, self.world = seed, step, stream, rank, world
        self.keys, self.draw = keys, draw
        self._generators: dict[torch.device, torch.Generator] = {}
        self._taken = 0

    def split(self, stream: str) -> Noise:
        """Return an independent source for the same step and examples."""
        return Noise(
            self.seed,
            self.step,
            f"{self.stream}/{stream}",
            rank=self.rank,
            world=self.world,
            keys=self.keys,
            draw=self.draw,
        )

    def of(self, keys: Tensor) -> Noise:
        """Return a source in which each row's numbers depend on its example's key.

        If a method is asked for `len(keys) * K` rows, they are K consecutive rows per example, each with its own
        numbers.

        Args:
            keys: `[B]` int64, the result of `example_keys`.
        """
        return Noise(self.seed, self.step, self.stream, keys=keys)

    def from_draw(self, draw: int) -> Noise:
        """Return the source of an example's samples from index `draw` on, to sample in several passes."""
        if self.keys is None:
            return self.split(str(draw))
        return Noise(self.seed, self.step, self.stream, keys=self.keys, draw=draw)

    def normal(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Sample from N(0, 1), float32 of this shape; the first axis counts this process's examples."""
        if self.keys is None:
            return self._draw(torch.randn, shape, torch.device(device))
        return _by_quantile(self._integers(self.keys, shape, device)).to(device)

    def uniform(self, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        """Sample from U[0, 1), float32 of this shape; the first axis counts this process's examples."""
        if self.keys is None:
            return self._draw(torch.rand, shape, torch.device(device))
        return (self._integers(self.keys, shape, device).float() * 2.0**-BITS).to(device)

    def spread(self, count: int, device: torch.device | str = "cpu") -> Tensor:
        """Sample numbers `[count]` in [0, 1), each uniform, together evenly spaced.

        They are evenly spaced over the joined batch of all processes (Kingma et al. 2021, appendix I.1); with keys they
        are independent instead.
        """
        if self.keys is not None:
            return self.uniform(count, device=device)
        shift = Noise(self.seed, self.step, self.stream).uniform(1).item()
        index = self.rank * count + torch.arange(count, dtype=torch.float64)
        t = (shift + index / (self.world * count)) % 1.0
        return t.float().clamp_max(math.nextafter(1.0, 0.0)).to(device)

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...], device: torch.device) -> Tensor:
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._number >> 1)
        rows = shape[0]
        joined = draw((rows * self.world, *shape[1:]), generator=self._generators[device], device=device)
        return joined[self.rank * rows : (self.rank + 1) * rows]

    def _integers(self, keys: Tensor, shape: tuple[int, ...], device: torch.device | str) -> Tensor:
        """Sample integers from 0 to 2^24 - 1; each row continues its own SplitMix64 sequence (Steele, Lea & Flood
        2014).
        """
        draws, left = divmod(shape[0], len(keys))
        if left:
            raise ValueError(f"{shape[0]} rows are not a multiple of the {len(keys)} examples")
        home = torch.device(device)
        keys = keys.to(home if has_float64(home) else "cpu")  # what comes after is in float64
        number = torch.arange(self.draw, self.draw + draws, device=keys.device)
        rows = _scrambled(_scrambled(keys ^ (self._number - 2**63))[:, None] + number).reshape(-1)
        many = math.prod(shape[1:])
        counter = torch.arange(self._taken, self._taken + many, device=keys.device) * GOLDEN
        self._taken += many
        return _shifted(_scrambled(rows[:, None] + counter), 64 - BITS).reshape(shape)

    @property
    def _number(self) -> int:
        """Hash seed, step and stream to one number below 2^64."""
        key = f"{self.seed}/{self.step}/{self.stream}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def example_keys(x: Tensor) -> Tensor:
    """Compute keys `[B]` int64 that identify examples `[B, *shape]`: hashes of the stored values."""
    rows = x.detach().cpu().contiguous().flatten(1).numpy()
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.int64)


def _by_quantile(integers: Tensor) -> Tensor:
    """Map integers below 2^24 to N(0, 1), float32, by the quantile at the middle of each one's interval."""
    return torch.special.ndtri((precise(integers) + 0.5) * 2.0**-BITS).float()


def _scrambled(x: Tensor) -> Tensor:
    """Return the output of SplitMix64 after the state x: int64, to be read as unsigned."""
    x = x + GOLDEN
    x = (x ^ _shifted(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shifted(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right without sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def chunks(count: int, size: int, seed: int) -> Iterator[tuple[slice, int]]:
    """Divide `count` rows into chunks of at most `size`, each with its own seed."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count)), seed + (start << 32)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, for functions that take no generator, and restore them afterwards.

    The generators of the processor and of `device` are restored, except on an Apple GPU, whose generator cannot be
    forked.
    """
    kind = device.type if device.type in ("cuda", "xpu") else "cuda"
    with torch.random.fork_rng(devices=[device] if device.type == kind else [], device_type=kind):
        torch.manual_seed(seed)
        yield
