"""Runs of strangers: what they say is checked before it is used, and no link in them is followed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import tessella
from expect import raises
from tessella.cli import main
from tessella.core.tensors import read_tensors, write_tensors
from tessella.foundation import files, validation
from tessella.foundation.errors import RunError
from tessella.models.spec import ModelConfig, Spec
from tessella.training import checkpoint

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = ("--steps", "2", "--batch-size", "8", "--width", "8", "--depth", "1", "--quiet")


def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hostile", BENCHMARKS / "hostile.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model of codes."""
    run = tmp_path_factory.mktemp("sound") / "run"
    words = ("train", "vqvae", "--data", "digits", "--grid-size", "2", "--codebook-size", "8", "--out", str(run), *TINY)
    assert main(list(words)) == 0
    return run


@pytest.fixture
def run(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "run"))


def edited(run: Path, **changes: Any) -> None:
    """Write other values into spec.json; `config__width=3` is the width of the model."""
    record = json.loads((run / "spec.json").read_text())
    for name, value in changes.items():
        *way, last = name.split("__")
        inner = record
        for key in way:
            inner = inner[key]
        inner[last] = value
    (run / "spec.json").write_text(json.dumps(record))


# sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"config__width": 10**9},
        {"config__depth": 10**6},
        {"config__depth": 10**12},
        {"config__quantizer__codebook_size": 10**12},
        {"config__quantizer__codebook_size": 10**7},
        {"config__quantizer__codes_per_position": 10**6},
        {"config__quantizer__code_dim": 10**9},
        {"config__grid_size": 10**9},
        {"model": "vqvae2", "config__type": "vqvae2", "config__levels": 10**5},
        {"schema__shape": [3, 10**6, 10**6]},
        {"schema__shape": [10**7]},
        {"schema__shape": [1, 2000, 2000]},
        {"model": "flow", "config": {"type": "flow", "flow_steps": 10**6}},
        {"model": "vae", "config": {"type": "vae", "latent_dim": 10**9}},
    ],
)
def test_what_asks_for_more_than_its_tensors_is_refused_before_it_is_built(
    run: Path, changes: dict[str, Any], refused: Callable[..., str]
) -> None:
    edited(run, **changes)
    refused("sample", run, "-o", run.parent / "samples.png")
    started = time.process_time()
    with pytest.raises(RunError, match=r"spec\.json"):
        tessella.load(run)
    assert time.process_time() - started < 5  # building any of these would take minutes


def test_ten_million_classes_are_refused_by_the_size_of_the_file(run: Path, refused: Callable[..., str]) -> None:
    text = (run / "spec.json").read_text()
    (run / "spec.json").write_text(text + " " * validation.MOST_BYTES)
    assert "bytes" in refused("sample", run)


def test_a_model_is_built_as_it_always_was(sound: Path) -> None:
    spec = checkpoint.read_spec(sound)
    torch.manual_seed(0)
    one = spec.build().state_dict()
    torch.manual_seed(0)
    other = checkpoint.build(sound).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


# types


STRANGE = (None, True, -1, 10**30, 1e308, "", "\ud800", "x" * 10**5, [], [[]], {}, [3, "a"])


def test_every_field_of_a_specification_is_checked_by_its_type(sound: Path) -> None:
    text = (sound / "spec.json").read_text()
    whole = json.loads(text)
    assert Spec.from_json(text, "spec.json").to_json() == checkpoint.read_spec(sound).to_json()
    holders = (whole, whole["schema"], whole["config"], whole["config"]["quantizer"], whole["training"])
    places = [(holder, key) for holder in holders for key in holder]
    for holder, key in places:
        kept = holder[key]
        for strange in STRANGE:
            holder[key] = strange
            with suppress(RunError):
                spec = Spec.from_json(json.dumps(whole), "spec.json")  # then it is what the annotation says
                assert validation.fitted(ModelConfig | None, json.loads(spec.to_json())["config"]) == spec.config
        holder[key] = kept


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "levels"),
        ("[" * 40 + "]" * 40, "levels"),
        ('{"a": 1, "a": 2}', "twice"),
        ("[NaN]", "NaN"),
        ("[-Infinity]", "Infinity"),
        ("{", "not JSON"),
        ("", "not JSON"),
        ("[" + "9" * 5000 + "]", "not JSON"),
    ],
)
def test_json_that_is_none_is_refused(text: str, says: str) -> None:
    with pytest.raises(validation.Malformed, match=says):
        validation.parse(text)


def test_brackets_in_texts_are_no_nesting() -> None:
    assert validation.parse(json.dumps({"a": "[" * 99, 'b"\\': ['{"']})) == {"a": "[" * 99, 'b"\\': ['{"']}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, True), (int, 1.0), (int, 10**30), (float, "1"), (float, float("inf")), (float, 10**400), (bool, 1),
        (str, 1), (tuple[int, ...], "12"), (tuple[int, int], [1]), (int | None, "1"), (dict[str, int], {"a": "b"}),
    ],
)  # fmt: skip
def test_values_of_other_types_are_refused(kind: Any, value: Any) -> None:
    with pytest.raises(validation.Malformed):
        validation.fitted(kind, value)


def test_values_of_their_types_are_given_back() -> None:
    assert validation.fitted(tuple[float, ...], [1, 2.5]) == (1.0, 2.5)
    assert validation.fitted(int | None, None) is None
    assert validation.fitted(dict[str, tuple[str, int]], {"a": ["b", 3]}) == {"a": ("b", 3)}


