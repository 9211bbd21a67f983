"""Training, validation and test splits, and their batches: endless and shuffled, or once in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Literal, final

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tessella.core.batches import Batch
from tessella.core.rng import Noise
from tessella.data.raw import RawSplit, mixed, number_of
from tessella.foundation.errors import DataError
from tessella.foundation.notes import note

Binarization = Literal["dynamic", "static", "threshold"]
Indices = Sequence[int] | np.ndarray | torch.Tensor

TEST_FRACTION, VALID_FRACTION, FEW = 0.10, 0.05, 8
SUBSTITUTES, PREFETCH = 100, 4
POOL = 32
"""Joined batches whose examples are sorted by length together."""


class Split(ABC):
    """Split of a data set: examples, labels and ids.

    Attributes:
        example_ids: keys `[N]` uint64 of the examples.
        labels: class numbers `[N]` int64, or None.
        factors: ground-truth factors of variation by name, each `[N]`; empty if unknown.
        in_memory: whether a batch is so cheap that worker processes would only slow it down.
        lengths: positions of each example before its end `[N]`; None if all are whole, or it is not known.
    """

    example_ids: np.ndarray
    labels: np.ndarray | None
    factors: Mapping[str, np.ndarray]
    in_memory: bool = True
    lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.example_ids)

    def random_rows(self, count: int | None = None) -> np.ndarray:
        """Return row numbers in the order of the ids: fixed, and independent of the order of the data."""
        return np.argsort(self.example_ids)[:count]

    def subset(self, rows: Indices) -> Split:
        """Select examples by their row numbers."""
        return Subset(self, np.asarray(rows, dtype=np.int64))

    @abstractmethod
    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        """Read the examples with row numbers `indices` `[B]` as stored values.

        Args:
            noise: random numbers for dynamic binarization and for offsets of windows; without it the batch is
                deterministic.
        """


@final
class Subset(Split):
    """Split of selected examples of another split."""

    def __init__(self, base: Split, rows: np.ndarray) -> None:
        self._base, self._rows, self.in_memory = base, rows, base.in_memory
        self.example_ids = base.example_ids[rows]
        self.labels = None if base.labels is None else base.labels[rows]
        self.factors = {name: values[rows] for name, values in base.factors.items()}
        self.lengths = None if base.lengths is None else base.lengths[rows]

    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        return self._base.batch(self._rows[np.asarray(indices, dtype=np.int64)], noise)


@final
class Renumbered(Split):
    """Split with each label k replaced by `numbers[k]`."""

    def __init__(self, base: Split, numbers: np.ndarray) -> None:
        self._base, self._numbers, self.in_memory = base, torch.from_numpy(numbers), base.in_memory
        self.example_ids, self.factors, self.lengths = base.example_ids, base.factors, base.lengths
        self.labels = None if base.labels is None else numbers[base.labels]

    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        batch = self._base.batch(indices, noise)
        return Batch(batch.x, None if batch.label is None else self._numbers[batch.label])


@final
class PartSplit(Split):
    """Split of rows of a part, which several splits may share.

    An unreadable example is replaced by the next readable one of the split, with its label; a note names it. With
    noise, windows of recordings begin at random offsets.
    """

    def __init__(self, part: RawSplit, rows: np.ndarray) -> None:
        self._part, self._rows, self.in_memory = part, rows, isinstance(part.x, np.ndarray)
        self.example_ids = part.example_ids[rows]
        self.labels = None if part.labels is None else part.labels[rows]
        self.factors = {name: values[rows] for name, values in part.factors.items()}
        self.lengths = None if part.lengths is None else part.lengths[rows]

    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        at = np.asarray(indices, dtype=np.int64)
        try:
            if noise is None or self._part.continued is None:
                x = self._part.read(self._rows[at])
            else:
                shares = noise.split("offset").uniform(len(at)).numpy()
                x = self._part.read_shifted(self._rows[at], shares)
        except DataError:
            readable = [self._readable(int(i)) for i in at]
            at = np.array([i for i, _ in readable], dtype=np.int64)
            x = np.concatenate([example for _, example in readable])
        return Batch(torch.from_numpy(x), None if self.labels is None else torch.from_numpy(self.labels[at]))

    def _readable(self, index: int) -> tuple[int, np.ndarray]:
        for step in range(min(SUBSTITUTES, len(self))):
            i = (index + step) % len(self)
            try:
                return i, self._part.read(self._rows[i : i + 1])
            except DataError as error:
                note(f"{error}; the next one of the split replaces it")
        raise DataError(
            f"{SUBSTITUTES} examples in a row, from number {index} of the split, cannot be read: check the data",
            code="nothing-readable",
        )


@final
class BinarizedSplit(Split):
    """Split of bytes v binarized by sampling from Bernoulli(v / 255), or by the threshold v > 127.

    `dynamic` samples with the noise of each batch. `static`, and `dynamic` without noise, samples by a hash of (seed,
    example, pixel), so that the values do not depend on the order or the batches.
    """

    def __init__(self, base: Split, mode: Binarization, seed: int) -> None:
        self._base, self._mode, self.in_memory = base, mode, base.in_memory
        self.example_ids, self.labels, self.factors = base.example_ids, base.labels, base.factors
        self._salted = mixed(base.example_ids ^ np.uint64(number_of(f"{seed}/binarize")))

    def batch(self, indices: Indices, noise: Noise | None = None) -> Batch:
        grey = self._base.batch(indices)
        if self._mode == "threshold":
            return Batch((grey.x > 127).to(torch.uint8), grey.label)
        if self._mode == "dynamic" and noise is not None:
            return Batch((noise.uniform(*grey.x.shape) * 255 < grey.x).to(torch.uint8), grey.label)
        at = np.asarray(indices, dtype=np.int64)
        v = grey.x.numpy().reshape(len(at), -1)
        draw = mixed(self._salted[at][:, None] + np.arange(v.shape[1], dtype=np.uint64)) >> np.uint64(40)
        ones = draw * np.uint64(255) < (v.astype(np.uint64) << np.uint64(24))
        return Batch(torch.from_numpy(ones.astype(np.uint8)).reshape(grey.x.shape), grey.label)


def divide(part: RawSplit, *, test: float, valid: float, seed: int) -> dict[str, np.ndarray]:
    """Divide a part into training, validation and test: row numbers by split name.

    Args:
        test, valid: shares of the examples, the second of what the first leaves; 0: no such split.

    A hash of its own key decides the split of an example, independent of the other examples. If a split has too few,
    the next in hash order are added. Groups larger than the intended split stay in training.
    """
    groups = part.example_ids if part.groups is None else part.groups
    rows = {"train": np.arange(len(part.example_ids))}
    for name, fraction in (("test", test), ("valid", valid)):
        train = rows["train"]
        if not fraction or len(train) < 2:
            continue
        few = min(FEW, max(1, len(train) // 10))
        taken = _taken(mixed(groups[train] ^ np.uint64(number_of(f"{seed}/{name}"))), fraction, few)
        if taken.any():
            rows[name], rows["train"] = train[taken], train[~taken]
    return {name: rows[name] for name in ("train", "valid", "test") if name in rows}


def _taken(hashes: np.ndarray, fraction: float, few: int) -> np.ndarray:
    limit = int(fraction * 2**64)
    _, inverse, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    if len(sizes) == 1:
        return np.zeros(len(hashes), bool)  # one group is never divided
    largest = max(2 * few, int(2 * fraction * len(hashes)), int(sizes.min()))
    free = sizes[inverse] <= largest
    ordered = np.sort(hashes[free])
    chosen = ordered[: max(few, int((ordered < limit).sum()))]
    taken = free & (hashes <= chosen[-1])
    return taken if not taken.all() else hashes < hashes.max()  # leave at least one group for training


# batches


class Schedule:
    """Rows of each batch of training, a pure function of (seed, number of the batch).

    Each epoch is a permutation drawn from (seed, epoch) and chopped into joined batches of `batch_size * world`
    rows; what is left over is dropped. A split smaller than one joined batch is repeated to fill it. Process `rank`
    gets rows `[rank * batch_size, (rank + 1) * batch_size)` of the joined batch.

    If `lengths` of the examples are given, those of some joined batches are sorted by them and these batches shuffled:
    a batch then has examples of about one length, and little time is spent on what comes after their ends.
    """

    def __init__(
        self,
        examples: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world: int = 1,
        lengths: np.ndarray | None = None,
    ) -> None:
        if examples < 1:
            raise DataError("the split has no examples: give more data", code="no-examples")
        if batch_size < 1 or not 0 <= rank < world:
            raise ValueError(f"batch_size must be at least 1 and 0 <= rank < world, got {batch_size}, {rank}, {world}")
        self.examples, self.batch_size, self.seed, self.rank, self.world = examples, batch_size, seed, rank, world
        self.joined, self.lengths = batch_size * world, lengths
        self.steps_per_epoch = max(1, examples // self.joined)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def rows(self, step: int) -> np.ndarray:
        """Return the row numbers `[batch_size]` of batch `step`."""
        epoch, k = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.PCG64(number_of(f"{self.seed}/{epoch}/order")))
            order = generator.permutation(self.examples)
            order = np.resize(order, max(self.examples, self.joined))
            self._order = order if self.lengths is None else self._by_length(order, self.lengths, generator)
            self._epoch = epoch
        start = k * self.joined + self.rank * self.batch_size
        return self._order[start : start + self.batch_size]

    def _by_length(self, order: np.ndarray, lengths: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        whole = order[: self.steps_per_epoch * self.joined]
        pools = np.array_split(whole, -(-self.steps_per_epoch // POOL))
        ordered = np.concatenate([pool[lengths[pool].argsort(kind="stable")] for pool in pools])
        return generator.permutation(ordered.reshape(-1, self.joined)).flatten()


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
    """Yield batches `start_step`, `start_step + 1`, ... without end; each is a pure function of (seed, its number).

    Args:
        split: examples to read.
        batch_size: examples per batch and process.
        workers: processes that decode images in advance; not used for a split in memory.

    Raises:
        DataError: if the split is empty, or its images cannot be read.
    """
    schedule = Schedule(len(split), batch_size, seed=seed, rank=rank, world=world, lengths=split.lengths)
    return _in_turn(_Fetched(split, schedule), count(start_step), 0 if split.in_memory else workers)


def batches(split: Split, batch_size: int, *, workers: int = 0) -> Iterator[Batch]:
    """Yield all examples once, in order and without noise; the last batch may be smaller."""
    starts = range(0, len(split), batch_size)
    return _in_turn(_Fetched(split, batch_size), starts, 0 if split.in_memory else workers)


class _Fetched(Dataset):
    """Batches by number, with a DataError in the place of a failed one: a worker would wrap it in a traceback."""

    def __init__(self, split: Split, rows: Schedule | int) -> None:
        self._split, self._rows = split, rows

    def __getitem__(self, index: int) -> Batch | DataError:
        try:
            if isinstance(s := self._rows, int):
                return self._split.batch(np.arange(index, min(index + s, len(self._split))))
            return self._split.batch(s.rows(index), Noise(s.seed, index, "data", rank=s.rank, world=s.world))
        except DataError as error:
            return error


def _in_turn(dataset: _Fetched, numbers: count | range, workers: int) -> Iterator[Batch]:
    items = map(dataset.__getitem__, numbers)
    if workers > 0:  # own generator: the loader would use the global one and change the run's random numbers
        own = torch.Generator()
        items = iter(DataLoader(dataset, None, sampler=numbers, num_workers=workers, prefetch_factor=PREFETCH,
                                generator=own))  # fmt: skip
    for item in items:
        if isinstance(item, DataError):
            raise item
        yield item
