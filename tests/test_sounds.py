"""Laws of sounds: windows are the recording, conversions are said, and what cannot be read is named."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import tessella
from expect import raises
from tessella.cli import main
from tessella.core.rng import Noise
from tessella.core.schema import UINT8, Integers, Real, Schema
from tessella.data import Data, open_data
from tessella.data.folders import read as module
from tessella.data.folders.read import windows_of
from tessella.data.inputs import Inputs
from tessella.kinds.base import kind_of
from tessella.kinds.mu_law import SAMPLES, mu_law_codes, mu_law_samples
from tessella.tasks.describe import DescribeConfig, describe_data

RATE = 8000


@dataclass(frozen=True)
class Model:
    """What a model is to INPUTS."""

    schema: Schema
    conditional: bool = False
    name: str = "a model"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


PCM16 = Integers(65536, -32768.0)


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(samples, channels)) * 3000).astype(np.int16)


def tone(hertz: float, rate: int, samples: int, amplitude: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)


def recordings(folder: Path, count: int = 12, *, ending: str = ".wav", **how: object) -> Path:
    """Write recordings of different lengths into two classes."""
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(700 + 900 * i, seed=i), RATE, **how)  # pyright: ignore[reportArgumentType]
    return folder


def everything(data: Data) -> torch.Tensor:
    assert data.all_examples is not None
    return data.all_examples.batch(range(len(data.all_examples))).x


def no_data(spec: str | None) -> Data:
    raise AssertionError(spec)


def said(data: Data, text: str) -> bool:
    return any(text in note for note in data.notes)


# mu-law


def test_mu_law_is_that_of_g711(tmp_path: Path) -> None:
    """All 65,536 samples become the bytes that libsndfile writes, and decode to what it reads."""
    x = np.arange(-32768, 32768).astype(np.int16)
    soundfile.write(tmp_path / "x.au", x, RATE, subtype="ULAW")
    codes = mu_law_codes(x)
    written = np.frombuffer((tmp_path / "x.au").read_bytes()[-len(x) :], np.uint8)
    assert np.array_equal(np.where(codes < 128, codes, 383 - codes.astype(int)), written)
    assert np.array_equal(mu_law_samples(codes), soundfile.read(tmp_path / "x.au", dtype="int16")[0])


def test_mu_law_codes_rise_with_pressure_and_come_back() -> None:
    assert (np.diff(mu_law_codes(np.arange(-32768, 32768)).astype(int)) >= 0).all()
    assert (np.diff(SAMPLES.astype(int)) > 0).sum() == 254  # only the two zeros are equal
    assert np.flatnonzero(mu_law_codes(SAMPLES) != np.arange(256)).tolist() == [127]  # the negative zero
    assert SAMPLES[[0, 111, 112, 127, 128, 129, 143, 144, 255]].tolist() == [
        -32124, -132, -120, 0, 0, 8, 120, 132, 32124
    ]  # fmt: skip


# windows


@pytest.mark.parametrize(
    ("ending", "subtype", "channels"),
    [(".wav", "PCM_16", 1), (".wav", "PCM_16", 2), (".wav", "PCM_U8", 1), (".wav", "PCM_U8", 2),
     (".flac", "PCM_16", 1), (".flac", "PCM_16", 2), (".aiff", "PCM_S8", 1), (".au", "PCM_16", 6)],
)  # fmt: skip
def test_windows_together_are_the_recording(tmp_path: Path, ending: str, subtype: str, channels: int) -> None:
    path = tmp_path / f"clip{ending}"
    soundfile.write(path, noise(20_500, channels), RATE, subtype=subtype)
    stored = soundfile.read(path, dtype="int16", always_2d=True)[0].astype(np.float32)
    eight = subtype.endswith("8")
    stored = stored / 256 + 128 if eight else stored
    data = open_data(str(tmp_path), seconds=0.25)
    assert (data.schema.shape, data.schema.rate, data.schema.lengths) == ((channels, 2000), RATE, True)
    assert data.schema.values == (UINT8 if eight else PCM16)
    x = everything(data)
    assert (len(x), x.dtype) == (11, torch.float32)
    assert said(data, "all 11 examples come from one file, which is not divided, so there is none for a test split")
    joined = torch.cat(list(x), 1)
    assert torch.equal(joined[:, :20_500].T, torch.from_numpy(stored))
    assert joined[:, 20_500:].isnan().all()


@pytest.mark.parametrize("streamed", [False, True])
def test_training_windows_begin_anywhere_in_their_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setattr(module, "MEMORY_FILES", 0 if streamed else 1000)
    folder = recordings(tmp_path, 30)
    shutil.copy(folder / "b" / "9.wav", folder / "b" / "again.wav")
    train = open_data(str(folder), seconds=0.25).split("train")
    wholes = [noise(700 + 900 * i, seed=i)[:, 0].astype(np.float32) for i in range(30)]
    fixed, rows, starts = train.batch(range(len(train))).x, np.arange(len(train)), set()
    for step in range(4):
        x = train.batch(rows, Noise(0, step)).x
        assert torch.equal(x.nan_to_num(1e9), train.batch(rows, Noise(0, step)).x.nan_to_num(1e9))
        for shifted, before in zip(x[:, 0].numpy(), fixed[:, 0].numpy(), strict=True):
            seen = shifted[~np.isnan(shifted)]
            assert np.isnan(shifted[len(seen) :]).all()
            (i,) = [i for i, whole in enumerate(wholes) if before[:9].tobytes() in whole.tobytes()]
            (start,) = [
                s for s in np.flatnonzero(wholes[i] == seen[0]) if np.array_equal(wholes[i][s : s + 2000], seen)
            ]
            starts.add(int(start) % 2000)
            assert start == 0 or len(wholes[i]) > 2000
    assert len(starts) > 100  # of at most 400
    assert torch.equal(fixed.nan_to_num(1e9), train.batch(rows).x.nan_to_num(1e9))


def test_bytes_without_short_windows_stay_bytes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", noise(4000), RATE, subtype="PCM_U8")
    data = open_data(str(tmp_path), seconds=0.25)
    assert (data.schema.lengths, everything(data).dtype) == (False, torch.uint8)


@pytest.mark.parametrize(("values", "of"), [("mu-law", UINT8), ("real", Real())])
def test_values_are_stored_as_asked(tmp_path: Path, values: str, of: object) -> None:
    soundfile.write(tmp_path / "clip.wav", noise(8000), RATE)
    data = open_data(str(tmp_path), values=values)  # pyright: ignore[reportArgumentType]
    x, stored = everything(data)[0, 0], noise(8000)[:, 0]
    assert (data.schema.values, data.schema.mu_law) == (of, values == "mu-law")
    if values == "real":
        assert torch.equal(x, torch.from_numpy(stored / np.float32(32768)))
        assert data.schema.scale[0] == pytest.approx(float(x.std()), rel=1e-3)
    else:
        assert np.array_equal(x.numpy(), mu_law_codes(stored))


def test_a_recording_stays_in_one_split_also_twice(tmp_path: Path) -> None:
    folder = recordings(tmp_path, 40)
    soundfile.write(folder / "b" / "twin.flac", noise(700 + 900 * 30, seed=30), RATE)
    shutil.copy(folder / "a" / "20.wav", folder / "a" / "again.wav")
    data = open_data(str(folder), seconds=0.5)
    assert set(data.splits) == {"train", "valid", "test"}
    assert said(data, "are byte-identical to others")
    homes: dict[bytes, set[str]] = {}
    owners = {
        noise(700 + 900 * i, seed=i)[at : at + 99].tobytes(): i for i in range(40) for at in range(0, 36000, 4000)
    }
    for name, split in data.splits.items():
        for x in split.batch(range(len(split))).x:
            start = x[0, :99][~x[0, :99].isnan()].numpy().astype(np.int16).tobytes()
            homes.setdefault(str(owners[start]).encode(), set()).add(name)
    assert len(homes) == 40
    assert all(len(of) == 1 for of in homes.values())


@pytest.mark.parametrize("streamed", [False, True])
def test_opening_twice_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool) -> None:
    monkeypatch.setattr(module, "MEMORY_FILES", 0 if streamed else 1000)
    first = open_data(str(recordings(tmp_path / "x")), seconds=0.3)
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    again = open_data(str(tmp_path / "y"), **first.options)
    assert first.fingerprint == again.fingerprint
    assert torch.equal(everything(first).nan_to_num(1e9), everything(again).nan_to_num(1e9))
    assert open_data(str(tmp_path / "x"), seconds=0.3, values="mu-law").fingerprint != first.fingerprint


def test_resampling_keeps_the_pitch_and_has_no_seams(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", tone(700, 44_100, 132_300), 44_100)
    data = open_data(str(tmp_path), rate=8000, seconds=0.3, values="real")
    assert said(data, "1 of 1 recordings of 44,100 Hz are resampled to 8,000 Hz")
    x = torch.cat(list(everything(data)[:, 0])).numpy()
    assert len(x) == 24_000
    inner = slice(400, -400)
    assert np.abs(x - tone(700, 8000, len(x)))[inner].max() < 1e-3


def test_vorbis_windows_are_those_of_the_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.ogg", noise(30_000, 2) / 32768, RATE)
    whole = soundfile.read(tmp_path / "clip.ogg", dtype="float32", always_2d=True)[0]
    data = open_data(str(tmp_path), seconds=0.5, values="real")
    assert np.array_equal(torch.cat(list(everything(data)), 1)[:, :30_000].T.numpy(), whole)


def test_inputs_are_all_windows_of_a_recording(tmp_path: Path) -> None:
    folder = recordings(tmp_path / "x", 4)
    soundfile.write(tmp_path / "long.flac", np.repeat(noise(25_000), 2, 1), 2 * RATE)
    (folder / "a" / "bad.wav").write_bytes(b"bad")
    shutil.copy(folder / "a" / "0.wav", folder / "b" / "3@1.wav")
    schema = open_data(str(folder), seconds=0.25).schema
    with pytest.warns(UserWarning, match="recordings|sounds") as noted:
        named = list(Inputs(Model(schema), [str(tmp_path / "long.flac"), str(folder)], no_data))
    notes = " ".join(str(one.message) for one in noted)
    for text in ("of 16,000 Hz are resampled to 8,000 Hz", "in stereo are mixed down to mono", "a/bad (not a sound)"):
        assert text in notes, text
    names = [name for batch in named for name in batch.names]
    assert names[:7] == ["long", *(f"long@{part}" for part in range(1, 7))]
    assert names[7:] == ["a/0", "a/2", "a/2@1", "b/1", "b/3", "b/3@1", "b/3-1"]
    x = torch.cat([batch.batch.x for batch in named])
    assert (~x.isnan()).sum((1, 2)).tolist() == [*[2000] * 6, 500, 700, 2000, 500, 1600, 2000, 1400, 700]


def test_data_for_a_model_is_converted_to_what_it_was_trained_on(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "clip.wav", np.repeat(noise(25_000), 2, 1), 2 * RATE)
    like = replace(Schema(1, (2000,), UINT8), rate=float(RATE), mu_law=True)
    with raises("nothing-readable"):  # its last window is shorter than the model takes
        open_data(str(tmp_path), like=like)
    data = open_data(str(tmp_path), like=replace(like, lengths=True))
    assert replace(data.schema, observed=1.0) == replace(like, lengths=True)
    x = everything(data)
    assert (x.shape, (~x.isnan()).sum()) == ((7, 1, 2000), 12_500)


def test_windows_are_joined_by_their_names() -> None:
    assert windows_of(["a", "a@1", "a@2", "b", "b@2", "a@3", "c@1"]) == {"a": 3, "b": 1, "b@2": 1, "a@3": 1, "c@1": 1}


def test_the_level_of_the_training_split_is_measured(tmp_path: Path) -> None:
    data = open_data(str(recordings(tmp_path)))
    x = data.split("train").batch(range(len(data.split("train")))).x.double() + 0.5
    assert data.schema.scale == pytest.approx([float(x.square().nanmean().sqrt())])
    (quiet := tmp_path / "quiet").mkdir()
    soundfile.write(quiet / "1.wav", np.zeros(9000, np.int16), RATE)
    assert open_data(str(quiet)).schema.scale == (1.0,)


def test_windows_make_the_file_of_the_whole(tmp_path: Path) -> None:
    x = torch.from_numpy(noise(5000, 2).T.copy()).float()
    for schema in (Schema(2, (2000,), PCM16, rate=8000.0), Schema(2, (2000,), Real(-1, 1), rate=8000.0)):
        kind = kind_of(schema)
        parts = [x[:, :2000], x[:, 2000:4000], torch.cat([x[:, 4000:], torch.full((2, 1000), torch.nan)], 1)]
        kind.write_joined(tmp_path / "joined", iter(parts))
        kind.write(tmp_path / "whole", x)
        assert (tmp_path / "joined").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.slow
def test_a_recording_comes_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = recordings(tmp_path / "x", 40)
    network = ["--steps", "2", "--width", "8", "--depth", "1", "--codebook-size", "8", "--grid-size", "8"]
    assert main(["train", "vqvae", "--data", str(folder), "--seconds", "0.5", *network, "--out", "run"]) == 0
    files = [str(folder / "b" / "39.wav"), str(folder / "a" / "2.wav")]
    assert main(["compress", "run", *files, "-o", "x.tes"]) == 0
    assert main(["decompress", "x.tes", "-o", "back"]) == 0
    assert sorted(path.name for path in Path("back").iterdir()) == ["2.wav", "39.wav"]
    for file in files:
        assert Path("back", Path(file).name).read_bytes() == Path(file).read_bytes()


@pytest.mark.slow
def test_a_part_of_a_long_recording_is_edited_and_spoken_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording has ten windows, the last one short."""
    monkeypatch.chdir(tmp_path)
    folder = recordings(tmp_path / "x", 40)
    network = ["--steps", "2", "--width", "8", "--depth", "1", "--codebook-size", "8", "--grid-size", "8"]
    assert main(["train", "cvqvae", "--data", str(folder), "--seconds", "0.5", *network, "--out", "run"]) == 0
    file = folder / "b" / "39.wav"
    before = soundfile.read(file, dtype="int16")[0]

    def edited(out: str, *how: str, name: str = "edited.wav") -> np.ndarray:
        assert main(["edit", "run", str(file), *how, "--out", out]) == 0
        return soundfile.read(Path(out, name), dtype="int16")[0]

    spoken, part = edited("whole", "--label", "a"), edited("part", "--label", "a", "--seconds", "1.2:2.1")
    assert len(spoken) == len(part) == len(before)
    assert np.array_equal(part[9600:16_800], spoken[9600:16_800])
    outside = np.r_[part[:9000], part[17_400:]]
    assert np.array_equal(outside, np.r_[before[:9000], before[17_400:]]), "who spoke is not known, so nothing changes"
    code = edited("code", "--label", "b", "--code", "3", "--seconds", "4.1:4.2", "--blend-original")
    assert np.flatnonzero(code != before).min() > 4 * RATE
    assert np.flatnonzero(code != before).max() < 4.3 * RATE
    drawn = edited("drawn", "--label", "b", "--resample", "-n", "1", "--seconds", "4.1:4.2", name="edited-1.wav")
    assert len(drawn) == len(before)
    assert main(["edit", "run", str(file), "--label", "b", "--resample", "--seconds", "1:2", "--out", "no"]) == 2
    assert main(["edit", "run", str(file), "--label", "c", "--out", "no"]) == 2
    assert main(["encode", "run", str(file), "--out", "codes.npz"]) == 0
    assert main(["decode", "run", "codes.npz", "--out", "no"]) == 2
    assert main(["decode", "run", "codes.npz", "--label", "a", "--out", "decoded"]) == 0
    windows = soundfile.read(Path("decoded", "39.wav"), dtype="int16")[0]
    assert len(windows) == len(before)


