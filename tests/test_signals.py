"""Signals (C, T): one-dimensional networks, likelihoods, priors, and the whole way through the command line."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tessella
from tessella.bottlenecks import EMAQuantizer
from tessella.cli import main
from tessella.core.contracts import Condition
from tessella.core.rng import Noise
from tessella.core.schema import Integers, Real, Schema, Symbols, Values
from tessella.data import open_data
from tessella.foundation import validation
from tessella.foundation.registry import find
from tessella.kinds.base import kind_of
from tessella.likelihoods import FixedGaussian, likelihood_for
from tessella.models.presets import VAE, VQVAE, VQVAE2
from tessella.networks.causal_conv import CausalConv, IncrementalCausalConv
from tessella.networks.conv import ConvDecoder, ConvEncoder, ConvPlan, fold, unfold
from tessella.priors.autoregressive import CausalTransformerModule, PixelCNNModule
from tessella.priors.masked import MaskedTransformerModule

SMALL = {"width": 8, "depth": 1}
REAL = Schema.of((2, 37), Real(-3.0, 3.0), (0.0, 1.0), (1.0, 2.0))
BYTES = Schema.of((1, 24), "uint8")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("values", [Integers(), Integers(65536, -32768), Symbols(27), Real(-2.0, 5.0)])
def test_values_survive_the_way_to_json(values: Values) -> None:
    schema = Schema(2, (5,), values, classes=("a",))
    again = Schema.from_json(json.loads(json.dumps(schema.to_json())))
    assert again == schema
    assert (again.values.low, again.values.high) == (values.low, values.high)


@pytest.mark.parametrize(
    "change",
    [
        {"values": {"kind": "integers", "levels": 1 << 40, "low": 0}},
        {"values": {"kind": "symbols", "levels": 0}},
        {"values": {"kind": "text"}},
        {"values": "real"},
        {"spatial": [4, 4, 4]},
        {"spatial": [0]},
        {"channels": 1 << 27},
    ],
)
def test_hostile_schemas_are_refused(change: dict) -> None:
    with pytest.raises(validation.Malformed):
        Schema.from_json({**json.loads(json.dumps(REAL.to_json())), **change})


@pytest.mark.parametrize("shape", [(3, 8), (3, 8, 4)])
def test_unfold_inverts_fold(shape: tuple[int, ...]) -> None:
    x = torch.randn(2, *shape)
    assert torch.equal(unfold(fold(x, 2), 2), x)
    assert fold(x, 2).shape[1] == 3 * 2 ** (len(shape) - 1)


@pytest.mark.parametrize("length", [5, 64, 101])
def test_networks_keep_any_length(length: int) -> None:
    plan = ConvPlan.of((2, length), side=4, **SMALL)
    assert math.prod(plan.grid) <= 8
    encoder = ConvEncoder((2, length), plan)
    features = encoder(torch.randn(3, 2, length), None)
    assert features.shape[1:] == encoder.feature_shape
    assert ConvDecoder(encoder.feature_shape, plan, 7)(features, None).shape == (3, 7, length)


def test_causal_features_of_a_signal_are_those_computed_step_by_step() -> None:
    network, x, context = CausalConv(3, 8, 2, context=4).eval(), torch.randn(2, 3, 9), torch.randn(2, 4, 9)
    whole = network(x, context)
    changed = x.clone()
    changed[..., 5] += 1
    assert torch.equal(network(changed, context)[..., :6], whole[..., :6])
    decoder = IncrementalCausalConv(network, 2, 1, 9, context.unsqueeze(2))
    for t in range(9):
        torch.testing.assert_close(decoder.step(), whole[..., t], atol=1e-5, rtol=1e-5)
        decoder.append(x[..., t])


@pytest.mark.parametrize("make", [PixelCNNModule, CausalTransformerModule, MaskedTransformerModule])
@pytest.mark.parametrize("shape", [(1, 3), (2, 2)])
def test_code_probabilities_of_a_tiny_line_sum_to_one(make: type[nn.Module], shape: tuple[int, int]) -> None:
    size = 3
    prior = make(shape, size, width=8, depth=1).eval()
    places = math.prod(shape)
    codes = torch.tensor(list(itertools.product(range(size), repeat=places))).view(-1, *shape)
    if isinstance(prior, MaskedTransformerModule):
        log_p = prior.log_prob_in_order(codes, torch.randperm(places))
    else:
        log_p = prior(codes)
    assert float(log_p.detach().flatten(1).sum(1).double().exp().sum()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("make", [PixelCNNModule, CausalTransformerModule])
def test_codes_of_a_line_are_sampled_by_the_recomputed_probabilities(make: type[nn.Module]) -> None:
    """The logits that each symbol is chosen by, one position after another, are those of the whole line."""
    prior = make((1, 6), 4, width=8, depth=1).eval()
    seen: list[torch.Tensor] = []

    class Select:
        def __call__(self, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
            symbols = torch.randint(0, 4, (len(logits),))
            seen.append(logits.log_softmax(-1).gather(1, symbols[:, None])[:, 0])
            return symbols

    codes = prior.generate(5, Select(), Condition())  # type: ignore[operator]
    torch.testing.assert_close(torch.stack(seen, 1), prior(codes).flatten(1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("schema", "name"), [(BYTES, "logistic"), (BYTES, "categorical"), (REAL, "gaussian"), (BYTES, "autoregressive")]
)
def test_likelihoods_of_signals_add_up_position_by_position(schema: Schema, name: str) -> None:
    likelihood = likelihood_for(schema, find("likelihood", name).load()()).eval()
    p = likelihood(torch.randn(2, likelihood.parameter_channels, *schema.spatial))
    x = (
        torch.randn(2, *schema.shape)
        if not schema.values.discrete
        else torch.randint(0, 256, (2, *schema.shape)).byte()
    )
    each = p.by_position(x)
    assert each.shape == (2, *schema.spatial)
    torch.testing.assert_close(each.sum(1), p.log_prob(x), rtol=1e-4, atol=1e-3)


def test_the_bound_lies_below_log_p_in_closed_form() -> None:
    """A linear decoder of a signal: p(x) = N(0, W W' + s^2 I), which no bound exceeds."""
    schema = Schema.of((1, 6), Real(-9.0, 9.0))
    model = VAE(schema, **SMALL, latent_dim=2, likelihood=FixedGaussian()).eval()
    weights = torch.randn(6, 2)

    class Linear(nn.Module):
        def forward(self, z: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
            return (z @ weights.T)[:, None]

    model.decoder = Linear()  # type: ignore[assignment]
    scale = float(model.likelihood(torch.zeros(1, 1, 6)).distribution.scale.flatten()[0])  # type: ignore[attr-defined]
    x = torch.randn(400, 1, 6)
    exact = torch.distributions.MultivariateNormal(torch.zeros(6), weights @ weights.T + scale**2 * torch.eye(6))
    terms = model(x, noise=Noise(0).of(torch.arange(400)))
    nats = terms.distortion + terms.rate
    gap = nats + exact.log_prob(x[:, 0])
    assert float(gap.mean()) > 3 * float(gap.std()) / 20


@pytest.mark.parametrize("make", [VQVAE, VQVAE2])
def test_codes_of_signals_are_given_back(make) -> None:
    model = make(BYTES, grid_size=3, quantizer=EMAQuantizer(codebook_size=8), **SMALL).eval()
    x = torch.randint(0, 256, (4, 1, 24), dtype=torch.uint8)
    latent = model.encode(x)
    assert all(len(shape) == 2 for shape in model.code_shapes)
    assert torch.equal(model.lookup(latent.codes), latent.z)
    assert model.sample(2).shape == (2, 1, 24)


def test_kinds_are_asked_what_differs() -> None:
    kind, x = kind_of(REAL), torch.randn(3, 2, 37)
    assert (kind.example, kind.description) == ("signal", "signals of 37 samples, 2 channels")
    assert kind.render(x).shape == (3, *kind.tile_size, 1)
    copies = kind.altered_copies(x, Noise(0).of(torch.arange(3)))
    assert len(copies) == 3
    assert all(c.shape == x.shape and not torch.equal(c, x) for c in copies)
    assert kind_of(Schema.of((3, 8, 8), "uint8")).in_files


def _waves(path: Path, values: str) -> Path:
    random = np.random.default_rng(0)
    phase, t = random.uniform(0, 6, (120, 1, 1)), np.arange(32)
    x = np.sin(t / 3 + phase) + 0.1 * random.normal(size=(120, 1, 32))
    if values != "real":
        x = np.round((x + 2) * 60).clip(0, 255) if values == "uint8" else np.round(x * 9000)
    x = x.astype({"real": np.float32}.get(values, values))
    np.savez(path / "waves.npz", x=x)
    return path / "waves.npz"


def test_three_axes_are_pictures_unless_called_signals(tmp_path: Path) -> None:
    spec = str(_waves(tmp_path, "real"))
    data = open_data(spec)
    assert data.schema.shape == (1, 1, 32)
    assert any("grey pictures" in note for note in data.notes)
    data = open_data(spec, kind="signal")
    assert data.schema.shape == (1, 32)
    assert data.split("train").batch(range(3)).x.shape == (3, 1, 32)


@pytest.mark.parametrize(
    ("model", "values"), [("flow", "uint8"), *[(m, v) for m in ("vae", "vqvae") for v in ("real", "uint8", "int16")]]
)
def test_signals_go_the_whole_way(model: str, values: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec, run = str(_waves(tmp_path, values)), str(tmp_path / "run")
    of_model = {"vqvae": ["--grid-size", "4", "--codebook-size", "8"], "vae": ["--latent-dim", "3"]}
    options = of_model.get(model, [])
    train = ["train", model, "--data", spec, "--kind", "signal", "--steps", "3", "--width", "8", "--depth", "1"]
    assert main([*train, *options, "--out", run]) == 0
    if model != "flow":
        prior = "transformer" if model == "vqvae" else "flow"
        assert main(["fit-prior", run, "--kind", prior, "--steps", "3"]) == 0
    assert main(["evaluate", run]) == 0
    assert main(["sample", run, "-n", "4", "-o", "s.png"]) == 0
    assert main(["reconstruct", run, "-o", "r.png"]) == 0
    assert main(["report", run]) == 0
    if values != "real" and model != "flow":
        assert main(["compress", run, "test:0:5", "-o", "w.tes"]) == 0
        assert main(["decompress", "w.tes", "-o", "back", "--run", run]) == 0
        back = [np.load(path) for path in sorted(Path("back").glob("*.npy"))]
        x = open_data(spec, kind="signal").split("test").batch(range(5)).x
        assert np.array_equal(back, x)
        assert back[0].dtype == values


@pytest.mark.slow
def test_every_task_takes_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = str(_waves(tmp_path, "real"))
    data = ["--data", spec, "--kind", "signal", "--steps", "3", "--width", "8", "--depth", "1"]
    assert main(["train", "vae", *data, "--latent-dim", "3", "--latent-layout", "grid", "--out", "vae"]) == 0
    assert main(["train", "vqvae", *data, "--grid-size", "4", "--codebook-size", "8", "--out", "codes"]) == 0
    for run in ("vae", "codes"):
        detect = ["--calibration-data", "valid", "--false-positives", "0.2", "--samples", "1", "--steps", "1"]
        commands = [
            ["interpolate", run, "0", "1", "-o", "i.png"],
            ["traverse", run, "-o", "t.png"],
            ["detect", run, "test", *detect, "-o", "anomalies"],
            ["index", run, "--split", "test"],
            ["search", run, "0", "1", "-o", "found.html"],
            ["search", run, "--duplicates", "-o", "found.html"],
            ["edit", run, "0", "--region", "4,12", "--paste", "1@2", "--blend-original", "-o", "edited"],
            ["edit", run, "0", "--region", "4,12", "--resample", "-n", "2", "-o", "edited"],
        ]
        for command in commands:
            assert main(command) == 0, command
        record = json.loads(Path("edited/edit.json").read_text())
        assert record["region"] == {"x": 4, "width": 12, "pixels": 12}
        assert record["files"] == ["edited-1.npy", "edited-2.npy"]
        assert np.load("edited/edited-1.npy").shape == open_data(spec, kind="signal").schema.shape
        for variant in record["variants"]:
            assert variant["share_outside_reach"] == 0
    assert main(["inference-gap", "vae", "--examples", "4", "--steps", "2", "--chains", "2"]) == 0
    assert main(["compare", "vae", "codes", "--examples", "40"]) == 0
    assert main(["encode", "codes", "-o", "c.npz"]) == 0
    assert main(["decode", "codes", "c.npz", "-o", "decoded"]) == 0
    split = open_data(spec, kind="signal").split("test")
    decoded = np.stack([np.load(f"decoded/test-{row}.npy") for row in range(4)])
    expected = tessella.load("codes").reconstruct(split.batch(range(4)).x).numpy()
    np.testing.assert_allclose(decoded, expected, rtol=1e-4, atol=1e-5)
