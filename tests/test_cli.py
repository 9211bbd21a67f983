"""The command line: what it answers, what it refuses in one line, and that nothing is half-written."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessella import cli
from tessella.cli import main
from tessella.core import tensors
from tessella.core.tensors import read_tensors
from tessella.foundation import registry
from tessella.foundation.errors import RunError
from tessella.training import checkpoint
from tessella.training.run import load

TINY = ("--steps", "3", "--batch-size", "8", "--width", "8", "--depth", "1", "--latent-dim", "3")
CONDITIONAL = "cvae"


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny run of each model on the digits."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("vae", "ae", CONDITIONAL):
        assert main(["train", name, "--data", "digits", "--out", str(folder / name), "--quiet", *TINY]) == 0
    return {name: folder / name for name in ("vae", "ae", CONDITIONAL)}


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A run of one's own, to do anything with."""
    return Path(shutil.copytree(runs["vae"], tmp_path / "run"))


# help


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], ["-h"], ["help"]):
        assert main(args) == 0
        said = capsys.readouterr().out
        assert all(f"\n  {name} " in said for name in cli.summaries())
        assert max(map(len, said.splitlines())) <= 120


def test_the_overview_and_the_commands_agree() -> None:
    assert set(cli.summaries()) == {*cli.COMMANDS, *registry.names("task")}


def test_no_help_waits_for_torch() -> None:
    """The overview does without the parser too; the options of a command, a model and a prior do without PyTorch."""
    every = [[name] for name in cli.COMMANDS] + [[e.name] for e in registry.entries("task") if e.origin == "tessella"]
    every += [["train", name] for name in registry.names("model")]
    every += [["fit-prior", "--kind", name] for name in (*registry.names("prior"), *registry.names("code-prior"))]
    for words, heavy in (([[]], {"torch", "numpy", "tyro", "rich", "PIL"}), (every, {"torch"})):
        code = (
            f"import sys; from tessella.plugin import main; statuses = [main([*w, '--help']) for w in {words}];"
            f"heavy = {heavy} & set(sys.modules); sys.exit(f'{{heavy}}' if heavy else max(statuses))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_options_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "script.sh"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "tessella").write_text(f"#!/bin/sh\nexec '{sys.executable}' -m tessella \"$@\"\n")
    (tmp_path / "tessella").chmod(0o755)

    def completed(*words: str) -> list[str]:
        line = " ".join(map(shlex.quote, words))
        asked = f"source {script}; COMP_WORDS=(tessella {line}); COMP_CWORD={len(words)}; _tessella; "
        code = f'{asked} printf "%s\\n" "${{COMPREPLY[@]}}"'
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", code], capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
        )
        assert not done.stderr
        return done.stdout.split()

    assert completed("") == list(cli.summaries())
    assert completed("tr") == ["train", "traverse"]
    assert completed("train", "vq") == ["vqvae", "vqvae2"]
    assert completed("train", "vqvae", "--quantizer", "r") == ["residual"]
    assert completed("train", "vqvae", "--quantizer", "fsq", "--compile", "yes", "--lev") == ["--levels"]
    assert completed("train", "vqvae", "--lev") == []
    assert completed("fit-prior", "RUN", "--kind", "ma") == ["masked"]
    assert completed("sample", "RUN", "--top") == ["--top-k", "--top-p"]
    assert completed("sample", "") == []  # names of files


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_of_completion_name_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert set(cli.summaries()) <= set(re.findall(r"[\w-]+", said))
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=said, text=True, check=True)


@pytest.mark.parametrize("name", cli.summaries())
def test_every_command_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"usage: tessella {name}" in said


def test_parts_lists_the_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    said = capsys.readouterr().out
    for kind in ("model", "likelihood", "bottleneck", "quantizer", "prior", "code-prior"):
        for entry in registry.entries(kind):
            assert f"\n{entry.name} " in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["frobnicate"], "no command 'frobnicate'"),
        (["train", "--frobnicate"], "--frobnicate"),
        (["train", "vae", "--data", "digits", "--steps", "many"], "--steps"),
        (["sample"], "RUN"),
        (["list", "surplus"], "surplus"),
    ],
)
def test_a_command_that_is_not_understood_takes_one_line(
    args: list[str], says: str, refused: Callable[..., str]
) -> None:
    assert says in refused(*args)


# what each command leaves


