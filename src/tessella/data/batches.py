"""Batches: without end for training, once in order for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tessella.core.batches import Batch
from tessella.core.rng import Noise
from tessella.data.raw import number_of
from tessella.data.splits import Split
from tessella.foundation.errors import DataError

PREFETCH = 4


class Schedule:
    """Which rows batch number t holds: a pure function of (seed, t).

    Each epoch is a permutation drawn from (seed, epoch) and chopped into joined batches of `batch_size * world`
    rows; what is left over is dropped. A split smaller than one joined batch is repeated to fill it. Process `rank`
    gets rows `[rank * batch_size, (rank + 1) * batch_size)` of the joined batch.
    """

    def __init__(self, examples: int, batch_size: int, *, seed: int, rank: int = 0, world: int = 1) -> None:
        if examples < 1:
            raise DataError("the split has no examples: give more data")
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"no batches of {batch_size} for process {rank} of {world}")
        self.examples, self.batch_size, self.seed, self.rank, self.world = examples, batch_size, seed, rank, world
        self.joined = batch_size * world
        self.steps_per_epoch = max(1, examples // self.joined)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def rows(self, step: int) -> np.ndarray:
        """`[batch_size]` row numbers of batch `step`."""
        epoch, k = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64(number_of(f"{self.seed}/{epoch}/order")))
            order = generator.permutation(self.examples)
            self._order = np.resize(order, max(self.examples, self.joined))
            self._epoch = epoch
        start = k * self.joined + self.rank * self.batch_size
        return self._order[start : start + self.batch_size]


def stream(
    split: Split,
    batch_size: int,
    *,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Batches `start_step`, `start_step + 1`, ... without end; each is a pure function of (seed, its number).

    Args:
        split: what to go through.
        batch_size: examples per batch and process.
        workers: processes that decode pictures ahead; a split in memory does without.

    Raises:
        DataError: if the split is empty, or its pictures cannot be read.
    """
    schedule = Schedule(len(split), batch_size, seed=seed, rank=rank, world=world)
    return _in_turn(_Training(split, schedule), count(start_step), 0 if split.in_memory else workers)


def batches(split: Split, batch_size: int, *, workers: int = 0) -> Iterator[Batch]:
    """The split once, in its order and without noise; the last batch may be smaller."""
    starts = range(0, len(split), batch_size)
    return _in_turn(_Ordered(split, batch_size), starts, 0 if split.in_memory else workers)


class _Training(Dataset):
    def __init__(self, split: Split, schedule: Schedule) -> None:
        self._split, self._schedule = split, schedule

    def __getitem__(self, index: int) -> Batch | DataError:
        s = self._schedule
        noise = Noise(s.seed, index, "data", rank=s.rank, world=s.world)
        return _caught(self._split, s.rows(index), noise)


class _Ordered(Dataset):
    def __init__(self, split: Split, batch_size: int) -> None:
        self._split, self._batch_size = split, batch_size

    def __getitem__(self, index: int) -> Batch | DataError:
        stop = min(index + self._batch_size, len(self._split))
        return _caught(self._split, np.arange(index, stop), None)


def _caught(split: Split, rows: np.ndarray, noise: Noise | None) -> Batch | DataError:
    # An error travels as a value: a worker process would wrap it in its traceback and spoil the one line.
    try:
        return split.batch(rows, noise)
    except DataError as error:
        return error


def _loader(dataset: _Training | _Ordered, numbers: count | range, workers: int) -> DataLoader:
    # A generator of its own: the loader would otherwise draw from the global one, and change the run's numbers.
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=PREFETCH,
        generator=torch.Generator(),
    )


def _in_turn(dataset: _Training | _Ordered, numbers: count | range, workers: int) -> Iterator[Batch]:
    if workers > 0:
        items = iter(_loader(dataset, numbers, workers))
    else:
        items = map(dataset.__getitem__, numbers)
    for item in items:
        if isinstance(item, DataError):
            raise item
        yield item
