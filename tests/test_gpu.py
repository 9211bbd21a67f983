"""On a CUDA device: every command from end to end, and the numbers of the processor. `pytest -m gpu` runs these."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tessella
from tessella import cli
from tessella.bottlenecks import nearest as searching
from tessella.core.rng import Noise
from tessella.core.selectors import sample_categorical
from tessella.evaluation.bounds import evaluate
from tessella.foundation.registry import find
from tessella.models.spec import TrainOptions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
SMALL = ["--steps", "3", "--width", "16", "--depth", "1", "--quiet"]
CPU = torch.device("cpu")
CODES = ["--grid-size", "4", "--codebook-size", "16"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of every family, trained on the card."""
    home = tmp_path_factory.mktemp("gpu")
    for name, options in (
        ("vae", ["--latent-dim", "4"]), ("cvae", ["--latent-dim", "4"]), ("ae", ["--latent-dim", "4"]), ("flow", []),
        ("diffusion", []), ("vqvae", CODES),
    ):  # fmt: skip
        words = ["train", name, "--data", "digits", "--out", str(home / name), *SMALL, *options, "--device", "cuda"]
        assert cli.main(words) == 0
    for kind in ("pixelcnn", "transformer", "masked"):
        assert cli.main(["fit-prior", str(home / "vqvae"), "--kind", kind, *SMALL, "--device", "cuda"]) == 0
    return home


NAMES = ("vae", "cvae", "ae", "flow", "diffusion", "vqvae")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_that_looks(runs: Path, tmp_path: Path, name: str) -> None:
    run, out = str(runs / name), str(tmp_path / "x.png")
    card = ["--device", "cuda"]
    assert cli.main(["evaluate", run, *card]) == 0
    assert cli.main(["report", run, *card]) == 0
    if name != "ae":
        assert cli.main(["sample", run, "-n", "4", "-o", out, *card]) == 0
    assert cli.main(["reconstruct", run, "-n", "3", "-o", out, *card]) == 0
    assert cli.main(["interpolate", run, "0", "1", "-o", out, *card]) == 0
    assert cli.main(["traverse", run, "-o", out, *card]) == 0
    assert cli.main(["detect", run, *map(str, range(8)), "-o", str(tmp_path / "a"), "--steps", "2", *card]) == 0


@pytest.mark.parametrize("name", ["vae", "vqvae"])
def test_every_command_that_uses(runs: Path, tmp_path: Path, name: str) -> None:
    run, card = str(runs / name), ["--device", "cuda"]
    page = ["-o", str(tmp_path / "found.html")]
    assert cli.main(["index", run, *card]) == 0
    assert cli.main(["search", run, "0", *page, *card]) == 0
    assert cli.main(["search", run, "--duplicates", *page, *card]) == 0
    assert cli.main(["edit", run, "0", "--region", "0,0,4,4", "--blend", "1", "0.5", "-o", str(tmp_path), *card]) == 0
    file, back = str(tmp_path / "x.tes"), str(tmp_path / "back")
    assert cli.main(["compress", run, "0", "1", "-o", file, "--quiet", *card]) == 0
    assert cli.main(["decompress", file, "-o", back, "--quiet", *card]) == 0


def test_codes_there_and_back(runs: Path, tmp_path: Path) -> None:
    run, card = str(runs / "vqvae"), ["--device", "cuda"]
    codes = str(tmp_path / "codes.npz")
    assert cli.main(["encode", run, "0", "1", "2", "-o", codes, *card]) == 0
    assert cli.main(["decode", run, codes, "-o", str(tmp_path / "drawn"), "--sample", *card]) == 0
    region = ["--region", "0,0,4,4", "--resample", "-n", "2"]
    for kind in ("pixelcnn", "transformer", "masked"):
        assert cli.main(["edit", run, "0", *region, "--prior", kind, "-o", str(tmp_path / kind), *card]) == 0
        assert cli.main(["sample", run, "-n", "4", "--prior", kind, "-o", str(tmp_path / "s.png"), *card]) == 0
    file = str(tmp_path / "codes.tes")
    assert cli.main(["compress", run, "0", "1", "--lossy", "-o", file, "--quiet"]) == 0
    assert cli.main(["decompress", file, "-o", str(tmp_path / "lossy"), "--quiet", *card]) == 0


