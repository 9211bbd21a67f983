"""Training: a run survives anything, and ends where an uninterrupted one would."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tessella
from expect import raises
from making import make
from tessella import Schema, TrainOptions
from tessella.core import tensors as storing
from tessella.core.outputs import Terms
from tessella.core.rng import Noise
from tessella.core.schema import Real
from tessella.core.tensors import read_tensors, write_tensors
from tessella.foundation.errors import RunError, SpecError, TrainingError
from tessella.models.spec import Objective, Spec
from tessella.training import checkpoint, loop, step

SMALL = {"width": 8, "depth": 1, "latent_dim": 4}
OF_CODES = {"width": 8, "depth": 1, "codebook_size": 16, "code_dim": 4, "grid_size": 4}
"""Small enough for codes to die and to be revived."""


@pytest.fixture(scope="module")
def digits():
    return tessella.open_data("digits", binarize="dynamic")


def trained(digits, out: Path, steps: int = 12, kind: str = "vae", **more):
    torch.manual_seed(0)
    model = make(kind, digits.schema, **(SMALL if kind == "vae" else OF_CODES))
    options = TrainOptions(steps=steps, batch_size=16, save_every=0.0)
    return loop.train(model, digits, out, options, **more)


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """The folder of an uninterrupted run of that kind, trained once."""
    runs = tmp_path_factory.mktemp("whole")

    def of(kind: str = "vae") -> Path:
        if not (runs / kind).exists():
            trained(digits, runs / kind, kind=kind)
        return runs / kind

    return of


def weights(run: Path) -> dict[str, torch.Tensor]:
    return {**load_file(run / checkpoint.STATE), **load_file(run / checkpoint.MODEL)}


def assert_same(a: Path, b: Path) -> None:
    one, other = weights(a), weights(b)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def script(tmp_path: Path, body: str, *kinds: str) -> list[str]:
    """A Python process that trains as `trained` does, with `body` run before; `{}` in its folder is the kind."""
    path = tmp_path / "train.py"
    sizes = {kind: SMALL if kind == "vae" else OF_CODES for kind in kinds or ("vae",)}
    path.write_text(
        textwrap.dedent(body)
        + textwrap.dedent(f"""
        import sys, torch, tessella
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from making import make
        from tessella import TrainOptions
        from tessella.training import loop
        data = tessella.open_data("digits", binarize="dynamic")
        options = TrainOptions(steps=int(sys.argv[2]), batch_size=int(sys.argv[3]), save_every=0.0)
        for kind, size in {sizes!r}.items():
            torch.manual_seed(0)
            model = make(kind, data.schema, **size)
            result = loop.train(model, data, sys.argv[1].format(kind), options)
            print(result.stopped, result.steps)
        """)
    )
    return [sys.executable, str(path)]


def test_a_run_leaves_everything_to_use_it_and_nothing_half_written(digits, tmp_path):
    result = trained(digits, tmp_path / "run")
    assert (result.steps, result.stopped) == (12, "budget")
    names = {p.relative_to(tmp_path / "run").parts[0] for p in (tmp_path / "run").rglob("*")}
    assert names == {"spec.json", "model.safetensors", "state", "metrics.jsonl", "pictures"}
    assert not list((tmp_path / "run").rglob("*.draft"))
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert json.loads(line)["kind"] in ("train", "valid")
    model = tessella.load(tmp_path / "run")
    x = digits.split("test").batch([0, 1]).x
    assert model.reconstruct(x).shape == x.shape
    assert not model.training


def test_the_same_seed_trains_the_same_weights(digits, tmp_path):
    trained(digits, tmp_path / "a")
    trained(digits, tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vae", "vqvae2"])
def test_killed_at_any_step_and_resumed_is_bitwise_the_uninterrupted_run(digits, whole, tmp_path, kind):
    """Killed by SIGKILL after step 5, whose checkpoint is the last one whole."""
    dying = script(
        tmp_path,
        """
        import os, signal
        from tessella.training import loop
        update = loop._Loop._update
        def die(self, batch):
            if self.state.step == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return update(self, batch)
        loop._Loop._update = die
        """,
        kind,
    )
    killed = subprocess.run([*dying, str(tmp_path / "cut"), "12", "16"], check=False)
    assert killed.returncode == -signal.SIGKILL
    trained(digits, tmp_path / "cut", kind=kind, resume=True)
    assert_same(whole(kind), tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("save", [3, 4])
def test_killed_in_the_middle_of_writing_and_resumed_is_bitwise_the_same(digits, whole, tmp_path, save):
    """Half of a checkpoint is on disk, of the state (even saves) or of the weights (odd ones), when it dies."""
    dying = script(
        tmp_path,
        f"""
        import os
        from pathlib import Path
        from tessella.core import tensors as storing
        save, count = storing.save_file, 0
        def half(tensors, path, note):
            global count
            save(tensors, path, note)
            count += 1
            if count == {save + 4}:
                whole = Path(path).read_bytes()
                Path(path).write_bytes(whole[: len(whole) // 2])
                os._exit(9)
        storing.save_file = half
        """,
    )
    assert subprocess.run([*dying, str(tmp_path / "cut"), "12", "16"], check=False).returncode == 9
    assert list((tmp_path / "cut").rglob("*.draft"))
    read_tensors(tmp_path / "cut" / checkpoint.STATE)
    trained(digits, tmp_path / "cut", resume=True)
    assert_same(whole(), tmp_path / "cut")


@pytest.mark.slow
def test_two_processes_are_one_with_the_joined_batch(whole, tmp_path):
    """Weights after 12 steps differ by rounding only: sums of gradients are taken in another order."""
    kinds = ("vae", "vqvae2")
    command = script(tmp_path, "", *kinds)[1]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617", command]
    subprocess.run([*two, str(tmp_path / "{}"), "12", "8"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for kind in kinds:
        a, b = weights(whole(kind)), weights(tmp_path / kind)
        assert a.keys() == b.keys()
        for name, tensor in a.items():
            torch.testing.assert_close(tensor, b[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_the_step_saves_and_goes_on_to_the_same_end(digits, whole, tmp_path, number):
    stopping = script(
        tmp_path,
        f"""
        import os
        from tessella.training import loop
        update = loop._Loop._update
        def ask(self, batch):
            if self.state.step == 4:
                os.kill(os.getpid(), {int(number)})
            return update(self, batch)
        loop._Loop._update = ask
        """,
    )
    command = [*stopping, str(tmp_path / "cut"), "12", "16"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["signal", "5"]
    trained(digits, tmp_path / "cut", resume=True)
    assert_same(whole(), tmp_path / "cut")


def test_a_loss_that_stays_nan_stops_the_run_names_the_tensor_and_keeps_the_last_checkpoint(
    digits, tmp_path, monkeypatch
):
    update = loop._Loop._update

    def poison(self, batch):
        if self.state.step == 5:
            next(self.model.decoder.parameters()).data[0] = float("nan")
        return update(self, batch)

    monkeypatch.setattr(loop._Loop, "_update", poison)
    with pytest.raises(TrainingError, match=r"step 9: 5 batches in a row .* first in the weights decoder\.entry"):
        trained(digits, tmp_path / "run")
    state = read_tensors(tmp_path / "run" / checkpoint.STATE)
    assert state.progress["step"] == 5
    assert all(t.isfinite().all() for t in state.tensors.values())
    assert all(t.isfinite().all() for t in load_file(tmp_path / "run" / checkpoint.MODEL).values())


def test_one_bad_batch_is_skipped_and_counted(digits, tmp_path, monkeypatch):
    forward = type(make(tessella.VAE, digits.schema, **SMALL)).forward

    def sometimes(self, x, label=None, *, noise=None, draws=None):
        terms = forward(self, x, label, noise=noise, draws=draws)
        bad = noise is not None and noise.stream == "latent" and noise.step == 3
        return Terms(terms.distortion * (float("nan") if bad else 1.0), terms.rate)

    monkeypatch.setattr("tessella.models.latent_variable.LatentVariableModel.forward", sometimes)
    with pytest.warns(UserWarning, match="1 of 12 batches gave a loss or gradient that is not finite"):
        assert trained(digits, tmp_path / "run").steps == 12
    state = read_tensors(tmp_path / "run" / checkpoint.STATE)
    assert (state.progress["bad"], state.progress["bad_in_a_row"]) == (1, 0)
    assert all(t.isfinite().all() for t in state.tensors.values())


def test_the_first_bad_tensor_is_an_output_if_no_weight_is_bad(digits):
    model = make(tessella.VAE, digits.schema, **SMALL)
    model.decoder.trunk[0].register_forward_hook(lambda module, inputs, output: output * float("inf"))
    x = digits.split("train").batch([0, 1], Noise(0)).x
    assert step.first_bad_tensor(model, x, None, Noise(0)) == "the output of decoder.trunk.0"


def test_a_full_disk_is_said_in_one_line_and_the_last_checkpoint_stays(digits, tmp_path, monkeypatch):
    save, count = storing.save_file, 0

    def full(tensors, path, note):
        nonlocal count
        count += 1
        if count > 6:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(tensors, path, note)

    monkeypatch.setattr(storing, "save_file", full)
    with pytest.raises(RunError, match="the disk is full") as caught:
        trained(digits, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert read_tensors(tmp_path / "run" / checkpoint.STATE).progress["step"] == 3
    assert not list((tmp_path / "run").rglob("*.draft"))


def test_an_occupied_run_folder_is_refused_unless_it_is_to_be_replaced(digits, tmp_path):
    run = tmp_path / "run"
    trained(digits, run)
    before = (run / checkpoint.MODEL).read_bytes()
    with raises("already-there"):
        trained(digits, run)
    assert (run / checkpoint.MODEL).read_bytes() == before
    trained(digits, run, steps=3, overwrite=True)
    assert read_tensors(run / checkpoint.STATE).progress["step"] == 3


def test_a_folder_that_is_no_run_is_never_overwritten(digits, tmp_path):
    (tmp_path / "letters").write_text("dear")
    with raises("not-a-run"):
        trained(digits, tmp_path, overwrite=True)
    assert (tmp_path / "letters").read_text() == "dear"


def test_resuming_forgets_what_was_noted_after_the_checkpoint(digits, tmp_path):
    run = tmp_path / "run"
    trained(digits, run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "train", "step": 99}) + '\n{"kind": "tra')
    trained(digits, run, resume=True)
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 12
    assert steps == sorted(steps)


def test_resuming_another_model_is_refused(digits, tmp_path):
    trained(digits, tmp_path / "run")
    other = make(tessella.VAE, digits.schema, **{**SMALL, "width": 16})
    with raises("other-model"):
        loop.train(other, digits, tmp_path / "run", TrainOptions(steps=2), resume=True)


def test_a_model_for_other_data_is_refused(digits, tmp_path):
    with raises("other-data"):
        loop.train(make(tessella.VAE, Schema.of((1, 9, 9), "binary"), **SMALL), digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign", "missing"])
def test_damaged_weights_are_refused_in_one_line(digits, tmp_path, damage):
    run = tmp_path / "run"
    trained(digits, run, steps=1)
    path = run / checkpoint.MODEL
    whole = bytearray(path.read_bytes())
    flipped = whole.copy()
    flipped[-1] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": whole[:-9], "flipped": flipped, "empty": b"", "foreign": b"PK" * 99}[damage])
    with pytest.raises(RunError) as caught:
        tessella.load(run)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_weights_of_another_run_are_refused(digits, tmp_path):
    trained(digits, tmp_path / "run", steps=1)
    write_tensors(tmp_path / "run" / checkpoint.MODEL, {"a": torch.zeros(2)}, {})
    with raises("does-not-fit"):
        tessella.load(tmp_path / "run")


def test_a_newer_specification_is_refused(digits, tmp_path):
    trained(digits, tmp_path / "run", steps=1)
    path = tmp_path / "run" / checkpoint.SPEC
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    with raises("other-version", version=3):
        tessella.load(tmp_path / "run")


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"version": 1}', '{"version": "x"}', "\x00"])
def test_a_damaged_specification_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(RunError) as caught:
        checkpoint.read_spec(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_specification_survives_the_way_to_disk(tmp_path):
    schema = Schema.of((2,), Real(-1.5, 2.0), (0.1, 0.2), (1.0, 3.0), ("a", "b"))
    spec = Spec("vae", schema, data={"spec": "x.npy", "seed": 0}, training={"steps": 3})
    checkpoint.write_spec(tmp_path, spec)
    assert checkpoint.read_spec(tmp_path) == spec


def test_the_budget_is_checked():
    for budget in (
        {"minutes": 0},
        {"steps": 0},
        {"epochs": -1.0},
        {"minutes": float("nan")},
        {"steps": 1, "minutes": 1},
    ):
        with pytest.raises(SpecError):
            TrainOptions(**budget)
    assert TrainOptions().minutes == 10
    assert TrainOptions(epochs=2).minutes is None


def test_epochs_are_counted_in_joined_batches():
    assert step.budget_in_steps(TrainOptions(epochs=2), 100, 10) == 20
    assert step.budget_in_steps(TrainOptions(epochs=2), 100, 20) == 10
    assert step.budget_in_steps(TrainOptions(epochs=3), 100, 500) == 3
    assert step.budget_in_steps(TrainOptions(minutes=1), 100, 1) is None


def test_the_objective_is_distortion_plus_beta_times_rate_plus_penalty():
    distortion, rate = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0])
    per_unit = torch.tensor([[0.5, 1.5], [0.1, 3.9]])
    terms = Terms(distortion, rate, per_unit, torch.tensor([10.0, 20.0]))
    assert step.objective(terms, Objective(), 1.0) == 2 + 3 + 15
    assert step.objective(terms, Objective(), 0.5) == 2 + 1.5 + 15
    assert step.objective(Terms(distortion, None), Objective(), 1.0) == 2


def test_free_bits_take_the_gradient_from_units_below_the_floor():
    per_unit = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
    terms = Terms(torch.zeros(2), per_unit.sum(1), per_unit)
    loss = step.objective(terms, Objective(free_bits=0.5), 2.0)
    assert loss.item() == pytest.approx(2 * (0.5 + 3.0))
    loss.backward()
    assert torch.equal(per_unit.grad, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))


def test_the_warm_up_and_the_learning_rate_follow_the_fraction_of_the_budget():
    assert [step.beta_at(Objective(beta=4, warmup=0.5), u) for u in (0, 0.25, 0.5, 1)] == [0, 2, 4, 4]
    assert step.beta_at(Objective(beta=4), 0) == 4
    for steps in (20, 300, 20_000):  # the rate rises over fifty steps or 3 % of the budget, at most over 30 %
        rates = [step.learning_rate_factor(u / steps, u) for u in range(steps + 1)]
        risen = rates.index(max(rates)) / steps
        assert max(rates) > 0.7
        assert 0 < rates[0] < 0.03
        assert risen == pytest.approx(max(0.03, min(50 / steps, 0.3)), abs=1 / steps)
        assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_too_little_memory_is_said_in_one_line(digits, tmp_path, monkeypatch):
    def exhausted(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop._Loop, "_update", exhausted)
    with raises("out-of-memory"):
        trained(digits, tmp_path / "run")


def test_several_draws_train_the_importance_weighted_bound():
    weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    terms = Terms(torch.zeros(3), torch.zeros(3), log_weights=weights)
    expected = -weights.exp().mean(0).log().mean()
    torch.testing.assert_close(step.objective(terms, Objective(iwae_samples=4), 1.0), expected)
    assert [step.draws_at(Objective(iwae_samples=4, iwae_from=0.5), u) for u in (0.4, 0.5)] == [None, 4]
    assert step.draws_at(Objective(), 0.5) is None
    for wrong in (
        {"iwae_samples": 2, "beta": 2.0},
        {"iwae_samples": 2, "free_bits": 0.1},
    ):
        with pytest.raises(SpecError):
            Objective(**wrong)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("c++") is None or not Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
    reason="torch.compile needs a C++ compiler and Python's headers on a CPU",
)
def test_compiled_networks_say_the_same(digits):
    """Compilation reorders float32 sums: 1e-4 relative is far above that and far below any other network."""
    torch.manual_seed(0)
    model = make(tessella.VAE, digits.schema, **SMALL)
    x = digits.split("test").batch(range(8)).x
    plain = model(x, noise=Noise(0))
    model.compile_networks()
    compiled = model(x, noise=Noise(0))
    torch.testing.assert_close(compiled.bound, plain.bound, rtol=1e-4, atol=1e-4)
    compiled.bound.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_trackers_are_told_and_one_that_is_missing_is_refused_first(tmp_path: Path) -> None:
    data = tessella.open_data("digits")
    model = tessella.VAE(data.schema, width=8, depth=1, latent_dim=2)
    with raises("tracker-not-installed", name="wandb"):
        loop.train(model, data, tmp_path / "none", TrainOptions(steps=1, track="tensorboard,wandb"))
    with raises("unknown-tracker"):
        loop.train(model, data, tmp_path / "none", TrainOptions(steps=1, track="notebook"))
    assert not (tmp_path / "none").exists()
    loop.train(model, data, tmp_path / "run", TrainOptions(steps=50, batch_size=8, track="tensorboard"))
    assert list((tmp_path / "run" / "trackers").rglob("events.out.tfevents.*"))
    assert (tmp_path / "run" / "metrics.jsonl").is_file()