def test_data_is_described_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "digits", "-o", str(tmp_path / "sheet.png")]) == 0
    said = capsys.readouterr().out
    assert "train 1,567, valid 89, test 141" in said
    assert Image.open(tmp_path / "sheet.png").size[0] > 100
    assert main(["describe", "digits", "--size", "10", "12", "-o", str(tmp_path / "wide.png")]) == 0
    assert "pictures of 12x10" in capsys.readouterr().out


def test_evaluation_is_json_with_all_keys_and_kept_with_the_run(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = []
    for _ in range(2):
        assert main(["evaluate", str(runs["vae"]), "--json", "--importance-samples", "2", "--seed", "5"]) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    first, second = outputs
    keys = "model data split examples dims rate distortion bound bits_per_dim importance_bound kl_per_unit active_units"
    last = ["mse", "psnr", "parameters", "seconds", "codes", "collapse", "sound", "notes"]
    assert {*keys.split(), *last} == set(first)
    assert set(first["importance_bound"]) == {"samples", "nats", "bits_per_dim"}
    del first["seconds"], second["seconds"]
    assert first == second
    kept = json.loads((runs["vae"] / "results/evaluation-test.json").read_text())
    assert kept["bound"] == first["bound"]
    assert kept["step"] == 3


def test_an_autoencoder_has_no_bound(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(runs["ae"]), "--json", "--split", "valid"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [record[k] for k in ("rate", "bound", "bits_per_dim", "kl_per_unit", "active_units")] == [None] * 5
    assert main(["evaluate", str(runs["ae"]), "--split", "valid"]) == 0
    assert "none" in capsys.readouterr().out


def test_evaluation_in_words_says_what_the_numbers_mean(
    runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(runs["vae"]), "--split", "valid"]) == 0
    said = capsys.readouterr().out
    assert "bits per dimension" in said
    assert "per picture" in said


def test_other_data_leaves_the_kept_evaluation_alone(run: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (60, 9, 9, 3), dtype=np.uint8)
    np.savez(tmp_path / "other.npz", x=x)
    (run / "results").mkdir(exist_ok=True)
    (run / "results/evaluation-test.json").write_text("kept")
    assert main(["evaluate", str(run), "--data", str(tmp_path / "other.npz"), "--json"]) == 0
    assert (run / "results/evaluation-test.json").read_text() == "kept"


@pytest.mark.parametrize(
    "args",
    [
        ["sample", "vae", "-n", "6"],
        ["sample", CONDITIONAL, "-n", "20"],
        ["sample", CONDITIONAL, "-n", "4", "--label", "7", "--temperature", "0.5"],
        ["reconstruct", "vae", "-n", "5"],
        ["reconstruct", "ae", "3", "17", "--split", "valid"],
        ["reconstruct", CONDITIONAL],
        ["reconstruct", "vae", "PICTURE", "2"],
        ["interpolate", "vae", "0", "1"],
        ["interpolate", CONDITIONAL, "0", "PICTURE", "--label", "3", "--steps", "4"],
        ["traverse", "vae"],
        ["traverse", "ae", "5", "--dimensions", "2"],
        ["traverse", CONDITIONAL, "PICTURE", "--label", "3"],
    ],
    ids=" ".join,
)
def test_looks_write_a_picture(args: list[str], runs: dict[str, Path], tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 12, 3), 99, np.uint8)).save(tmp_path / "in.png")
    command, model, *rest = [str(tmp_path / "in.png") if a == "PICTURE" else a for a in args]
    out = tmp_path / "new" / "out.png"
    assert main([command, str(runs[model]), *rest, "-o", str(out)]) == 0
    with Image.open(out) as image:
        assert min(image.size) >= 64
    assert os.listdir(out.parent) == ["out.png"]


