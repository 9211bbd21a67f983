"""Laws of streams: a batch is a pure function of (seed, number), whoever fetches it."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expect import raises
from tessella.data import Schedule, batches, open_data, stream
from tessella.data.raw import RawSplit, index_keys
from tessella.data.splits import PartSplit


def numbers(count: int) -> PartSplit:
    x = np.arange(count, dtype=np.float32)[:, None]
    return PartSplit(RawSplit(x, np.arange(count), index_keys(count, "x")), np.arange(count))


def taken(split, steps: int, *args, **options) -> list[torch.Tensor]:
    return [batch.x for batch in islice(stream(split, *args, **options), steps)]


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 40), st.integers(0, 9))
@settings(deadline=None)
def test_a_stream_goes_on_where_it_is_told_to(count: int, size: int, start: int, seed: int) -> None:
    split = numbers(count)
    whole = taken(split, start + 5, size, seed=seed)
    later = taken(split, 5, size, seed=seed, start_step=start)
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], later, strict=True))
    assert all(len(x) == size for x in whole)


@given(st.integers(1, 50), st.integers(1, 6), st.integers(1, 4))
@settings(deadline=None)
def test_processes_share_the_joined_batch(count: int, size: int, world: int) -> None:
    split = numbers(count)
    joined = taken(split, 7, size * world, seed=1)
    ranks = [taken(split, 7, size, seed=1, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(joined):
        assert torch.equal(batch, torch.cat([of[step] for of in ranks]))


def test_binarisation_is_shared_by_processes_too() -> None:
    split = open_data("digits", binarize="dynamic").split("train")
    joined = taken(split, 3, 8, seed=1)
    ranks = [taken(split, 3, 4, seed=1, rank=rank, world=2) for rank in range(2)]
    assert all(torch.equal(joined[t], torch.cat([of[t] for of in ranks])) for t in range(3))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 3))
def test_an_epoch_shows_each_example_once(count: int, size: int, epoch: int) -> None:
    schedule = Schedule(count, size, seed=0)
    first = epoch * schedule.steps_per_epoch
    rows = np.concatenate([schedule.rows(first + k) for k in range(schedule.steps_per_epoch)])
    if count >= size:
        assert len(set(rows.tolist())) == len(rows) == count // size * size
    else:
        assert set(rows.tolist()) == set(range(count))


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 2), st.integers(0, 3))
def test_batches_of_about_one_length_show_each_example_once(count: int, size: int, world: int, epoch: int) -> None:
    lengths = np.random.default_rng(count).integers(1, 100, count)
    ranks = [Schedule(count, size, seed=0, rank=rank, world=world, lengths=lengths) for rank in range(world)]
    plain = Schedule(count, size * world, seed=0)
    steps = range(epoch * plain.steps_per_epoch, (epoch + 1) * plain.steps_per_epoch)
    rows = np.array([np.concatenate([schedule.rows(step) for schedule in ranks]) for step in steps])
    assert sorted(rows.flatten()) == sorted(np.concatenate([plain.rows(step) for step in steps]))
    assert lengths[rows].max(1).mean() <= np.array([lengths[plain.rows(step)].max() for step in steps]).mean()


def test_epochs_and_seeds_differ() -> None:
    rows = [Schedule(100, 100, seed=seed).rows(epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert rows[0] != rows[1] != rows[2] != rows[0]
    assert rows[0] != list(range(100))


def test_labels_go_with_their_examples() -> None:
    batch = next(stream(numbers(30), 10, seed=0))
    assert batch.label is not None
    assert batch.label.dtype == torch.int64
    assert torch.equal(batch.x[:, 0].long(), batch.label)


@given(st.integers(1, 40), st.integers(1, 50))
def test_chunks_go_through_once_in_order(count: int, size: int) -> None:
    joined = torch.cat([batch.x for batch in batches(numbers(count), size)])
    assert joined[:, 0].tolist() == list(range(count))


def test_workers_change_nothing() -> None:
    split = open_data("sprites", size=16, binarize="dynamic").split("train")
    state = torch.random.get_rng_state()
    alone, helped = (taken(split, 5, 8, seed=0, start_step=3, workers=workers) for workers in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_empty_split_is_refused() -> None:
    with raises("no-examples"):
        next(stream(numbers(0), 4, seed=0))