# labels


def speakers(folder: Path) -> Path:
    for i in range(24):
        path = (
            folder / ("test" if i % 8 == 7 else "train") / str(i % 2) / f"{i % 2}_{('ann', 'bob')[i % 3 > 0]}_{i}.wav"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(900, seed=i), RATE)
    return folder


@pytest.mark.parametrize(
    "label", ["{digit}_{speaker}_{index}:speaker", "{folder}/{digit}_{speaker}_{n}:speaker", "speaker"]
)
def test_labels_come_from_names_or_a_table_beside_the_files(tmp_path: Path, label: str) -> None:
    folder = speakers(tmp_path)
    if label == "speaker":
        rows = [f"{p.relative_to(folder).with_suffix('')};{p.stem.split('_')[1]}" for p in folder.rglob("*.wav")]
        (folder / "who.csv").write_text("file;speaker\n" + "\n".join(rows))
    data = open_data(str(folder), label=label)
    assert (data.schema.classes, len(data.split("test"))) == (("ann", "bob"), 3)
    assert "speaker" in data.labelling
    train = data.split("train")
    assert train.labels is not None
    assert 0.5 < train.labels.mean() < 0.9
    index = train.factors.get("n", train.factors.get("index"))
    assert ("digit" in train.factors) == (index is not None) == ("{" in label)
    if index is not None:  # numbers that are no multiples of 3 are bob's, odd ones the digit 1
        assert np.array_equal(train.labels, index.astype(int) % 3 > 0)
        assert np.array_equal(train.factors["digit"].astype(int), index.astype(int) % 2)
    assert not said(data, "who.csv")
    assert open_data(str(folder), **data.options).fingerprint == data.fingerprint
    assert open_data(str(folder)).schema.classes == ("0", "1")
    (folder / "test" / "who.csv").write_text("file,speaker\n1/1_ann_15,ann\n1/1_bob_7,bob\n1/1_bob_23,bob\n")
    (folder / "train" / "1" / "who.csv").write_text("file,speaker\n1_bob_1.wav,bob\n")
    words = [str(folder / "test"), str(folder / "train" / "1" / "1_bob_1.wav")]
    named = list(Inputs(Model(data.schema, conditional=True), words, no_data, labelled_by=label))
    assert [name for batch in named for name in batch.classes] == ["ann", "bob", "bob", "bob"]