@pytest.mark.parametrize("name", [n for n in NAMES if n != "ae"])
def test_bounds_are_the_processors(runs: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the processor's noise on both. Convolutions round to TF32 on a card."""
    draw = Noise._draw
    monkeypatch.setattr(Noise, "_draw", lambda self, how, shape, device: draw(self, how, shape, CPU).to(device))
    split = tessella.open_data("digits").split("test")
    here, there = (evaluate(tessella.load(runs / name, device=d, prior="trained"), split) for d in ("cpu", "cuda"))
    assert here.bound == pytest.approx(there.bound, rel=5e-3)
    assert here.distortion == pytest.approx(there.distortion, rel=5e-3)


def test_resuming_on_the_card_goes_on(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    words = ["train", "vae", "--data", "digits", "--out", run, "--steps", "3", "--width", "16", "--quiet"]
    assert cli.main([*words, "--device", "cuda"]) == 0
    for device, steps in (("cuda", 5), ("cpu", 7), ("cuda", 9)):
        assert cli.main(["train", "--resume", "--out", run, "--steps", str(steps), "--device", device, "--quiet"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 9
    assert tessella.load(run, device="cuda").device.type == "cuda"


def test_bfloat16_and_channels_last(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x=x)
    data = tessella.open_data(str(tmp_path / "x.npz"))
    model = tessella.VAE(data.schema, width=16, depth=1, latent_dim=4)
    options = TrainOptions(steps=3, batch_size=16, precision="bfloat16", device="cuda")
    tessella.train(model, data, tmp_path / "run", options)
    assert model.device.type == "cuda"
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.weight.shape[2] > 1]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    both = [evaluate(model, data.split("train"), precision=p).bound for p in ("float32", "bfloat16")]
    assert both[0] == pytest.approx(both[1], rel=0.02)


@pytest.mark.parametrize("kind", ["pixelcnn", "transformer"])
def test_cached_sampling_equals_uncached(kind: str) -> None:
    torch.manual_seed(0)
    prior = find("code-prior", kind).load()(width=16, depth=2).build((2, 4, 4), 7).eval().cuda()
    codes = prior.sample(3, Noise(0))
    uniform = Noise(0).uniform(3, 2, 4, 4, device=codes.device).flatten(2)
    with torch.no_grad():
        for position in range(16):
            numbers = uniform[..., position].unbind(1)
            again = prior.head.select(
                prior.features(codes)[:, position], lambda logits, c, u=numbers: sample_categorical(logits, u[c])
            )
            assert torch.equal(again, codes.flatten(2)[..., position])


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (63, 2, 64, 16), (65, 1, 65, 17), (200, 3, 129, 33), (7, 1, 3, 130)])
def test_the_search_chooses_as_the_processor(size: tuple[int, int, int, int]) -> None:
    """Whole numbers are exact in float32, so ties are ties on both; the first of several is chosen by both."""
    n, groups, codes, dims = size
    z, table = (
        (2 * Noise(k).normal(*shape)).round() for k, shape in enumerate([(n, groups, dims), (groups, codes, dims)])
    )
    assert torch.equal(searching.nearest_codes(z.cuda(), table.cuda()).cpu(), searching.nearest_codes(z, table))


def test_estimators_come_back_to_the_processor() -> None:
    import pickle

    from tessella.sklearn import LatentTransformer

    x = np.random.default_rng(0).normal(size=(60, 4))
    fitted = LatentTransformer(max_steps=3, random_state=0, device="cuda").fit(x)
    there = fitted.transform(x)
    here = pickle.loads(pickle.dumps(fitted)).set_params(device="cpu").transform(x)
    np.testing.assert_allclose(there, here, rtol=1e-3, atol=1e-3)
