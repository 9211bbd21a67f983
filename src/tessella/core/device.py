"""Choice of the device and of the precision of networks.

Likelihoods, rates and quantizers are computed in float32 whatever the precision.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from tessella.core.schema import Precision, Schema
from tessella.foundation.errors import SpecError, option

VARIABLE = "TESSELLA_DEVICE"
"""Environment variable that chooses the device where no option does."""
ACCELERATORS = ("cuda", "xpu", "mps")
"""Device types besides the processor, best first."""
SMALL = 16
"""Positions per side below which float32 is faster than converting to bfloat16."""


@contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """Run operations of the processor on so many threads; None: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_device(asked: str | torch.device | None = None) -> torch.device:
    """Return the device of a name, or the best available one.

    Args:
        asked: `auto` (the best available), `cpu`, `cuda`, `mps` or `xpu`; `cuda:1` is the second GPU. None: the value
            of the environment variable `TESSELLA_DEVICE`, or `auto`.

    Raises:
        SpecError: if there is no such device; the message names those there are.
    """
    said = os.environ.get(VARIABLE, "") if asked is None else ""
    name = str(asked or said or "auto").strip().lower()
    there = available_devices()
    if name == "auto":
        name = there[0]
    kind, _, number = name.partition(":")
    if kind == "cpu" and not number:
        return torch.device("cpu")
    if kind in ACCELERATORS and (not number or number.isdecimal()):
        index = int(number or 0)
        if index < _count(kind):
            return torch.device(kind, index)
    where = f"{VARIABLE} names the device {said!r}, which" if said else f"the device {str(asked)!r}"
    built = f" (this PyTorch, {torch.__version__}, was built without CUDA)" if _without_cuda(kind) else ""
    raise SpecError(
        f"{where} is not available{built}: choose auto or one of those that there are: {', '.join(there)}",
        code="no-device",
    )


def available_devices() -> tuple[str, ...]:
    """List the available devices, best first; `cpu` is always the last."""
    names: list[str] = []
    for kind in ACCELERATORS:
        count = _count(kind)
        names += [kind] if count == 1 else [f"{kind}:{index}" for index in range(count)]
    return (*names, "cpu")


def describe_device(device: torch.device) -> str:
    """Describe the device: its type and the name of the card."""
    if device.type == "cuda":
        return f"{_name(device)} ({torch.cuda.get_device_name(device)})"
    if device.type == "xpu":
        return f"{_name(device)} ({torch.xpu.get_device_name(device)})"
    return _name(device)


def device_reason(asked: str | None) -> str | None:
    """Explain why this device was chosen; None if it was requested by name."""
    if asked is not None and asked.strip().lower() != "auto":
        return None
    said = os.environ.get(VARIABLE, "").strip() if asked is None else ""
    if said and said.lower() != "auto":
        return f"set by {VARIABLE}"
    if len(available_devices()) == 1:
        return "the only one available"
    return f"the best one available; {option('device')} cpu chooses another"


def has_float64(device: torch.device) -> bool:
    """Return whether the device supports float64, which Apple's GPUs do not."""
    return device.type != "mps"


def precise(t: Tensor) -> Tensor:
    """Convert to float64, on the processor if the device has none."""
    return t.double() if has_float64(t.device) else t.cpu().double()


def widened(t: Tensor) -> Tensor:
    """Convert to float64 if the device supports it, else return the tensor unchanged."""
    return t.double() if has_float64(t.device) else t


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "xpu":
        return torch.xpu.device_count() if torch.xpu.is_available() else 0
    return int(torch.backends.mps.is_available())


def _name(device: torch.device) -> str:
    """Return `cuda`, or `cuda:1` if there are several."""
    return str(device) if _count(device.type) > 1 else device.type


def _without_cuda(kind: str) -> bool:
    return kind == "cuda" and not torch.backends.cuda.is_built()


def autocast(precision: Precision, schema: Schema, device: torch.device) -> torch.autocast:
    """Return a context in which networks run in bfloat16 if `lowers` is true."""
    return torch.autocast(device.type, torch.bfloat16, enabled=lowers(precision, schema, device))


def lowers(precision: Precision, schema: Schema, device: torch.device) -> bool:
    """Return whether networks run in bfloat16: on request, or with `auto` if it is faster.

    It is faster for examples that are not tiny, on hardware that multiplies bfloat16 natively.
    """
    worth = schema.rank > 0 and min(schema.spatial) >= SMALL and _native(device)
    return precision == "bfloat16" or (precision == "auto" and worth)


def _native(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