def test_labels_that_match_nothing_are_refused_with_an_example(tmp_path: Path) -> None:
    folder = str(speakers(tmp_path))
    with raises("no-such-label", example="test/1/1_ann_15.wav"):
        open_data(folder, label="{digit}-{speaker}:speaker")
    with raises("no-such-label"):
        open_data(folder, label="speaker")
    for label in (
        "{digit}_{speaker}_{index}",
        "{digit}_{speaker}:who",
        "{digit}_{1}:digit",
        "{digit_{speaker}:speaker",
        "{a}_{a}:a",
    ):
        with raises("bad-option"):
            open_data(folder, label=label)
    (tmp_path / "who.csv").write_text("file,speaker\nnobody.wav,ann\n")
    with raises("no-such-label"):
        open_data(folder, label="speaker")
    (tmp_path / "who.csv").write_text("file,speaker\ntrain/0/0_ann_0.wav,ann\ntrain/0/0_bob_2.wav,bob\n")
    data = open_data(folder, label="speaker")
    assert said(data, "22 of 24 recordings without a label were left out")


# what describe says


def test_describe_says_durations_rates_levels_and_lattices(tmp_path: Path) -> None:
    folder = recordings(tmp_path, 4)
    few = np.random.default_rng(0).integers(-60, 60, 4000).astype(np.int16)
    soundfile.write(folder / "a" / "bytes.wav", few * 256, RATE)
    soundfile.write(folder / "a" / "even.wav", np.append(few[:3000] * 2, 2**14).astype(np.int16), RATE)
    loud = np.zeros(16_000, np.int16)
    loud[:160:2], loud[1:160:2] = 32767, -32768
    soundfile.write(folder / "b" / "clipped.flac", np.stack([loud] * 2, 1), 2 * RATE)
    described = describe_data(DescribeConfig(spec=str(folder)))
    files = described.to_json()["files"]
    assert files["recordings"] == "7 of 0.0875 to 1 s, median 0.375 s; 0.0 minutes in all"
    assert (files["rates"], files["channels"]) == ("8,000 Hz (6), 16,000 Hz (1)", "mono (6), stereo (1)")
    assert files["coding"] == "16 bits"
    assert "peak 0.0 dBFS" in files["levels"]
    assert "clipped" in files["levels"]
    assert files["lattice"] == (
        "1 of 7 recordings use only every second value; 1 of 7 recordings use only every 256th value; "
        "2 of 7 recordings use only up to 121 of the values in their range"
    )
    page = str(described.page())
    assert "every 256th value" in page
    assert describe_data(DescribeConfig(spec="digits")).to_json()["files"] == {}


