"""Run folders as a stranger might hand them over: mutated ones, and ones with links in them.

A run is copied, one or two things in it are changed, and a command reads it in a process of its own, forked where
everything is imported. It must end with status 0, or with 2 and one line; soon; in little memory; and nothing outside
the run and the folder that it writes into may be touched. Of a command that succeeds the time is what it takes more
than on the sound run; of one that refuses all of it. The clock is the process's own, so that a busy machine counts for
nothing.

`hostile.py` counts 500 mutations, `hostile.py --links` the kinds of links; the tests some of the former and all of the
latter.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECONDS, BYTES = 2.0, 1e9
TINY = ("--steps", "2", "--batch-size", "8", "--width", "8", "--depth", "1", "--quiet")
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 10**9, 10**12, 10**18, 10**40, 1e308, -0.5, "", "x" * 100_000, "\x1b[2J", "\ud800", "../../etc",
    [], [1] * 100_000, [[]], {}, {"a": 1}, [3, 10**6, 10**6], [[[[[[[[[]]]]]]]]],
)  # fmt: skip


# runs, and commands that read them


def make(folder: Path) -> dict[str, Path]:
    """Sound runs of several kinds, with all that a run can hold."""
    from tessella.cli import main

    rng = np.random.default_rng(0)
    np.save(folder / "table.npy", rng.normal(size=(120, 5)).astype(np.float32))
    runs = {name: folder / name for name in ("vae", "vqvae", "fsq", "table")}
    digits = ("--data", "digits", "--binarize", "threshold")
    wanted: list[tuple[str, ...]] = [
        ("train", "vae", *digits, "--out", str(runs["vae"]), *TINY),
        ("train", "vqvae", *digits, "--grid-size", "2", "--codebook-size", "8", "--out", str(runs["vqvae"]), *TINY),
        ("train", "vqvae", "--data", "digits", "--quantizer", "fsq", "--codebook-size", "64", "--grid-size", "2",
         "--out", str(runs["fsq"]), *TINY),
        ("train", "vae", "--data", str(folder / "table.npy"), "--out", str(runs["table"]), *TINY),
        ("fit-prior", str(runs["vqvae"]), *TINY),
        ("fit-prior", str(runs["vae"]), "--kind", "mixture", "--components", "3", "--steps", "2", "--quiet"),
    ]  # fmt: skip
    for name in ("vae", "vqvae"):
        run = str(runs[name])
        wanted += [("evaluate", run), ("index", run, *map(str, range(12))), ("report", run)]
    for name in ("vqvae", "fsq"):
        wanted.append(("encode", str(runs[name]), *map(str, range(6)), "-o", str(runs[name] / "codes.npz")))
    for words in wanted:
        if status := main(list(words)):
            raise SystemExit(f"{' '.join(words)} ended with {status}")
    return runs


def commands(run: Path, other: Path, out: Path) -> dict[str, list[str]]:
    """What reads a run, by name."""
    r, some = str(run), ["0", "1", "2"]
    return {
        "evaluate": ["evaluate", r],
        "report": ["report", r],
        "sample": ["sample", r, "-n", "4", "-o", str(out / "samples.png")],
        "reconstruct": ["reconstruct", r, *some, "-o", str(out / "pairs.png")],
        "encode": ["encode", r, *some, "-o", str(out / "codes.npz")],
        "decode": ["decode", r, str(run / "codes.npz"), "-o", str(out / "decoded")],
        "index": ["index", r, *some],
        "search": ["search", r, "0", "-o", str(out / "found.html")],
        "detect": ["detect", r, *some, "-o", str(out / "anomalies")],
        "compress": ["compress", r, *some, "-o", str(out / "file.tes"), "--quiet"],
        "edit": ["edit", r, "0", "--region", "0,0,4,4", "--code", "1", "-o", str(out / "edited")],
        "compare": ["compare", r, str(other), "--examples", "40", "-o", str(out / "compared.html")],
        "prior": ["fit-prior", r, "--kind", "pixelcnn", *TINY, "--overwrite"],
        "resume": ["train", "--resume", "--out", r, "--steps", "3", "--quiet"],
    }


# one command in a process of its own


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: its own; 99 for an exception that nobody caught, 128 and the signal's number if it was killed.
        seconds: of the processor.
        bytes: of memory at most, more than the process had when it began.
        said: what it wrote to stderr.
    """

    status: int
    seconds: float
    bytes: float
    said: str