def test_seeds_decide_samples(runs: dict[str, Path], tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        out = str(tmp_path / f"{name}.png")
        assert main(["sample", str(runs["vae"]), "-n", "4", "--seed", seed, "-o", out]) == 0
    a, b, c = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


def test_resuming_needs_the_folder_alone(run: Path, refused: Callable[..., str]) -> None:
    assert main(["train", "--resume", "--out", str(run), "--steps", "5", "--quiet"]) == 0
    assert read_tensors(run / checkpoint.MODEL).progress["step"] == 5
    again = ["train", "vae", "--data", "digits", "--out", str(run), "--quiet", *TINY, "--resume"]
    assert main(again) == 0  # the same command once more
    assert "width 8, not 16" in refused("train", "--resume", "--out", run, "--width", 16)
    assert "model vae, not ae" in refused("train", "ae", "--resume", "--out", run)
    assert "sprites has uint8 values of shape" in refused("train", "--resume", "--out", run, "--data", "sprites")
    assert "one of them" in refused("train", "--resume", "--overwrite", "--out", run)


@pytest.mark.slow
# what goes wrong


def test_bad_data_is_refused_and_no_run_is_begun(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    grey = np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)
    real = np.random.default_rng(0).normal(size=(60, 5))
    hurt = real.copy()
    hurt[3, 2] = np.nan
    arrays = {"grey": {"x": grey}, "real": {"x": real}, "nan": {"x": hurt}, "keys": {"a": grey, "b": grey}}
    arrays["object"] = {"x": np.array([{}, []] * 30, dtype=object)}
    for name, content in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **content)
    cases = [
        (["vae"], "missing.npz", "no such data"),
        (["vae"], "empty", "no pictures"),
        (["vae"], "broken", "can be read"),
        (["vae"], "nan.npz", "NaN"),
        (["vae"], "keys.npz", "the file has a (60x8x8)"),
        (["vae"], "object.npz", "object"),
        (["cvae"], "grey.npz", "labels"),
        (["vae", "--likelihood", "bernoulli"], "grey.npz", "--binarize"),
        (["vae", "--likelihood", "logistic"], "real.npz", "real"),
        (["vae", "--likelihood", "psychic"], "grey.npz", "psychic"),
        (["gan"], "grey.npz", "no model is called 'gan'"),
        (["vae", "--binarize", "static"], "real.npz", "binarize"),
        (["vae", "--size", "1", "2", "3"], "grey.npz", "size"),
        (["vae", "--latent-dim", "0"], "grey.npz", "latent dim"),
        (["vae", "--learning-rate", "-1"], "grey.npz", "--learning-rate"),
    ]
    for options, data, says in cases:
        line = refused("train", *options, "--data", tmp_path / data, "--out", tmp_path / "run", "--quiet", *TINY[:2])
        assert says in line, (options, data, line)
        assert not (tmp_path / "run").exists()


def test_a_folder_of_odd_pictures_trains_and_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, noise = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for k in range(30):
        side, mode = 2 + k % 5, ("L", "RGB", "RGBA")[k % 3]
        Image.fromarray(noise.integers(0, 256, (side, 3, 4), dtype=np.uint8)).convert(mode).save(folder / f"{k}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture")
    out = str(tmp_path / "run")
    assert main(["train", "vae", "--data", str(folder), "--size", "2", "3", "--out", out, *TINY]) == 0
    said = capsys.readouterr().out
    assert "1 of 31 pictures could not be read" in said
    assert "broken.png" in said
    assert "different modes" in said
    assert main(["sample", out, "-n", "2", "-o", str(tmp_path / "samples.png")]) == 0


