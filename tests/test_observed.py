"""What is not observed is NaN: it costs nothing, trains nothing, and has no codes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import making
from expect import raises
from tessella.coding import files
from tessella.coding.container import Container
from tessella.coding.weights import Weights
from tessella.core.batches import Batch
from tessella.core.observed import before_end, hide
from tessella.core.rng import Noise
from tessella.core.schema import Binary, Integers, Real, Schema, Symbols, Values
from tessella.data.inputs import NamedBatch
from tessella.data.raw import RawSplit, index_keys
from tessella.data.splits import PartSplit
from tessella.evaluation import bounds
from tessella.likelihoods import likelihood_for
from tessella.models.presets import DiffusionConfig, FlowConfig, VAEConfig, VQVAE2Config, VQVAEConfig
from tessella.models.spec import ModelConfig, TrainOptions
from tessella.priors import MaskedTransformer, PixelCNN
from tessella.testing.examples import random_examples
from tessella.training.loop import fit

LENGTH = 64
SOUND = replace(Schema.of((1, LENGTH), Integers(1 << 16, -32768.0)), lengths=True, rate=8000.0)


def clips(*lengths: int) -> torch.Tensor:
    """Make examples that end after so many positions."""
    torch.manual_seed(0)
    x = random_examples(SOUND, len(lengths))
    for row, length in zip(x, lengths, strict=True):
        row[:, length:] = torch.nan
    return x


@pytest.mark.parametrize("values", [Binary(), Integers(), Integers(1 << 16, -32768.0), Symbols(5), Real(-2.0, 2.0)])
@pytest.mark.parametrize("shape", [(3,), (1, 40), (2, 40)])
def test_a_value_that_is_not_observed_costs_nothing_and_has_no_gradient(values: Values, shape: tuple[int, ...]) -> None:
    schema = Schema.of(shape, values)
    likelihood = likelihood_for(schema).eval()
    x = random_examples(schema, 4).float()
    parameters = torch.randn(4, likelihood.parameter_channels, *shape[1:]).requires_grad_()
    gone = torch.zeros_like(x, dtype=torch.bool)
    gone[1:, ..., -1] = True
    partial = x.masked_fill(gone, torch.nan)
    assert torch.equal(likelihood.to_network(partial)[gone], torch.zeros(int(gone.sum())))
    found, whole = (likelihood(parameters).by_position(some) for some in (partial, x))
    assert torch.equal(found[1:, ..., -1], torch.zeros_like(found[1:, ..., -1]))
    assert found[:1].isfinite().all()
    assert (found[:1] < 0).all()
    torch.testing.assert_close(found.flatten(1).sum(1), likelihood(parameters).log_prob(partial))
    (gradient,) = torch.autograd.grad(likelihood(parameters).log_prob(partial).sum(), parameters)
    assert gradient.isfinite().all()
    if len(shape) > 1 and values.kind != "integers":  # lattices see parameters of neighbours
        assert not gradient[1:, :, -1].any()
    if values.kind != "integers" or len(shape) == 1:  # independent values: the others cost what they did
        rest = ~gone.any(1) if len(shape) > 1 else ~gone
        torch.testing.assert_close(found[rest], whole[rest])


def test_a_signal_ends_after_its_last_value_and_has_codes_up_to_there() -> None:
    x = clips(64, 17, 16, 1)
    x[1, :, 4:9] = torch.nan  # a gap belongs to the signal
    assert before_end(x, 8).sum(1).tolist() == [8, 3, 2, 1]
    assert before_end(x, 1).sum(1).tolist() == [64, 17, 16, 1]


@pytest.mark.parametrize("config", [VQVAEConfig, VQVAE2Config])
@pytest.mark.parametrize("quantizer", ["ema", "fsq", "lfq", "vq"])
def test_positions_after_the_end_have_no_codes(config: type[ModelConfig], quantizer: str) -> None:
    torch.manual_seed(0)
    model = config.from_options({"quantizer": quantizer, "width": 8, "depth": 1, "grid_size": 8}).build(SOUND)
    x = clips(64, 20, 9)
    model.train()
    model(x, noise=Noise(0)).bound.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    latent = model.encode(x)
    terms = model(x)
    expected = torch.zeros(3)
    for codes, stride, level in zip(latent.codes, model.downsampling, model.levels, strict=True):
        present = (codes >= 0).flatten(1).sum(1)
        assert present.tolist() == [-(-n // stride) * codes.shape[1] for n in (64, 20, 9)]
        assert not level.lookup(codes).masked_select(codes[:, :1] < 0).any()
        expected += present * np.log(level.codebook_size)
    torch.testing.assert_close(terms.rate.detach(), expected)
    rebuilt = model.reconstruct(x)
    assert torch.equal(rebuilt.isnan(), x.isnan())
    draws = [model(x, noise=Noise(seed), draws=16) for seed in range(8)]
    assert all((one.rate <= expected + 1e-3).all() for one in draws), "log q is at most 0"
    tight = torch.stack([-(one.log_weights.logsumexp(0) - np.log(16)) for one in draws]).mean(0)
    single = torch.stack([-one.log_weights for one in draws]).flatten(0, 1)
    slack = 4 * single.std(0) / len(single) ** 0.5  # 3 comparisons at 4 sigma: 1 in 10,000
    assert (tight <= single.mean(0) + slack + 1e-3).all(), "more draws are a tighter bound"


def test_codebooks_learn_from_what_is_before_the_end() -> None:
    torch.manual_seed(0)
    options = {"quantizer": "ema", "width": 8, "depth": 1, "grid_size": 8, "codebook_size": 4, "revive": 0.0}
    model = VQVAEConfig.from_options(options).build(SOUND).train()
    x = clips(32, 20)
    model(x, noise=Noise(0))
    assert float(model.levels[0].books[0].count.sum()) == float(before_end(x, model.downsampling[0]).sum())


def test_bits_per_dimension_divide_by_the_values_that_are_observed() -> None:
    torch.manual_seed(0)
    model = VAEConfig.from_options({"width": 8, "depth": 1}).build(SOUND)
    x = clips(64, 20, 9, 33)
    split = PartSplit(RawSplit(x.numpy(), None, index_keys(4, "clips")), np.arange(4))
    found = bounds.evaluate(model, split, collapse_examples=0)
    assert found.bits_per_dim == pytest.approx(4 * found.bound / (64 + 20 + 9 + 33) / np.log(2), rel=1e-6)
    assert found.mse is not None
    assert np.isfinite(found.mse)


@pytest.mark.parametrize("config", [FlowConfig, DiffusionConfig])
def test_models_without_a_decoder_refuse_examples_that_are_observed_in_part(config: type[ModelConfig]) -> None:
    with raises("partial"):
        config().build(SOUND)


@pytest.mark.parametrize(
    ("kind", "lossy", "options"),
    [
        ("vqvae", False, {}),
        ("vqvae", False, {"likelihood": "logistic"}),
        ("vqvae2", False, {"likelihood": "logistic"}),
        ("vae", False, {"likelihood": "logistic"}),
        ("vqvae", True, {}),
    ],
)
def test_recordings_of_any_length_come_back_from_a_file(
    kind: str, lossy: bool, options: dict[str, str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = making.make(kind, SOUND, width=8, depth=1, **options).eval()
    long = torch.randint(-(2**15), 2**15, (1, 1, 2 * LENGTH + 5)).float()
    some = [long, clips(64, 20, 1), clips(9)]
    names = [["long"], ["a", "b", "c"], ["d"]]
    every = [NamedBatch(called, Batch(x), [None] * len(x)) for called, x in zip(names, some, strict=True)]
    weights = Weights("run", "0" * 12, "uniform")
    found = files.write_compressed(model, every, str(tmp_path / "file"), weights, lossy=lossy, workers=1)
    lengths = [2 * LENGTH + 5, 64, 20, 1, 9]
    assert found.numbers == sum(lengths)
    assert found.coded_bytes < found.bound_bytes + 600
    restored = [x for _, x in files.read_compressed(Container(str(tmp_path / "file")), model, workers=1)]
    assert [x.shape[1] for x in restored] == lengths
    originals = [x[:, ~x[0].isnan()] for batch in some for x in batch]
    if lossy:
        assert all(x.isfinite().all() for x in restored)
    else:
        assert all(torch.equal(a, b) for a, b in zip(restored, originals, strict=True))


MISSING = replace(Schema.of((2, 48), Real()), missing=True)


@pytest.mark.parametrize("config", [VAEConfig, VQVAEConfig])
def test_the_encoder_is_told_what_is_missing_and_training_hides_more(config: type[ModelConfig]) -> None:
    torch.manual_seed(0)
    model = config.from_options({"width": 8, "depth": 1}).build(MISSING)
    x = torch.randn(6, 2, 48)
    x[:, :, 20:30] = torch.nan
    guessed = x.nan_to_num(0.0)  # the mean, which the network sees at missing places too
    assert torch.equal(model.likelihood.to_network(x), model.likelihood.to_network(guessed))
    seen = model.encoder_input(x)
    assert torch.equal(seen[:, 2:].bool(), ~x.isnan())
    assert not torch.equal(model.encoder(seen, None), model.encoder(model.encoder_input(guessed), None))
    hidden = model.encoder_input(x, Noise(0))  # a new model is in training mode
    assert (hidden[:, 2:] <= seen[:, 2:]).all()
    assert hidden[:, 2:].sum() < seen[:, 2:].sum()
    assert torch.equal(model.eval().encoder_input(x, Noise(0)), seen)
    assert model.reconstruct(x).isfinite().all()


def test_what_is_hidden_is_up_to_half_of_the_values_or_of_the_positions() -> None:
    x = torch.zeros(4000, 3, 40)
    gone = hide(x, Noise(0)).isnan()
    assert torch.equal(gone, hide(x, Noise(0)).isnan())
    together = (gone.all(1) == gone.any(1)).all(1)  # all channels at once
    assert 0.45 < together.float().mean() < 0.6  # half, and those of which nothing is hidden
    runs = (gone.any(1).int().diff(dim=1, prepend=torch.zeros(4000, 1).int()) > 0).sum(1)
    assert (runs[together & (gone.flatten(1).float().mean(1) > 0.1)] == 1).all()
    share = gone.flatten(1).float().mean(1)
    assert share.max() < 0.65
    assert share.mean() == pytest.approx(0.25, abs=0.02)


def test_inpainted_codes_end_where_the_example_does() -> None:
    torch.manual_seed(0)
    model = making.make("vqvae", SOUND, width=8, depth=1, grid_size=8).eval()
    for config in (None, MaskedTransformer(width=8, depth=1), PixelCNN(width=8, depth=1)):
        if config is not None:
            model.set_prior(model.build_priors(config))
        codes = model.encode(clips(64, 20, 9)).codes
        known = [torch.rand(c.shape) < 0.5 for c in codes]
        (new,) = model.inpaint_codes(codes, known, seed=1)
        assert torch.equal(new < 0, codes[0] < 0)
        assert torch.equal(new[known[0]], codes[0][known[0]])


def test_batches_of_other_lengths_are_no_divergence(recwarn: pytest.WarningsRecorder) -> None:
    """Each batch has examples of one length, so the loss of an example goes up and down tenfold."""
    torch.manual_seed(0)
    lengths = np.random.default_rng(0).integers(6, 65, 400)
    part = RawSplit(clips(*lengths.tolist()).numpy(), None, index_keys(400, "clips"), lengths=lengths)
    model = VAEConfig.from_options({"width": 8, "depth": 1}).build(replace(SOUND, observed=float(lengths.mean() / 64)))
    fit(model, PartSplit(part, np.arange(400)), TrainOptions(steps=250, batch_size=2, learning_rate=1e-9))
    assert not [w for w in recwarn if "diverged" in str(w.message)]
