"""What each command takes and does: a dataclass of options, and one function that runs it.

PyTorch is imported by the functions, so that a command's help does not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tessella.commands import (
    claims,
    compare,
    demo,
    detect,
    gap,
    measure,
    prior,
    search,
    train,
)
from tessella.commands.measure import Parts
from tessella.commands.train import Train

COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "data": (train.ShowData, train.show_data),
    "train": (train.Train, train.train),
    "prior": (prior.Prior, prior.prior),
    "evaluate": (measure.Evaluate, measure.evaluate),
    "gap": (gap.Gap, gap.gap),
    "detect": (detect.Detect, detect.detect),
    "index": (search.Index, search.index),
    "search": (search.Search, search.search),
    "claims": (claims.Claims, claims.claims),
    "compare": (compare.Compare, compare.compare),
    "report": (measure.Report, measure.report),
    "demo": (demo.Demo, demo.demo),
    "parts": (measure.Parts, measure.parts),
}

__all__ = ["COMMANDS", "Parts", "Train"]
