"""Lossless files give back what was given, or say what they do not; and "damaged" is said of damage only."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from expect import raises
from making import make
from tessella.cli import main
from tessella.coding import coders, files
from tessella.coding.container import Container
from tessella.coding.weights import Weights
from tessella.core.batches import Batch
from tessella.core.schema import Schema
from tessella.data.inputs import NamedBatch
from tessella.foundation import output_folder
from tessella.foundation.errors import DataError
from tessella.models.base import Model

WEIGHTS = Weights("run", "0" * 12, "uniform")
TINY = ("--quiet", "--steps", "2", "--width", "8", "--depth", "1", "--grid-size", "4", "--codebook-size", "8")


def noise(*shape: int, high: int = 256, kind: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, high, shape).astype(kind)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of grey pictures, one of colour, both 8 x 8."""
    home = tmp_path_factory.mktemp("runs")
    (home / "pics").mkdir()
    for i in range(20):
        Image.fromarray(np.roll(noise(8, 8, 3), i)).save(home / "pics" / f"{i}.png")
    assert main(["train", "vqvae", "--data", "digits", "--out", str(home / "grey"), *TINY]) == 0
    assert main(["train", "vqvae", "--data", str(home / "pics"), "--out", str(home / "colour"), *TINY]) == 0
    return {name: home / name for name in ("grey", "colour")}


# every kind of picture


