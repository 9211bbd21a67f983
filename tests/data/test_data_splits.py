"""Laws of splits: disjoint, complete, decided by each example alone, and binarised once and for all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from expect import raises
from tessella.core.rng import Noise
from tessella.core.schema import Binary
from tessella.data import open_data
from tessella.data.raw import RawSplit, index_keys, mixed, name_keys
from tessella.data.splits import BinarizedSplit, PartSplit, divide


def part_of(keys: np.ndarray, groups: np.ndarray | None = None) -> RawSplit:
    x = np.arange(len(keys), dtype=np.float32)[:, None]
    return RawSplit(x, np.arange(len(keys)), keys, groups)


@given(st.integers(1, 400), st.integers(0, 5))
@settings(deadline=None)
def test_a_division_is_disjoint_and_complete(count: int, seed: int) -> None:
    rows = divide(part_of(index_keys(count, "x")), test=0.1, valid=0.05, seed=seed)
    joined = np.concatenate(list(rows.values()))
    assert sorted(joined.tolist()) == list(range(count))
    assert len(rows["train"]) >= 1
    assert ("test" in rows) == (count >= 2)
    assert ("valid" in rows) == (count >= 3)


@given(st.permutations([f"{i}.png" for i in range(60)]))
@settings(deadline=None, max_examples=20)
def test_the_division_does_not_depend_on_the_order(names: list[str]) -> None:
    rows = divide(part_of(name_keys(names)), test=0.1, valid=0.05, seed=0)
    found = {split: {names[i] for i in of} for split, of in rows.items()}
    ordered = [f"{i}.png" for i in range(60)]
    again = divide(part_of(name_keys(ordered)), test=0.1, valid=0.05, seed=0)
    assert found == {split: {ordered[i] for i in of} for split, of in again.items()}


def test_more_examples_leave_the_others_where_they_are() -> None:
    few = divide(part_of(index_keys(2000, "x")), test=0.1, valid=0.05, seed=0)
    many = divide(part_of(index_keys(5000, "x")), test=0.1, valid=0.05, seed=0)
    for split, rows in few.items():
        assert set(rows) <= set(many[split])


def test_fractions_are_about_right() -> None:
    # binomial: 5 standard deviations are 0.0047 and 0.0034, a false alarm in a million
    rows = divide(part_of(index_keys(100_000, "x")), test=0.1, valid=0.05, seed=0)
    assert abs(len(rows["test"]) / 100_000 - 0.10) < 0.005
    assert abs(len(rows["valid"]) / 90_000 - 0.05) < 0.004


def test_groups_stay_together() -> None:
    groups = mixed((np.arange(300) // 10).astype(np.uint64))
    rows = divide(part_of(index_keys(300, "x"), groups), test=0.1, valid=0.05, seed=0)
    sides = [set(of // 10) for of in rows.values()]
    assert len(sides) == 3
    assert sum(map(len, sides)) == 30


def test_one_group_is_not_torn_apart() -> None:
    rows = divide(part_of(index_keys(9, "x"), np.zeros(9, np.uint64)), test=0.1, valid=0.05, seed=0)
    assert list(rows) == ["train"]


def test_the_seed_changes_the_division() -> None:
    test = [set(open_data("digits", seed=seed).splits["test"].example_ids.tolist()) for seed in (0, 0, 1)]
    assert test[0] == test[1] != test[2]


def greys(count: int = 64, dims: int = 50) -> PartSplit:
    x = np.random.default_rng(0).integers(0, 256, (count, dims), dtype=np.uint8)
    return PartSplit(RawSplit(x, None, index_keys(count, "x")), np.arange(count))


@given(st.lists(st.integers(0, 63), min_size=1, max_size=20), st.sampled_from(["static", "dynamic", "threshold"]))
@settings(deadline=None)
def test_fixed_binarisation_does_not_depend_on_the_batch(indices: list[int], mode) -> None:
    split = BinarizedSplit(greys(), mode, seed=0)
    whole = split.batch(range(64)).x
    assert torch.equal(split.batch(indices).x, whole[indices])
    assert whole.dtype == torch.uint8
    assert set(whole.unique().tolist()) == {0, 1}


def test_dynamic_binarisation_follows_the_noise() -> None:
    split = BinarizedSplit(greys(), "dynamic", seed=0)
    first, same, other = (split.batch(range(64), Noise(1, step, "data")).x for step in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("value", [0, 1, 64, 200, 255])
def test_binarisation_has_the_grey_value_as_its_mean(mode, value: int) -> None:
    # 40,000 draws: 5 standard deviations are at most 0.0125; 0 and 255 are certain
    grey = PartSplit(RawSplit(np.full((400, 100), value, np.uint8), None, index_keys(400, "x")), np.arange(400))
    x = BinarizedSplit(grey, mode, seed=3).batch(range(400), Noise(0) if mode == "dynamic" else None).x
    p = value / 255
    assert abs(x.float().mean().item() - p) <= 5 * (p * (1 - p) / 40_000) ** 0.5


def test_threshold_cuts_at_127() -> None:
    x = np.array([[0, 127, 128, 255]], np.uint8)
    split = BinarizedSplit(PartSplit(RawSplit(x, None, index_keys(1, "x")), np.arange(1)), "threshold", 0)
    assert split.batch([0]).x.tolist() == [[0, 0, 1, 1]]


def test_validation_and_test_are_fixed_whatever_the_noise() -> None:
    data = open_data("digits", binarize="dynamic")
    for name in ("valid", "test"):
        split = data.split(name)
        assert torch.equal(split.batch(range(5), Noise(1)).x, split.batch(range(5)).x)
    assert data.schema.values == Binary()


def test_an_unknown_split_names_those_there_are() -> None:
    with raises("no-such-split"):
        open_data("digits").split("dev")


def test_shares_are_options():
    for valid, test in ((0.2, 0.3), (0.0, 0.5), (0.25, 0.0)):
        data = open_data("digits", valid_share=valid, test_share=test)
        counts = {name: len(split) for name, split in data.splits.items()}
        total = sum(counts.values())
        assert counts.get("test", 0) / total == pytest.approx(test, abs=0.03)
        assert counts.get("valid", 0) / total == pytest.approx(valid * (1 - test), abs=0.03)
        again = open_data(data.spec, **data.options)
        assert again.fingerprint == data.fingerprint
    with raises("bad-option"):
        open_data("digits", valid_share=1.0)