def run_command(words: Sequence[str], *, limit: int = 120) -> Ended:
    """Fork, run the command line, and measure."""
    with tempfile.TemporaryFile("w+b") as said:
        child = os.fork()
        if child == 0:
            os._exit(_in_child(words, said.fileno(), limit))
        _, status, used = os.wait4(child, 0)
        said.seek(0)
        text = said.read().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(status)
    peak = text.rpartition("\npeak ")[2]
    text = text.rpartition("\npeak ")[0] if peak.strip().isdecimal() else text
    begun = int(peak) if peak.strip().isdecimal() else 0
    memory = max(0.0, (used.ru_maxrss - begun) * 1024.0)
    return Ended(code if code >= 0 else 128 - code, used.ru_utime + used.ru_stime, memory, text)


def _in_child(words: Sequence[str], said: int, limit: int) -> int:
    from tessella.cli import main

    signal.alarm(limit)
    begun = _resident()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    try:
        status = main(list(words))
    except BaseException:
        traceback.print_exc()
        status = 99
    sys.stderr.write(f"\npeak {begun}\n")
    sys.stderr.flush()
    return status


def _resident() -> int:
    """KiB that this process has in memory now, as far as the system says it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def faults(ended: Ended, usual: float) -> list[str]:
    """What is wrong with how a command ended.

    Args:
        usual: seconds that it takes on the sound run.
    """
    found = []
    if "Traceback" in ended.said or ended.status == 99:
        found.append("traceback")
    elif ended.status not in (0, 2):
        found.append(f"status {ended.status}")
    lines = [line for line in ended.said.splitlines() if line.startswith("tessella: ") and ": note:" not in line]
    if ended.status == 2 and len(lines) != 1:
        found.append("not one line")
    if ended.seconds - (usual if ended.status == 0 else 0) > SECONDS:
        found.append("slow")
    if ended.bytes > BYTES:
        found.append("memory")
    return found


def tree(folder: Path, without: Sequence[Path] = ()) -> dict[str, str]:
    """Every file, folder and link below a folder, with what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if any(path == w or w in path.parents for w in without):
            continue
        if path.is_symlink():
            found[str(path)] = f"link {os.readlink(path)}"
        elif path.is_file():
            status = path.stat()
            found[str(path)] = f"{status.st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        else:
            found[str(path)] = "folder"
    return found


# mutations


def mutated(run: Path, others: Sequence[Path], user: Path, rng: np.random.Generator) -> str:
    """Change a run, and say what was changed."""
    kinds = (flip, flip, cut, json_value, json_value, json_value, json_key, json_deep, swap, tensor, tensor, header,
             remove, link)  # fmt: skip
    return ", ".join(kinds[int(rng.integers(len(kinds)))](run, others, user, rng) for _ in range(rng.integers(1, 3)))


def _files(run: Path, *endings: str) -> list[Path]:
    found = [p for p in sorted(run.rglob("*")) if p.is_file() and not p.is_symlink() and "tensorboard" not in p.parts]
    return [p for p in found if not endings or p.name.endswith(endings)]


def _one(run: Path, rng: np.random.Generator, *endings: str) -> Path | None:
    files = _files(run, *endings)
    return files[int(rng.integers(len(files)))] if files else None


