"""What each command takes and does: a dataclass of options, and one function that runs it.

PyTorch is imported by the functions, so that a command's help does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from tessella.commands import (
    codes,
    compare,
    compress,
    demo,
    detect,
    edit,
    gap,
    look,
    measure,
    prior,
    search,
    train,
)
from tessella.commands.measure import Parts
from tessella.commands.train import Train
from tessella.foundation.errors import SpecError

COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "data": (train.ShowData, train.show_data),
    "train": (train.Train, train.train),
    "prior": (prior.Prior, prior.prior),
    "evaluate": (measure.Evaluate, measure.evaluate),
    "gap": (gap.Gap, gap.gap),
    "sample": (look.Sample, look.sample),
    "reconstruct": (look.Reconstruct, look.reconstruct),
    "interpolate": (look.Interpolate, look.interpolate),
    "traverse": (look.Traverse, look.traverse),
    "encode": (codes.Encode, codes.encode),
    "decode": (codes.Decode, codes.decode),
    "edit": (edit.Edit, edit.edit),
    "detect": (detect.Detect, detect.detect),
    "index": (search.Index, search.index),
    "search": (search.Search, search.search),
    "compress": (compress.Compress, compress.compress),
    "decompress": (compress.Decompress, compress.decompress),
    "inspect": (compress.Inspect, compress.inspect),
    "compare": (compare.Compare, compare.compare),
    "report": (measure.Report, measure.report),
    "demo": (demo.Demo, demo.demo),
    "parts": (measure.Parts, measure.parts),
}

__all__ = ["COMMANDS", "Parts", "Train"]


def find(name: str) -> tuple[type, Callable[[Any], int]]:
    """Return a command's options and function: one of the table's, or that of another package's entry point."""
    if name in COMMANDS:
        return COMMANDS[name]
    for entry in entry_points(group="tessella.command", name=name):
        return entry.load().COMMAND
    raise SpecError(f"the package that has the command {name} is not installed", "no-such-command", name=name)
