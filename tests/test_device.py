"""Where networks run: names, refusals, the environment, and every command that takes `--device`."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

import tessella
from expect import raises
from tessella import cli
from tessella.commands import command
from tessella.core import device
from tessella.foundation.errors import option

WITHOUT_NETWORKS = {"completion", "describe", "inspect", "list"}


@pytest.fixture
def two_cards(monkeypatch):
    """As it is on a machine with two CUDA cards; nothing can run on them."""
    monkeypatch.setattr(device, "_count", {"cuda": 2, "xpu": 0, "mps": 0}.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: f"Card {d.index}")


@pytest.fixture(autouse=True)
def without_variable(monkeypatch):
    monkeypatch.delenv(device.VARIABLE, raising=False)


def test_auto_is_the_best_there_is(two_cards):
    assert device.available_devices() == ("cuda:0", "cuda:1", "cpu")
    assert (
        device.resolve_device()
        == device.resolve_device("auto")
        == device.resolve_device("cuda")
        == torch.device("cuda:0")
    )
    assert device.resolve_device("CUDA:1") == torch.device("cuda:1")
    assert device.resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert (
        device.device_reason(None)
        == device.device_reason("auto")
        == f"the best one available; {option('device')} cpu chooses another"
    )
    assert device.device_reason("cuda") is None
    assert device.describe_device(device.resolve_device("cuda:1")) == "cuda:1 (Card 1)"


def test_the_variable_chooses_where_nothing_else_does(two_cards, monkeypatch):
    monkeypatch.setenv(device.VARIABLE, "cpu")
    assert device.resolve_device() == torch.device("cpu")
    assert device.device_reason(None) == f"set by {device.VARIABLE}"
    assert device.resolve_device("auto") == torch.device("cuda:0")
    monkeypatch.setenv(device.VARIABLE, "gpu")
    with raises("no-device"):
        device.resolve_device()


@pytest.mark.parametrize("name", ["gpu", "cuda:2", "cuda:-1", "cpu:0", "mps", "xpu", "cuda:x", ":", "cuda:"])
def test_what_is_not_there_is_refused_with_what_there_is(two_cards, name):
    if name == "cuda:":
        assert device.resolve_device(name) == torch.device("cuda:0")
        return
    with raises("no-device"):
        device.resolve_device(name)


def _takes_a_device(options: Any) -> bool:
    hints = get_type_hints(options)
    nested = (hints[f.name] for f in fields(options))
    return "device" in hints or any(is_dataclass(kind) and _takes_a_device(kind) for kind in nested)


def test_every_command_that_runs_a_network_takes_a_device():
    assert {name for name in cli.summaries() if not _takes_a_device(command(name)[0])} == WITHOUT_NETWORKS


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = str(tmp_path_factory.mktemp("device") / "run")
    small = ["--steps", "2", "--width", "8", "--depth", "1", "--latent-dim", "2", "--quiet"]
    assert cli.main(["train", "vae", "--data", "digits", "--out", out, *small]) == 0
    return out


def test_it_is_said_once_unless_it_was_asked_for(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(device, "_count", lambda kind: 0)
    out = ["-n", "2", "-o", str(tmp_path / "x.png")]
    assert cli.main(["sample", run, *out]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "device   cpu, the only one available"
    assert cli.main(["sample", run, *out, "--device", "cpu"]) == 0
    assert "device" not in capsys.readouterr().out
    assert cli.main(["evaluate", run, "--json"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("{")
    assert said.err.count("device   cpu") == 1
    assert cli.main(["sample", run, *out, "--device", "mps"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert cli.main(["train", "vae", "--data", "digits", "--out", str(tmp_path / "new"), "--device", "cuda"]) == 2
    assert "there are: cpu" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_load_knows_the_names(run):
    assert tessella.load(run, device="auto").device == device.resolve_device("auto")
    assert tessella.load(run).device == torch.device("cpu")
    with raises("no-device"):
        tessella.load(run, device="tpu")


def test_coding_stays_on_the_processor_and_says_so(run, tmp_path, capsys, two_cards):
    file = str(tmp_path / "x.tes")
    assert cli.main(["compress", run, "0", "1", "-o", file, "--device", "cuda"]) == 0
    assert "coding runs on the CPU" in capsys.readouterr().err
    assert cli.main(["decompress", file, "-o", str(tmp_path / "back"), "--device", "cuda:1"]) == 0
    assert "coding runs on the CPU" in capsys.readouterr().err


def test_a_resumed_run_goes_on_where_it_is_asked_to(run, tmp_path, capsys):
    out = str(tmp_path / "run")
    small = ["--width", "8", "--depth", "1", "--latent-dim", "2", "--quiet"]
    assert cli.main(["train", "vae", "--data", "digits", "--out", out, "--steps", "1", *small]) == 0
    spec = tmp_path / "run" / "spec.json"
    spec.write_text(spec.read_text().replace('"device": null', '"device": "cuda:7"'))
    assert cli.main(["train", "--resume", "--out", out, "--steps", "2", "--device", "cpu", "--quiet"]) == 0
    assert cli.main(["train", "--resume", "--out", out, "--steps", "3", "--quiet"]) == 0


def test_estimators_take_a_device_and_pickle_none(monkeypatch):
    from tessella.sklearn import LatentTransformer

    x = np.random.default_rng(0).normal(size=(40, 3))
    fitted = LatentTransformer(max_steps=2, random_state=0, device="cpu").fit(x)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.transform(x), fitted.transform(x))
    with raises("no-device"):
        LatentTransformer(max_steps=2, device="tpu").fit(x)