def flip(run: Path, _: Sequence[Path], __: Path, rng: np.random.Generator) -> str:
    """Flip bits."""
    path = _one(run, rng, ".json", ".jsonl", ".safetensors", ".npz")
    if path is None or not (data := bytearray(path.read_bytes())):
        return "nothing"
    for _flip in range(int(rng.integers(1, 6))):
        most = len(data) if rng.random() < 0.5 else min(len(data), 400)
        data[int(rng.integers(most))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return f"flip {path.name}"


def cut(run: Path, _: Sequence[Path], __: Path, rng: np.random.Generator) -> str:
    """Cut a file off, or lengthen it."""
    path = _one(run, rng, ".json", ".jsonl", ".safetensors", ".npz")
    if path is None:
        return "nothing"
    data = path.read_bytes()
    path.write_bytes(data[: int(rng.integers(len(data) + 1))] if rng.random() < 0.8 else data + rng.bytes(100))
    return f"cut {path.name}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a parsed JSON."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _edited(path: Path, edit: Callable[[Any], Any]) -> str:
    text = path.read_text("utf-8", "replace")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    try:
        parsed = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return "nothing"
    path.write_text("\n".join(json.dumps(edit(one)) for one in parsed))
    return path.name


def json_value(run: Path, _: Sequence[Path], __: Path, rng: np.random.Generator) -> str:
    """Put a strange value at some place."""
    path, strange = _one(run, rng, ".json", ".jsonl"), STRANGE[int(rng.integers(len(STRANGE)))]
    said = []

    def edit(value: Any) -> Any:
        places = list(_places(value))
        if not places:
            return strange
        holder, key = places[int(rng.integers(len(places)))]
        holder[key] = strange
        said.append(str(key))
        return value

    return "nothing" if path is None else f"value {str(strange)[:20]!r} at {said[:1]} of {_edited(path, edit)}"


def json_key(run: Path, _: Sequence[Path], __: Path, rng: np.random.Generator) -> str:
    """Drop an entry, or add one."""
    path = _one(run, rng, ".json", ".jsonl")

    def edit(value: Any) -> Any:
        places = [(h, k) for h, k in _places(value) if isinstance(h, dict)]
        if places:
            holder, key = places[int(rng.integers(len(places)))]
            kept = holder.pop(key)
            if rng.random() < 0.3:
                holder[f"{key}_"] = kept
        return value

    return "nothing" if path is None else f"key of {_edited(path, edit)}"


def json_deep(run: Path, _: Sequence[Path], __: Path, rng: np.random.Generator) -> str:
    """Nest deeply, say a key twice, write what is no number, or say it at length."""
    path = _one(run, rng, ".json", ".jsonl")
    if path is None:
        return "nothing"
    text = path.read_text("utf-8", "replace")
    deep = "[" * 100_000 + "]" * 100_000
    texts = [deep, text.replace("{", f'{{"version": 1, "a": {deep}, ', 1), text.replace("{", '{"version": 1, ', 1),
             text.replace("1", "NaN", 1), text.replace("0", "1e999", 1), text.replace("1", "9" * 5000, 1),
             "[" + "0," * 3_000_000 + "0]", text + " " * 20_000_000]  # fmt: skip
    number = int(rng.integers(len(texts)))
    path.write_text(texts[number])
    return f"deep {number} {path.name}"


def swap(run: Path, others: Sequence[Path], _: Path, rng: np.random.Generator) -> str:
    """Take a file from another run."""
    path = _one(run, rng, ".json", ".jsonl", ".safetensors", ".npz")
    if path is None:
        return "nothing"
    there = [f for other in others for f in _files(other, path.suffix)]
    same = [f for f in there if f.name == path.name] if rng.random() < 0.7 else there
    if not same:
        return "nothing"
    shutil.copyfile(same[int(rng.integers(len(same)))], path)
    return f"swap {path.name}"


def tensor(run: Path, _: Sequence[Path], __: Path, rng: np.random.Generator) -> str:
    """Rename, reshape, retype, drop or enlarge a tensor, or give it other values, and make the checksum right."""
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    from tessella.core.tensors import digest_of

    path = _one(run, rng, ".safetensors")
    if path is None:
        return "nothing"
    try:
        with safe_open(path, framework="pt") as file:
            note = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        return "nothing"
    names = sorted(tensors)
    if not names:
        return "nothing"
    name, kind = names[int(rng.integers(len(names)))], int(rng.integers(9))
    t = tensors.pop(name)
    if kind == 0:
        tensors[name + "x"] = t
    elif kind == 1:
        tensors[name] = t.flatten()
    elif kind == 2:
        tensors[name] = t.to([torch.float64, torch.int8, torch.float16, torch.int64][int(rng.integers(4))])
    elif kind == 3:
        tensors[name] = torch.cat([t.flatten(), t.flatten()])
    elif kind == 4 and t.is_floating_point():
        tensors[name] = torch.full_like(t, [float("nan"), float("inf"), 1e30, -1e30, 0.0][int(rng.integers(5))])
    elif kind == 5:
        tensors[name] = t + 100 if t.dtype != torch.bool else ~t
    elif kind == 6:
        tensors[name] = torch.zeros(0)
    elif kind == 7:
        tensors |= {name: t, "more": torch.zeros(100_000)}
    note["sha256"] = digest_of({n: v.contiguous() for n, v in tensors.items()})
    if rng.random() < 0.1:
        note["progress"] = ["", "[]", "{}", '{"step": "x"}', "[" * 10_000, '{"step": NaN}'][int(rng.integers(6))]
    save_file({n: v.contiguous() for n, v in tensors.items()}, path, note)
    return f"tensor {kind} {name} of {path.name}"


def header(run: Path, _: Sequence[Path], __: Path, rng: np.random.Generator) -> str:
    """Let the header of a file of tensors promise what is not there."""
    path = _one(run, rng, ".safetensors")
    if path is None or len(data := path.read_bytes()) < 8:
        return "nothing"
    length = int.from_bytes(data[:8], "little")
    try:
        record = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return "nothing"
    names, kind = [n for n in record if n != "__metadata__"], int(rng.integers(6))
    if not names:
        return "nothing"
    entry = record[names[int(rng.integers(len(names)))]]
    if kind == 0:
        entry["shape"] = [10**6, 10**6]
    elif kind == 1:
        entry["data_offsets"] = [0, 10**15]
    elif kind == 2:
        entry["dtype"] = "F4"
    elif kind == 3:
        record.pop("__metadata__", None)
    elif kind == 4:
        entry["data_offsets"] = record[names[0]]["data_offsets"]
    text = json.dumps(record).encode()
    promised = 10**12 if kind == 5 else len(text)
    path.write_bytes(struct.pack("<Q", promised) + text + data[8 + length :])
    return f"header {kind} {path.name}"


def remove(run: Path, _: Sequence[Path], __: Path, rng: np.random.Generator) -> str:
    """Take a file away, or put a folder or a pipe in its place."""
    path = _one(run, rng, ".json", ".jsonl", ".safetensors", ".npz")
    if path is None:
        return "nothing"
    path.unlink()
    kind = int(rng.integers(3))
    if kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    return f"{('remove', 'folder', 'pipe')[kind]} {path.name}"


def link(run: Path, _: Sequence[Path], user: Path, rng: np.random.Generator) -> str:
    """Put a link to a file or a folder of the user's in place of one of the run's, or where a file will be."""
    names = ["metrics.jsonl", "report.html", "pictures", "tensorboard", "state", "priors", "spec.json",
             "index.safetensors", "results", "codes.safetensors", ".report.html.draft",
             "model.safetensors", ".lock", ".lock.json", "priors/pixelcnn"]  # fmt: skip
    name = names[int(rng.integers(len(names)))]
    place_link(run / name, user / "folder" if "." not in Path(name).name else user / "notes.txt")
    return f"link {name}"


def place_link(path: Path, to: Path) -> None:
    """Put a link at a path, whatever was there."""
    if path.parent.is_symlink():
        return
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def sentinel(folder: Path) -> Path:
    """A folder of the user's, which nothing may touch."""
    user = folder / "user"
    (user / "folder").mkdir(parents=True)
    (user / "notes.txt").write_text("mine")
    (user / "folder" / "photo.png").write_bytes(b"mine too")
    return user


def attack(runs: dict[str, Path], folder: Path, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Mutate runs and read them; a record each."""
    user = sentinel(folder)
    usual: dict[tuple[str, str], float] = {}
    copy, out = folder / "copy", folder / "out"
    for seed in seeds:
        rng = np.random.default_rng(seed)
        kind = sorted(runs)[int(rng.integers(len(runs)))]
        others = [run for name, run in runs.items() if name != kind]
        _fresh(runs[kind], copy, out)
        names = list(commands(copy, others[0], out))
        name = names[int(rng.integers(len(names)))]
        words = commands(copy, others[0], out)[name]
        what = mutated(copy, others, user, rng)
        before = tree(folder, (copy, out))
        ended = run_command(words)
        outside = tree(folder, (copy, out)) != before
        if ended.status == 0 and (kind, name) not in usual:
            _fresh(runs[kind], copy, out)
            usual[kind, name] = run_command(words).seconds
        wrong = faults(ended, usual.get((kind, name), 0.0))
        if outside:
            wrong.append("written outside")
        yield {
            "seed": seed,
            "run": kind,
            "command": name,
            "mutation": what,
            "wrong": wrong,
            "usual": usual.get((kind, name)),
            **asdict(ended),
            "said": ended.said[-2000:],
        }


def _fresh(run: Path, copy: Path, out: Path) -> None:
    for path in (copy, out):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(run, copy, symlinks=True)
    out.mkdir()


# links


def link_kinds(run: Path, out: Path, user: Path) -> dict[str, tuple[Path, Path, list[str]]]:
    """Where a link lies, what it leads to, and the command that writes there."""
    file, folder, some = user / "notes.txt", user / "folder", ["0", "1", "2"]
    named, r = commands(run, run, out), str(run)
    anew = ["train", "vae", "--data", "digits", "--out", r, *TINY, "--overwrite"]
    return {
        "report.html": (run / "report.html", file, named["report"]),
        "the old draft of the report": (run / ".report.html.draft", file, named["report"]),
        "evaluation": (run / "results/evaluation-test.json", file, named["evaluate"]),
        "index": (run / "index.safetensors", file, named["index"]),
        "metrics": (run / "metrics.jsonl", file, named["resume"]),
        "model": (run / "model.safetensors", file, named["resume"]),
        "spec": (run / "spec.json", file, named["resume"]),
        "state": (run / "state", folder, named["resume"]),
        "the checkpoint": (run / "state" / "last.safetensors", file, named["resume"]),
        "pictures": (run / "pictures", folder, named["resume"]),
        "tensorboard": (run / "tensorboard", folder, named["resume"]),
        "priors": (run / "priors", folder, named["prior"]),
        "a prior": (run / "priors" / "pixelcnn", folder, named["prior"]),
        "codes of the data": (run / "codes.safetensors", file, named["prior"]),
        "the lock": (run / ".lock", file, named["resume"]),
        "the lock's holder": (run / ".lock.json", file, named["resume"]),
        "a folder in a run that is replaced": (run / "pictures", folder, anew),
        "the mark of a run that is replaced": (run / ".replaced", file, anew),
        "the output file": (out / "samples.png", file, named["sample"]),
        "a file in the output folder": (out / "decoded" / "test-0.png", file, [*named["decode"], "--overwrite"]),
        "a page in the output folder": (out / "anomalies" / "index.html", file, named["detect"]),
        "scores in the output folder": (out / "anomalies" / "scores.csv", file, named["detect"]),
        "a compressed file": (out / "file.tes", file, [*named["compress"], "--overwrite"]),
        "codes in a file": (out / "codes.npz", file, ["encode", r, *some, "-o", str(out / "codes.npz")]),
        "an edited picture": (out / "edited" / "edited.png", file, named["edit"]),
    }


def follow(run: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Put each kind of link and run the command; a record each."""
    user, copy, out = sentinel(folder), folder / "copy", folder / "out"
    for name in link_kinds(copy, out, user):
        _fresh(run, copy, out)
        place, to, words = link_kinds(copy, out, user)[name]
        place_link(place, to)
        before = tree(folder, (copy, out))
        ended = run_command(words)
        followed = tree(folder, (copy, out)) != before
        yield {"link": name, "followed": followed, "wrong": faults(ended, 60.0), "status": ended.status,
               "said": ended.said.replace(f"{folder}/", "")[-500:]}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Attack run folders.")
    parser.add_argument("--links", action="store_true", help="links instead of mutations")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--try", dest="dry", action="store_true", help="print what is wrong and record nothing")
    o = parser.parse_args()
    import torch

    import common

    torch.set_num_threads(1)
    warm()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "runs").mkdir()
        child = os.fork()
        if child == 0:
            with common.silenced():
                make(folder / "runs")
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit("the runs could not be made")
        runs = {name: folder / "runs" / name for name in ("vae", "vqvae", "fsq", "table")}
        found = []
        for record in (
            follow(runs["vqvae"], folder) if o.links else attack(runs, folder, range(o.first, o.first + o.count))
        ):
            found.append(record)
            if record["wrong"] or record.get("followed"):
                common.say(json.dumps(record, indent=1))
            if len(found) % 50 == 0:
                common.say(f"{len(found)} done")
    record = links_record(found) if o.links else mutations_record(found)
    if not o.dry:
        common.write("links" if o.links else "hostile", {**record, "environment": common.environment()})
    common.show(record)
    return 0


def warm() -> None:
    """Import what commands import, so that a fork finds it there."""
    from tessella.foundation import registry

    importlib.import_module("torch._dynamo")  # by an optimiser at its first step
    for entry in registry.entries():
        entry.load()


def mutations_record(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of mutations."""
    import common

    wrong = Counter(what.split()[0] for record in found for what in record["wrong"])
    count = len(found)
    claims = {"traceback": "end in a traceback", "slow": f"take over {SECONDS:g} s beyond start-up",
              "memory": "take over 1 GB", "written": "write outside the run"}  # fmt: skip
    rows = [
        common.row(f"of {count} mutated run folders {says}", 0, wrong[kind], better="lower")
        for kind, says in claims.items()
    ]
    others = {kind: number for kind, number in wrong.items() if kind not in claims}
    return {
        "about": "Run folders with bits flipped, values, keys, tensors and headers edited, files swapped, missing or "
        "replaced by links and pipes; each read by one of 14 commands.",
        "rows": rows,
        "count": count,
        "refused": sum(record["status"] == 2 for record in found),
        "succeeded": sum(record["status"] == 0 for record in found),
        "other_faults": others,
        "most_seconds_refused": max((r["seconds"] for r in found if r["status"] == 2), default=None),
        "most_bytes": max(r["bytes"] for r in found),
        "by_command": dict(Counter(r["command"] for r in found)),
        "by_mutation": dict(Counter(r["mutation"].split()[0] for r in found)),
        "faulty": [r for r in found if r["wrong"]],
    }


def links_record(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of links."""
    import common

    followed = sum(record["followed"] for record in found)
    return {
        "about": "A link to a file or folder of the user's where a command writes; followed if that changed.",
        "rows": [common.row(f"of {len(found)} kinds of links followed when writing", 0, followed, better="lower")],
        "links": found,
    }


if __name__ == "__main__":
    sys.exit(main())