def deep_png(channels: int) -> bytes:
    """A PNG of 16 bits a value, which Pillow opens as 8 without a word unless it is grey."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + noise(8 * channels, high=1 << 16, kind=np.uint16).tobytes() for _ in range(8))
    head = part(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


def write_kinds(folder: Path) -> None:
    """One picture of each kind."""
    folder.mkdir()
    colour, alpha = Image.fromarray(noise(8, 8, 3)), Image.fromarray(noise(8, 8, 4))
    opaque, greyish = colour.convert("RGBA"), Image.fromarray(noise(8, 8)).convert("RGB")
    palette = colour.quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, image, options in (
        ("grey.png", Image.fromarray(noise(8, 8)), {}),
        ("wide.bmp", Image.fromarray(noise(5, 19)), {}),
        ("bits.png", Image.fromarray(noise(8, 8, high=2) * 255).convert("1"), {}),
        ("greyish.png", greyish, {}),
        ("colour.png", colour, {}),
        ("photo.jpg", colour, {}),
        ("grey-photo.jpeg", colour.convert("L"), {}),
        ("opaque.png", opaque, {}),
        ("palette.png", palette, {}),
        ("grey-alpha.png", alpha.convert("LA"), {}),
        ("alpha.png", alpha, {}),
        ("alpha.webp", alpha, {"lossless": True, "exact": True}),
        ("palette-clear.png", palette, {"transparency": 3}),
        ("keyed.png", colour, {"transparency": colour.getpixel((0, 0))}),
        ("moving.gif", palette, {"save_all": True, "append_images": [palette.rotate(90)]}),
        ("print.jpg", alpha.convert("CMYK"), {}),
        ("deep.tif", Image.fromarray(noise(8, 8, high=1 << 16, kind=np.uint16)), {}),
        ("counts.tiff", Image.fromarray(noise(8, 8, high=1 << 30, kind=np.int32)), {}),
        ("heat.tif", Image.fromarray(noise(8, 8).astype(np.float32) / 7), {}),
        ("lying.jpg", Image.fromarray(noise(6, 9)), {"exif": turned}),
        ("lying.tif", Image.fromarray(noise(6, 9)), {"exif": turned}),
    ):
        image.save(folder / name, **options)
    for channels in (1, 2, 3, 4):
        (folder / f"deep-{channels}.png").write_bytes(deep_png(channels))
    (folder / "deep.ppm").write_bytes(b"P6 8 8 65535\n" + noise(384).tobytes())
    (folder / "shallow.pgm").write_bytes(b"P5 8 8 15\n" + noise(64, high=16).tobytes())


ALWAYS_KEPT = {
    *(f"deep-{channels}.png" for channels in (1, 2, 3, 4)),
    *("deep.ppm", "shallow.pgm", "deep.tif", "counts.tiff", "heat.tif", "print.jpg", "moving.gif"),
    *("alpha.png", "alpha.webp", "grey-alpha.png", "palette-clear.png", "keyed.png"),
}
"""What neither a model of grey nor one of colour can hold."""


@pytest.mark.parametrize(
    ("run", "kept"),
    [("colour", set()), ("grey", {"colour.png", "photo.jpg", "opaque.png", "palette.png"})],
)
def test_every_kind_of_picture_comes_back_bit_for_bit(
    run: str, kept: set[str], runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kinds(tmp_path / "all")
    # one name each, or the second would be called otherwise
    for path in sorted((tmp_path / "all").iterdir()):
        path.rename(path.with_stem(f"{path.stem}{path.suffix.replace('.', '-')}"))
    there = {f"{Path(n).stem}{Path(n).suffix.replace('.', '-')}{Path(n).suffix}" for n in ALWAYS_KEPT | kept}
    file, back = tmp_path / "f.tes", tmp_path / "back"
    assert main(["compress", str(runs[run]), str(tmp_path / "all"), "--native-size", "-o", str(file), "--quiet"]) == 0
    notes = capsys.readouterr().err
    assert main(["decompress", str(file), "-o", str(back), "--quiet"]) == 0
    assert "1 palettes" in notes if run == "colour" else "with alpha" in notes
    assert "2 turned upright by EXIF" in notes
    assert notes.splitlines()[0].removeprefix("tessella: note: ") in capsys.readouterr().err
    for path in (tmp_path / "all").iterdir():
        if path.name in there:
            assert (back / path.name).read_bytes() == path.read_bytes(), path.name
            continue
        # as a stream: of a TIFF that lies on its side Pillow maps the file by the wrong size
        with Image.open(io.BytesIO(path.read_bytes())) as image, Image.open(back / f"{path.stem}.png") as given:
            upright = ImageOps.exif_transpose(image)
            upright = upright.convert("RGB") if upright.mode == "P" else upright
            assert given.mode == upright.mode, path.name
            assert np.array_equal(np.asarray(given), np.asarray(upright)), path.name
    assert len(list(back.iterdir())) == len(list((tmp_path / "all").iterdir()))
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"{len(there)} files, unchanged" in said
    assert "turned upright" in said


def test_what_is_fitted_is_said_in_the_title_and_in_the_file(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").mkdir()
    for name, size in {"a": (8, 8), "b": (20, 9)}.items():
        Image.fromarray(noise(*size)).save(tmp_path / "p" / f"{name}.png")
    file = str(tmp_path / "f.tes")
    assert main(["compress", str(runs["grey"]), str(tmp_path / "p"), "-o", file]) == 0
    said = capsys.readouterr()
    assert "2 examples, lossless of the pictures resized to 8x8 (1 of them)" in " ".join(said.out.split())
    assert "pictures of other sizes (1) are fitted to 8x8 pixels: --native-size keeps their sizes" in said.err
    assert main(["inspect", file]) == 0
    assert "pictures of other sizes (1) are fitted to 8x8 pixels" in capsys.readouterr().out
    assert main(["compress", str(runs["grey"]), "0", "-o", file, "--overwrite"]) == 0
    assert "lossless of the examples of the split test as the run reads its data" in " ".join(
        capsys.readouterr().out.split()
    )


def test_every_byte_of_a_kept_file_counts(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    Image.fromarray(noise(8, 8, 4)).save(tmp_path / "p" / "alpha.png")
    (tmp_path / "p" / "plain.pgm").write_bytes(b"P5 40 40 15\n" + bytes(1600))
    file = tmp_path / "f.tes"
    assert main(["compress", str(runs["grey"]), str(tmp_path / "p"), "-o", str(file), "--quiet"]) == 0
    data = file.read_bytes()
    assert len(data) < 1000  # one is packed
    for at in range(0, len(data), 3):
        for draft in (data[:at], data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]):
            file.write_bytes(draft)
            with pytest.raises(DataError):
                list(Container(str(file)).files())


def test_a_kept_file_is_a_picture_or_is_not_written(tmp_path: Path, refused: Callable[..., str]) -> None:
    from tessella.coding import originals

    (tmp_path / "p").mkdir()
    Image.fromarray(noise(8, 8, 4)).save(tmp_path / "p" / "a.png")
    for name, complaint in ((".bashrc", "no picture"), ("../up.png", "leads out"), ("/x.png", "leads out")):
        file = tmp_path / "f.tes"
        judge = originals.Originals(Schema.of((1, 8, 8), "uint8"), lossy=False, native_size=True)
        judge.files.append((name, str(tmp_path / "p" / "a.png")))
        model = made("vqvae", Schema.of((1, 8, 8), "uint8"))
        files.write_compressed(model, [], str(file), WEIGHTS, originals=judge)
        assert complaint in refused("decompress", file, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# what is written


def test_nothing_is_overwritten_unasked(
    runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run, file, codes, out = str(runs["grey"]), str(tmp_path / "f.tes"), str(tmp_path / "c.npz"), tmp_path / "out"
    assert main(["compress", run, "0", "1", "2", "-o", file, "--quiet"]) == 0
    before = Path(file).read_bytes()
    assert "exists already" in refused("compress", run, "0", "-o", file)
    assert Path(file).read_bytes() == before
    assert main(["encode", run, "0", "1", "2", "-o", codes]) == 0
    for command in (["decompress", file], ["decode", run, codes]):
        out.mkdir()
        (out / "test-1.png").write_bytes(b"mine")
        assert "test-1.png" in refused(*command, "-o", out)
        assert [path.name for path in out.iterdir()] == ["test-1.png"]
        assert (out / "test-1.png").read_bytes() == b"mine"
        assert main([*command, "-o", str(out), "--overwrite"]) == 0
        assert sorted(path.name for path in out.iterdir()) == ["test-0.png", "test-1.png", "test-2.png"]
        assert Image.open(out / "test-1.png").size == (8, 8)
        assert "and 2 others already exist" in refused(*command, "-o", out)
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


def test_what_was_written_before_an_error_is_removed(
    runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, codes = tmp_path / "f.tes", tmp_path / "c.npz"
    assert main(["compress", str(runs["grey"]), *map(str, range(9)), "-o", str(file), "--quiet"]) == 0
    assert main(["encode", str(runs["grey"]), *map(str, range(9)), "-o", str(codes)]) == 0
    real, count = Image.Image.save, iter(range(100))

    def full(self: Image.Image, *args: Any, **options: Any) -> None:
        if next(count) % 5 == 4:
            raise OSError(28, "No space left on device")
        real(self, *args, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    for command in (["decompress", file], ["decode", runs["grey"], codes]):
        for out, left in ((tmp_path / "new" / "er", []), (tmp_path / "there", ["notes.txt"])):
            assert "the disk is full" in refused(*command, "-o", out)
            assert (sorted(path.name for path in out.iterdir()) if out.exists() else []) == left
    assert not (tmp_path / "new").exists()


def test_names_are_held_against_the_folder_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises("long-name"):
        output_folder.Outputs(str(tmp_path / "out"), ["a", "b" * 300], ".png")
    with output_folder.Outputs(str(tmp_path / "long"), ["b" * 251], ".png") as made_:
        made_.write("b" * 251 + ".png", lambda draft: draft.write_bytes(b"x"))
    assert (tmp_path / "long" / ("b" * 251 + ".png")).exists()
    with output_folder.Outputs(str(tmp_path / "out"), ["Cat", "cat"], ".png") as made_:
        for name in ("Cat.png", "cat.png"):
            made_.write(name, lambda draft: draft.write_bytes(b"x"))
    assert len(list((tmp_path / "out").iterdir())) == 2
    real = Path.exists

    def folded(path: Path, **_: Any) -> bool:
        return real(path) or (path.name.startswith(".TESSELLA") and real(path.with_name(path.name.swapcase())))

    monkeypatch.setattr(Path, "exists", folded)
    for names in (["Cat", "cat"], ["caf\u00e9", "cafe\u0301"]):
        with (
            raises("same-name"),
            output_folder.Outputs(str(tmp_path / "new"), names, ".png"),
        ):
            pass
    assert not (tmp_path / "new").exists()


def test_windows_gets_names_that_it_takes() -> None:
    for name, allowed in {
        "a/b.png": "a/b.png",
        "con.png": "_con.png",
        "Aux/NUL.x.png": "_Aux/_NUL.x.png",
        "common.png": "common.png",
        "dir./x.png": "dir_/x.png",
        "a b /x.png": "a b_/x.png",
        'q?"<|>*:\\.png': "q_______ _.png".replace(" ", ""),
        "tab\t.png": "tab_.png",
    }.items():
        assert output_folder._allowed(name) == allowed


def test_any_name_comes_back(runs: dict[str, Path], tmp_path: Path) -> None:
    names = [b"esc\x1b[31m.png", b"line\nbreak.png", b"no-utf8-\xff\xfe.png", b"\xff-1.png", b"\xff-2.png", b"= 1.png"]
    names += [b"odd\x1b-1.png", b"odd\x1b-2.png"]
    for chosen in (names, names[3:5], names[6:]):
        folder, file, back = (tmp_path / f"{name}{len(chosen)}{chosen[0][:1]!r}" for name in ("p", "f", "b"))
        folder.mkdir()
        for i, name in enumerate(chosen):
            (folder / os.fsdecode(name)).write_bytes(_png(noise(8, 8) // (i + 1)))
        assert main(["compress", str(runs["grey"]), str(folder), "-o", str(file), "--quiet"]) == 0
        assert main(["inspect", str(file)]) == 0
        assert main(["decompress", str(file), "-o", str(back), "--quiet"]) == 0
        assert sorted(os.listdir(os.fsencode(back))) == sorted(chosen)
        codes, drawn = f"{file}.npz", f"{back}-drawn"
        assert main(["encode", str(runs["grey"]), str(folder), "-o", codes]) == 0
        assert main(["decode", str(runs["grey"]), codes, "-o", drawn]) == 0
        assert sorted(os.listdir(os.fsencode(drawn))) == sorted(chosen)


def _png(x: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()


# another machine


def made(kind: str, schema: Schema, **options: Any) -> Model:
    torch.manual_seed(0)
    small = {"width": 8, "depth": 1} | options
    return make(kind, schema, **small).eval()


def tell(model: Model, path: Path) -> str:
    """What is said when a file is read."""
    with pytest.raises(DataError) as caught:
        list(files.read_compressed(Container(str(path)), model, workers=1))
    return str(caught.value)


@pytest.mark.parametrize("kind", ["vqvae", "vae"])
@pytest.mark.parametrize("factor", [1.001, 3.0, float("nan")])
def test_a_whole_file_is_never_called_damaged(kind: str, factor: float, tmp_path: Path, monkeypatch) -> None:
    """However wrong the numbers of the other machine are: off a little, by far, or no numbers at all."""
    monkeypatch.setattr(coders, "BATCH", 7)
    model, x = made(kind, Schema.of((1, 8, 8), "uint8")), torch.from_numpy(noise(60, 1, 8, 8))
    every = NamedBatch([f"x-{i}" for i in range(60)], Batch(x), [None] * 60)
    files.write_compressed(model, [every], str(tmp_path / "f"), WEIGHTS, workers=1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(factor)
    here = coders.software_versions()
    said = tell(model, tmp_path / "f")
    assert "damaged" not in said
    assert "made by this very software" in said
    assert here in said
    monkeypatch.setattr(files, "software_versions", lambda: "another machine")
    said = tell(model, tmp_path / "f")
    assert "damaged" not in said
    assert f"it was made by {here}, and this is another machine, which rounds differently" in said
    data = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    with raises("damaged"):
        list(Container(str(tmp_path / "f")).files())


def test_the_file_names_what_its_floats_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    said = coders.software_versions()
    assert said.isprintable()
    assert len(said) < 1500
    for part in (torch.__version__, torch.backends.cpu.get_cpu_capability(), "oneDNN", "MKL", "constriction"):
        assert part in said
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert coders.software_versions() == f"{said}, ONEDNN_MAX_CPU_ISA=SSE41"


@pytest.mark.slow
def test_other_instruction_sets_decode_right_or_say_that_they_round_otherwise(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    file, chosen = str(tmp_path / "f.tes"), [str(i) for i in range(40)]
    assert main(["compress", str(runs["grey"]), *chosen, "-o", file, "--quiet", "--precision", "float32"]) == 0
    assert main(["decompress", file, "-o", str(tmp_path / "here")]) == 0
    for n, other in enumerate(({"ATEN_CPU_CAPABILITY": "default"}, {"ONEDNN_MAX_CPU_ISA": "SSE41"})):
        out = tmp_path / f"there{n}"
        command = [sys.executable, "-m", "tessella", "decompress", file, "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **other}, timeout=250)
        assert "damaged" not in done.stderr
        assert "Traceback" not in done.stderr
        if done.returncode:
            assert "rounds differently" in done.stderr
            assert next(iter(other.values())) in done.stderr.lower() or next(iter(other)) in done.stderr
            assert not out.exists()
        else:
            for path in (tmp_path / "here").iterdir():
                assert (out / path.name).read_bytes() == path.read_bytes()