# tensors


def test_weights_of_other_names_shapes_types_or_values_are_refused(run: Path, refused: Callable[..., str]) -> None:
    path = run / checkpoint.MODEL
    sound = read_tensors(path).tensors
    name = max(sound, key=lambda n: sound[n].numel())
    for change in (
        {name: sound[name].double()},
        {name: sound[name].to(torch.int8)},
        {name: sound[name].flatten()},
        {name: torch.full_like(sound[name], torch.nan)},
        {name: torch.zeros(0)},
        {"more": torch.zeros(10**6)},
    ):
        write_tensors(path, {**sound, **change}, {"step": 2})
        assert checkpoint.MODEL in refused("sample", run)
    write_tensors(path, {n: t for n, t in sound.items() if n != name}, {"step": 2})
    assert checkpoint.MODEL in refused("sample", run)


def test_codes_of_other_data_or_values_are_made_anew(run: Path) -> None:
    words = ["fit-prior", str(run), *TINY]
    assert main(words) == 0
    path = run / checkpoint.CODES
    state = read_tensors(path)
    for tensors, progress in (
        ({**state.tensors, "train.codes": state.tensors["train.codes"] + 100}, state.progress),
        ({**state.tensors, "train.codes": state.tensors["train.codes"][:, :9]}, state.progress),
        (state.tensors, {**state.progress, "data": "another"}),
    ):
        write_tensors(path, tensors, progress)
        assert main([*words, "--overwrite"]) == 0
        again = read_tensors(path)
        assert again.progress == state.progress
        assert torch.equal(again.tensors["train.codes"], state.tensors["train.codes"])


# files


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("a.txt", ".a.txt.draft"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    files.write_atomic(tmp_path / "a.txt", lambda draft: draft.write_text("new"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.txt.draft", "a.txt", "mine"]


def test_the_umask_decides_who_reads_a_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_nothing_is_reached_through_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "pictures").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "also").symlink_to(tmp_path / "run")
    for name in ("pictures/a.png", "../a.png", "/a.png", "pictures/../a.png"):
        with pytest.raises(RunError):
            files.place(tmp_path / "run", name)
    assert files.place(tmp_path / "also", "a.png") == tmp_path / "also" / "a.png"  # the user's own link
    (tmp_path / "run" / "spec.json").symlink_to("/etc/hostname")
    with raises("link"):
        checkpoint.read_spec(tmp_path / "run")


def test_appending_follows_no_link_and_leaves_other_names_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine\n")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError):
        files.append(tmp_path / "link", "more\n")
    os.link(tmp_path / "mine", tmp_path / "hard")
    files.append(tmp_path / "hard", "more\n")
    assert (tmp_path / "mine").read_text() == "mine\n"
    assert (tmp_path / "hard").read_text() == "mine\nmore\n"


def test_drafts_of_killed_processes_go_after_a_day(tmp_path: Path) -> None:
    for name, age in ((".tessella-abcdefgh.draft", 2 * files.STALE), (".tessella-12345678.draft", 0.0)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.write_atomic(tmp_path / "a", lambda draft: draft.write_text("a"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tessella-12345678.draft", "a"]


# all together


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_mutated_runs_and_links_end_in_a_line(tmp_path: Path) -> None:
    hostile = harness()
    hostile.warm()
    for name in ("runs", "mutations", "links"):
        (tmp_path / name).mkdir()
    child = os.fork()
    if child == 0:
        hostile.make(tmp_path / "runs")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    runs = {name: tmp_path / "runs" / name for name in ("vae", "vqvae", "fsq", "table")}
    mutations = list(hostile.attack(runs, tmp_path / "mutations", range(10_000, 10_020)))
    assert not [r for r in mutations if set(r["wrong"]) - {"slow"}]
    links = list(hostile.follow(runs["vqvae"], tmp_path / "links"))
    assert len(links) >= 20
    assert not [r for r in links if r["followed"] or set(r["wrong"]) - {"slow"}]


def test_the_mutations_are_many_and_change_something(run: Path, tmp_path: Path) -> None:
    hostile = harness()
    user = hostile.sentinel(tmp_path / "home")
    before, changed = hostile.tree(run), 0
    for seed in range(30):
        copy = Path(shutil.copytree(run, tmp_path / f"copy{seed}", symlinks=True))
        hostile.mutated(copy, [run], user, np.random.default_rng(seed))
        now = {name.replace(str(copy), str(run)): what.split()[-1] for name, what in hostile.tree(copy).items()}
        changed += now != {name: what.split()[-1] for name, what in before.items()}
    assert changed > 20


def test_a_checkpoint_that_lacks_a_part_is_not_gone_on_with(run: Path, refused: Callable[..., str]) -> None:
    path = run / checkpoint.STATE
    sound = read_tensors(path)
    for kind in ("model", "average", "optimizer.step", "optimizer.exp_avg_sq"):
        name = next(name for name in sound.tensors if name.startswith(kind))
        write_tensors(path, {n: t for n, t in sound.tensors.items() if n != name}, sound.progress)
        assert "another model" in refused("train", "--resume", "--out", run, "--steps", "4", "--quiet")
    for progress in ({}, {**sound.progress, "step": "2"}, {**sound.progress, "step": -1}):
        write_tensors(path, sound.tensors, progress)
        assert "another model" in refused("train", "--resume", "--out", run, "--steps", "4", "--quiet")