# bad input


def test_broken_files_are_skipped_with_their_reason(tmp_path: Path) -> None:
    recordings(tmp_path, 6)
    good = (tmp_path / "a" / "4.wav").read_bytes()
    (tmp_path / "a" / "empty.wav").write_bytes(b"")
    (tmp_path / "a" / "text.wav").write_text("no sound at all")
    (tmp_path / "a" / "half.wav").write_bytes(good[: len(good) // 2])
    for rate in (0, 1):
        (tmp_path / "a" / f"slow{rate}.wav").write_bytes(good[:24] + rate.to_bytes(4, "little") + good[28:])
    soundfile.write(tmp_path / "a" / "nothing.wav", noise(0), RATE)
    soundfile.write(tmp_path / "b" / "cut.flac", noise(20_000), RATE)
    whole = (tmp_path / "b" / "cut.flac").read_bytes()
    (tmp_path / "b" / "cut.flac").write_bytes(whole[: len(whole) // 2])
    soundfile.write(tmp_path / "b" / "holes.wav", np.array([0.1, np.nan]), RATE, subtype="FLOAT")
    data = open_data(str(tmp_path))
    (line,) = [note for note in data.notes if "could not be read" in note]
    assert line.startswith("8 of 14 recordings")
    assert data.all_examples is not None
    for name in ("empty.wav", "text.wav"):
        (tmp_path / name).write_bytes((tmp_path / "a" / name).read_bytes())
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    with raises("nothing-readable"):
        open_data(str(tmp_path))


def test_what_is_changed_is_said(tmp_path: Path) -> None:
    recordings(tmp_path, 6)
    soundfile.write(tmp_path / "a" / "stereo.wav", np.stack([noise(500)[:, 0], -noise(500)[:, 0]], 1), RATE)
    soundfile.write(tmp_path / "a" / "deep.wav", noise(500), RATE, subtype="PCM_24")
    soundfile.write(tmp_path / "a" / "byte.wav", noise(500), RATE, subtype="PCM_U8")
    soundfile.write(tmp_path / "a" / "float.wav", noise(500) / 32768, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "a" / "five.wav", noise(5), RATE)
    data = open_data(str(tmp_path), seconds=3)
    for text in (
        "1 of 11 recordings in stereo are mixed down to mono",
        "1 of 11 recordings of 24 bits are rounded to 16 bits",
        "1 of 11 recordings of floats are rounded to 16 bits",
        "1 of 11 recordings of 8 bits are stored as 16 bits",
        "hold every recording whole; the longest has 5,200 samples",
    ):
        assert said(data, text), text
    x = everything(data)
    assert (x.shape, data.schema.values) == ((11, 1, 24_000), PCM16)
    assert ((~x.isnan()).sum((1, 2)) == 5).sum() == 1


def test_options_out_of_their_range_are_refused(tmp_path: Path) -> None:
    spec = str(recordings(tmp_path, 4))
    for options in ({"rate": 0}, {"rate": 1}, {"seconds": 0.0}, {"seconds": 0.001}, {"seconds": 1e9}, {"values": "x"}):
        with raises("bad-option"):
            open_data(spec, **options)  # pyright: ignore[reportArgumentType]
    for options in ({"size": 8}, {"binarize": "static"}):
        with raises("no-pictures"):
            open_data(spec, **options)  # pyright: ignore[reportArgumentType]
    for options in ({"values": "pcm"}, {"seconds": 1.0}, {"rate": 8000}):
        with raises("no-sounds"):
            open_data("digits", **options)  # pyright: ignore[reportArgumentType]
        with raises("no-sounds"):
            open_data("tones", **options)  # pyright: ignore[reportArgumentType]


def test_whole_windows_are_all_the_sound_that_fills_them(tmp_path: Path) -> None:
    folder = recordings(tmp_path)  # of 700, 1,600, ..., 10,600 samples
    data = open_data(str(folder), seconds=0.25, whole_windows=True)
    assert not data.schema.lengths
    x = everything(data)
    assert len(x) == sum((700 + 900 * i) // 2000 for i in range(12))
    assert not x.is_floating_point() or not x.isnan().any()
    assert any("ends that are shorter than a window are left out" in line for line in data.notes)
    assert any("2 of 12 recordings have no whole one" in line for line in data.notes)
    assert open_data(str(folder), whole_windows=True).schema.spatial == (1664,)  # 90 % have 1,690 or more
    with raises("too-short"):
        open_data(str(folder), seconds=2.0, whole_windows=True)


def test_a_flow_takes_whole_windows_and_says_so(tmp_path: Path) -> None:
    folder = str(recordings(tmp_path))
    with raises("partial"):
        tessella.Flow(open_data(folder, seconds=0.25).schema)
    assert tessella.Flow(open_data(folder, seconds=0.25, whole_windows=True).schema, width=8).schema.rate == RATE
