"""A kind of data brings its own files: folders, INPUTS and names of files need no change for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import numpy as np
import pytest
import torch
from torch import Tensor

from tessella.core.rng import Noise
from tessella.core.schema import Real, Schema
from tessella.data import open_data
from tessella.data.folders import read as module
from tessella.data.inputs import Inputs
from tessella.foundation import registry
from tessella.kinds.base import Codec, File, FileHeader, FileReader, ReadOptions
from tessella.kinds.vectors import Arrays, plots


@final
class VolumeFiles(FileReader):
    """Files of numbers as text, whose first line is the number of slices."""

    endings = (".vol",)
    example, examples = "volume", "volumes"

    def header(self, file: File) -> FileHeader:
        try:
            return FileHeader(tuple(self._values(file).shape), channels=1)
        except ValueError as error:
            return FileHeader(trouble=self.trouble(error))

    def schema(
        self, files: Sequence[tuple[Callable[[], File], FileHeader]], options: ReadOptions, notes: list[str]
    ) -> Schema:
        notes.append(f"{len(files)} volumes have one shape")
        return Schema.of((1, *files[0][1].spatial), Real(0, 9))

    def holds(self, schema: Schema) -> bool:
        return schema.values == Real()

    def read(self, file: File, schema: Schema, part: int = 0) -> Tensor:
        return torch.from_numpy(self._values(file)).reshape(schema.shape)

    def trouble(self, error: Exception) -> str:
        return "no numbers"

    def _values(self, file: File) -> np.ndarray:
        assert isinstance(file, str)
        depth, *rows = Path(file).read_text().splitlines()
        return np.array([list(map(float, row.split())) for row in rows], np.float32).reshape(int(depth), 2, -1)


@final
class Volumes(Arrays):
    """Volumes `(1, D, H, W)`."""

    example, examples = "volume", "volumes"
    files = VolumeFiles()

    @property
    def description(self) -> str:
        return "volumes"

    @property
    def tile_size(self) -> tuple[int, int]:
        return 48, 96

    def render(self, x: Tensor) -> np.ndarray:
        return plots(self.unit(x.flatten(1)))

    def write(self, path: Path, x: Tensor, form: str = "") -> None:
        self.write_array(path, x)

    def baseline_codecs(self, *, lossy: bool) -> tuple[Codec, ...]:
        return self.general_codecs(lossy=lossy)

    def altered_copies(self, x: Tensor, noise: Noise) -> list[Tensor]:
        return [self.noisy_copy(x, noise)]


class Model:
    name, conditional, device = "model", False, torch.device("cpu")
    schema = Schema.of((1, 3, 2, 4), Real(0, 9))


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of two classes, with one broken file, one picture and one volume twice."""
    entry = registry.Entry("kind", "volume", f"{__name__}:Volumes", "volumes", {"rank": 3}, "tests")
    monkeypatch.setitem(registry._MADE, ("kind", "volume"), entry)
    for number in range(20):
        path = tmp_path / "ab"[number % 2] / f"{number}.VOL"
        path.parent.mkdir(exist_ok=True)
        path.write_text("3\n" + "\n".join(f"{number} 1 2 {row}" for row in range(6)))
    (tmp_path / "a" / "again.vol").write_bytes((tmp_path / "a" / "0.VOL").read_bytes())
    (tmp_path / "b" / "broken.vol").write_text("3\nwords")
    (tmp_path / "b" / "x.png").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("streamed", [False, True])
def test_a_folder_of_another_kind_is_a_data_set(volumes: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool) -> None:
    monkeypatch.setattr(module, "MEMORY_FILES", 0 if streamed else 100)
    data = open_data(str(volumes))
    assert (data.schema.shape, data.schema.values, data.schema.classes) == ((1, 3, 2, 4), Real(), ("a", "b"))
    assert data.all_examples is not None
    batch = data.all_examples.batch(range(21))
    assert batch.label is not None
    assert (batch.x.dtype, batch.x.shape) == (torch.float32, (21, 1, 3, 2, 4))
    assert batch.label.tolist() == (batch.x[:, 0, 0, 0, 0] % 2).tolist()
    said = "\n".join(data.notes)
    assert "1 files that are not volumes were ignored: b/x.png" in said
    assert "1 of 22 volumes could not be read and were skipped: b/broken.vol (no numbers)" in said
    assert "21 volumes have one shape" in said
    assert "1 of 21 volumes are byte-identical to others" in said


@pytest.mark.filterwarnings("ignore")
def test_inputs_of_another_kind_are_read_by_it(volumes: Path) -> None:
    def no_data(spec: str | None) -> None:
        raise AssertionError(spec)

    words = [str(volumes / "b" / "7.VOL"), str(volumes / "a")]
    named = list(Inputs(Model(), words, no_data))  # pyright: ignore[reportArgumentType]
    assert sum(len(batch.names) for batch in named) == 12
    assert torch.equal(named[0].batch.x[0, 0, :, :, 0], torch.full((3, 2), 7.0))
