"""Laws of series: windows are the series, splits are consecutive in time, and what is decided is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from expect import raises
from tessella.core.schema import UINT8, Binary, Real
from tessella.data import Data, open_data
from tessella.data.series.read import read_series
from tessella.data.series.windows import dominant_period


def table(path: Path, header: str, *columns: object) -> str:
    rows = zip(*columns, strict=True)  # pyright: ignore[reportArgumentType]
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def wave(rows: int, period: float = 25, seed: int = 0) -> np.ndarray:
    return np.sin(2 * np.pi * np.arange(rows) / period) + 0.05 * np.random.default_rng(seed).normal(size=rows)


def ucr(folder: Path, rows: int = 3000, end: int = 1200) -> str:
    path = folder / f"007_UCR_Anomaly_wave_{end}_{rows - 300}_{rows - 280}.txt"
    path.write_text("\n".join(f"  {v:.7e}" for v in wave(rows)))
    return str(path)


def everything(data: Data, name: str | None = None) -> torch.Tensor:
    split = data.all_examples if name is None else data.split(name)
    assert split is not None
    return split.batch(range(len(split))).x


def said(data: Data, text: str) -> bool:
    return any(text in note for note in data.notes)


def hours(rows: int) -> list[str]:
    return np.datetime_as_string(np.datetime64("2020-02-27T00", "h") + np.arange(rows)).tolist()


def test_windows_put_together_are_the_series(tmp_path: Path) -> None:
    x, y = wave(1000), wave(1000, seed=1)
    spec = table(tmp_path / "x.csv", "timestamp,a,b", [t.replace("T", " ") + ":00" for t in hours(1000)], x, y)
    data = open_data(spec, kind="series", window=64)
    assert (data.schema.shape, data.schema.values, data.schema.columns) == ((2, 64), Real(), ("a", "b"))
    assert (data.schema.lengths, data.schema.missing, data.schema.rate) == (False, False, 0)
    stored = torch.from_numpy(np.stack([x, y])).float()
    parts = [torch.cat(list(everything(data, name)), 1) for name in ("valid", "test")]
    assert [part.shape[1] for part in parts] == [64, 128]
    assert torch.equal(torch.cat(parts, 1), stored[:, -192:])
    train = everything(data, "train")
    starts = [*range(0, 808 - 64 + 1, 16), 744]
    assert said(data, "training windows overlap: one begins every 16 rows")
    assert torch.equal(train, torch.stack([stored[:, at : at + 64] for at in dict.fromkeys(starts)]))
    whole = everything(data)
    assert torch.equal(torch.cat(list(whole[:-1]), 1), stored[:, :960])
    assert torch.equal(whole[-1], stored[:, -64:])
    assert said(data, "time is read from timestamp: 2020-02-27 00:00 to 2020-04-08 15:00, a row every 1 hour")


def test_training_windows_hold_nothing_of_other_splits(tmp_path: Path) -> None:
    spec = ucr(tmp_path)
    data = open_data(spec)
    x = wave(3000)
    assert data.schema.shape == (1, 64)  # twice the period, in multiples of 16
    assert everything(data, "train").max() <= np.float32(x[:1136].max())
    last = everything(data, "train")[-1, 0].numpy()
    assert np.allclose(last, x[1136 - 64 : 1136], rtol=1e-6)
    test = everything(data, "test")
    joined = torch.cat(list(test[:, 0]))
    assert np.allclose(joined[: 3000 - 1200], x[1200:], rtol=1e-6)
    assert joined[1800:].isnan().all()
    assert data.schema.lengths
    again = open_data(spec, **data.options, like=data.schema)
    assert again.fingerprint == data.fingerprint


def test_labels_are_aligned_and_no_channel(tmp_path: Path) -> None:
    spec = ucr(tmp_path)
    (series,) = read_series(spec, [])
    assert series.labels is not None
    assert np.flatnonzero(series.labels).tolist() == list(range(2700, 2721))
    labels = (np.arange(500) % 100 > 95).astype(int)
    (tmp_path / "x.out").write_text("".join(f"{v:.2f},{k}\n" for v, k in zip(wave(500), labels, strict=True)))
    plain = table(tmp_path / "y.csv", "a,is_anomaly", wave(500), labels)
    for path in (str(tmp_path / "x.out"), plain):
        (series,) = read_series(path, [])
        assert series.labels is not None
        assert np.array_equal(series.labels, labels == 1)
        assert series.x.shape == (500, 1)
    assert open_data(str(tmp_path / "x.out")).schema.channels == 1


def test_columns_that_are_no_channels_are_said(tmp_path: Path) -> None:
    rows = np.arange(400)
    at = np.datetime64("2020-02-27T00", "h") + rows
    day = at.astype("M8[D]")
    value = [f"{v:.3f}" if i % 7 else "NA" for i, v in enumerate(wave(400, 24))]
    spec = table(
        tmp_path / "air.csv",
        "No,year,month,day,hour,pm,wind,zero",
        rows + 1,
        at.astype("M8[Y]").astype(int) + 1970,
        at.astype("M8[M]").astype(int) % 12 + 1,
        (day - at.astype("M8[M]").astype("M8[D]")).astype(int) + 1,
        (at - day).astype(int),
        value,
        ["NW"] * 400,
        [0] * 400,
    )
    data = open_data(spec, kind="series")
    assert data.schema.columns == ("pm",)
    assert data.schema.missing
    assert data.schema.shape == (1, 48)
    assert data.schema.observed == pytest.approx(6 / 7, abs=0.01)
    assert said(data, "time is read from year, month, day, hour: 2020-02-27 00:00:00 to 2020-03-14 15:00:00")
    assert said(data, "No only counts the rows")
    assert said(data, "columns that hold no numbers are left out: wind")
    assert said(data, "constant and empty columns are left out: zero")
    assert open_data(spec, kind="series", seconds=36 * 3600).schema.spatial == (36,)
    x = everything(data)
    assert int(x.isnan().sum()) > 50


def test_steps_that_differ_are_said(tmp_path: Path) -> None:
    times = [t for i, t in enumerate(hours(200)) if i != 50]
    data = open_data(table(tmp_path / "x.csv", "time,a", times, wave(199)), kind="series")
    assert said(data, "a row every 1 hour, but 1 of 198 steps differ, the first to row 51 (2 hours)")


def test_folders_hold_a_series_a_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("valid", 2), ("test", 2)):
        (tmp_path / split).mkdir()
        for i in range(count):
            np.save(tmp_path / split / f"{i}.npy", (rng.random((20 + 10 * i, 88)) < 0.05).astype(np.uint8))
    data = open_data(str(tmp_path), kind="series")
    assert (data.schema.shape, data.schema.values, data.schema.lengths) == ((88, 80), Binary(), True)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 6, "valid": 2, "test": 2}
    assert said(data, "hold every series whole; the longest has 70")
    first = np.load(tmp_path / "test" / "0.npy")
    x = everything(data, "test")[0].numpy()
    assert np.array_equal(x[:, :20].T, first)
    assert np.isnan(x[:, 20:]).all()


@pytest.mark.parametrize("turned", [False, True])
def test_axes_of_arrays_and_splits_by_file(tmp_path: Path, turned: bool) -> None:
    for i in range(20):
        x = np.random.default_rng(i).integers(0, 256, (50 + i, 60)).astype(np.uint8)
        np.save(tmp_path / f"{i}.npy", x.T if turned else x)
    data = open_data(str(tmp_path), kind="series", window=32)
    assert (data.schema.channels, data.schema.values) == (60, UINT8)
    homes = [{x[0, :32].numpy().tobytes() for x in everything(data, name)} for name in data.splits]
    assert len(set.union(*homes)) == sum(map(len, homes))
    assert data.division.count("of 20 series") == len(data.splits)


def test_the_period_is_that_of_the_wave() -> None:
    assert dominant_period(wave(2000, 37)[:, None]) == 37
    assert dominant_period(np.random.default_rng(0).normal(size=(2000, 1))) == 0
    assert dominant_period(np.ones((100, 1))) == 0


def test_bad_series_are_refused(tmp_path: Path) -> None:
    def bad(code: str, header: str, *columns: object, **options: object) -> None:
        with raises(code):
            open_data(table(tmp_path / "x.csv", header, *columns), **{"kind": "series", **options})  # pyright: ignore[reportArgumentType]

    times = hours(99)
    bad("time-goes-backwards", "time,a", [*times[:50], *times[49::-1][:49]], wave(99))
    bad("all-missing", "time,a", times, ["NA"] * 99)
    bad("window-too-long", "time,a", times, wave(99), window=100)
    bad("no-numbers", "time,a", times, ["red", "green", "blue"] * 33)
    bad("too-short", "time,a", times[:1], [1])
    bad("not-finite", "time,a", times, [*wave(98), "inf"])
    bad("no-time", "time,a", [*times[:98], ""], wave(99))
    bad("no-such-label", "time,a", times, wave(99), label="b")
    bad("no-rate", "a,b", wave(99), wave(99), seconds=3.0)
    bad("no-series", "a,b", wave(99), wave(99), kind="signal", window=3)
    bad("bad-option", "a,b", wave(99), wave(99), window=1)
    bad("no-pictures", "a,b", wave(99), wave(99), binarize="static")
    (tmp_path / "x.csv").write_text("")
    with raises("empty"):
        open_data(str(tmp_path / "x.csv"), kind="series")
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4)))
    with raises("no-series"):
        open_data(str(tmp_path / "x.npy"), kind="series")