def test_a_full_disk_while_training_is_said_in_one_line(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(given: object, path: Path, note: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    run = tmp_path / "run"
    assert "disk is full" in refused("train", "vae", "--data", "digits", "--out", run, "--quiet", *TINY)
    assert not list(run.rglob("*.safetensors*"))
    assert not list(run.rglob("*.draft"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--minutes", "0"], "more than 0"),
        (["--steps", "0"], "more than 0"),
        (["--epochs", "-1"], "more than 0"),
        (["--minutes", "nan"], "more than 0"),
        (["--steps", "3", "--minutes", "1"], "one budget"),
        (["--steps", "3", "--beta", "-1"], "beta"),
    ],
)
def test_a_budget_of_nothing_is_refused(
    args: list[str], says: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert says in refused("train", "vae", "--data", "digits", "--out", tmp_path / "run", *args)
    assert not (tmp_path / "run").exists()


def test_what_a_training_needs_is_asked_for(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "--out RUN" in refused("train", "vae", "--data", "digits")
    assert "--data SPEC" in refused("train", "vae", "--out", tmp_path / "run")
    assert "vae" in refused("train", "--data", "digits", "--out", tmp_path / "run")
    assert "not a run" in refused("train", "--resume", "--out", tmp_path / "run")


def test_a_run_that_is_there_is_not_touched(run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    again = ["train", "vae", "--data", "digits", "--quiet", *TINY, "--out"]
    line = refused(*again, run)
    assert "--resume" in line
    assert "--overwrite" in line
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("diary")
    refused(*again, tmp_path / "letters")
    assert "not overwritten" in refused(*again, tmp_path / "letters", "--overwrite")
    refused(*again, tmp_path / "letters" / "dear.txt")
    assert (tmp_path / "letters" / "dear.txt").read_text() == "diary"
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", ["evaluate", "sample", "reconstruct", "traverse", "report"])
def test_damaged_runs_are_refused(command: str, run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "not a run" in refused(command, tmp_path / "nowhere")
    weights, spec = (run / checkpoint.MODEL).read_bytes(), (run / checkpoint.SPEC).read_text()
    (run / checkpoint.MODEL).write_bytes(weights[: len(weights) // 2])
    assert "damaged" in refused(command, run)
    tampered = bytearray(weights)
    tampered[-100] ^= 1
    (run / checkpoint.MODEL).write_bytes(bytes(tampered))
    assert "checksum" in refused(command, run)
    (run / checkpoint.MODEL).unlink()
    assert "missing" in refused(command, run)
    (run / checkpoint.SPEC).write_text(json.dumps({**json.loads(spec), "version": 99}))
    assert "upgrade" in refused(command, run)
    (run / checkpoint.SPEC).write_text(spec[:50])
    refused(command, run)


def test_inputs_that_are_none_are_named(runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    np.savetxt(tmp_path / "rows.csv", np.random.default_rng(0).normal(size=(60, 5)), delimiter=",")
    out = tmp_path / "out.png"
    vae, cvae = runs["vae"], runs[CONDITIONAL]
    cases = [
        (["reconstruct", vae, "missing.png"], "missing.png"),
        (["reconstruct", vae, "99999"], "from 0 to 140"),
        (["reconstruct", vae, tmp_path / "broken.png"], "broken.png"),
        (["reconstruct", vae, "--split", "holdout"], "train, valid, test"),
        (["reconstruct", vae, "-n", "0"], "at least 1"),
        (["reconstruct", cvae, tmp_path / "broken.png"], "--label"),
        (["sample", cvae, "--label", "eleven"], "there are: 0, 1"),
        (["sample", vae, "--label", "1"], "cvae"),
        (["sample", runs["ae"]], "no prior"),
        (["sample", vae, "-n", "0"], "from 1 to"),
        (["interpolate", vae, "0", "1", "--steps", "1"], "--steps must be at least 2"),
        (["traverse", vae, "--dimensions", "0"], "--dimensions must be at least 1"),
        (["traverse", vae, "--data", tmp_path / "rows.csv"], "leave out --size"),
    ]
    for args, says in cases:
        line = refused(*args, "-o", out)
        assert says in line, (args, line)
        assert not out.exists()
    assert ".png" in refused("sample", vae, "-o", tmp_path / "out.gif")
    assert "bound" in refused("evaluate", runs["ae"], "--importance-samples", "3")
    assert "holdout" in refused("evaluate", vae, "--split", "holdout")


def test_pictures_are_written_whole_or_not_at_all(
    runs: dict[str, Path], tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    refused("sample", runs["vae"], "-n", "1", "-o", tmp_path / "file" / "out.png")

    def full(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert "disk is full" in refused("sample", runs["vae"], "-n", "1", "-o", tmp_path / "out.png")
    assert os.listdir(tmp_path) == ["file"]


def test_interruptions_end_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(task: object, options: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tessella.commands.tasks.run_task", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "tessella: interrupted\n"


def test_a_stopped_training_says_how_to_go_on(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tessella.training import loop

    monkeypatch.setattr(loop, "train", lambda *a, **k: loop.TrainResult(run, 7, 1.0, "signal"))
    assert main(["train", "--resume", "--out", str(run), "--quiet"]) == 130
    assert f"tessella train --resume --out {run}" in capsys.readouterr().out


def test_only_the_main_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["list"]) == 0
    assert main(["sample", "nowhere"]) == 2
    said = capsys.readouterr()
    assert said.out == said.err == ""


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import os, sys; from tessella.cli import main; read, write = os.pipe(); os.dup2(write, 1); os.close(read);"
        "os.close(write); sys.exit(main(['list']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.returncode == 141


def test_errors_of_the_package_itself_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(task: object, options: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("tessella.commands.tasks.run_task", defective)
    with pytest.raises(ZeroDivisionError):
        main(["list"])
    with pytest.raises(RunError):
        load("nowhere")
