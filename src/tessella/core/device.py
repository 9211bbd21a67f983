"""Where and how networks run: the device that is asked for or the best there is, and when they run in bfloat16.

Likelihoods, rates and quantizers are float32 whatever is chosen here.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from tessella.core.schema import Precision, Schema
from tessella.foundation.errors import SpecError, option

VARIABLE = "TESSELLA_DEVICE"
"""The environment variable that chooses where nothing else does."""
ACCELERATORS = ("cuda", "xpu", "mps")
"""Kinds of devices besides the processor, best first."""
SMALL = 16
"""Pixels a side under which float32 is faster than converting to bfloat16."""


def resolve(asked: str | torch.device | None = None) -> torch.device:
    """Choose the device of that name.

    Args:
        asked: `auto` (the best there is), `cpu`, `cuda`, `mps` or `xpu`; of several cards `cuda:1` is the second. None:
            what the environment variable `TESSELLA_DEVICE` says, or else `auto`.

    Raises:
        SpecError: if there is no such device, naming those there are.
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
    where = f"{VARIABLE} asks for the device {said!r}, which" if said else f"the device {str(asked)!r}"
    built = f" (this PyTorch, {torch.__version__}, was built without CUDA)" if _without_cuda(kind) else ""
    raise SpecError(f"{where} is not here{built}: choose auto or one of those there are: {', '.join(there)}")


def available_devices() -> tuple[str, ...]:
    """Name the devices there are, best first; `cpu` is always the last."""
    names: list[str] = []
    for kind in ACCELERATORS:
        count = _count(kind)
        names += [kind] if count == 1 else [f"{kind}:{index}" for index in range(count)]
    return (*names, "cpu")


def describe_device(device: torch.device) -> str:
    """The device in words: its kind, and the name of the card."""
    if device.type == "cuda":
        return f"{_name(device)} ({torch.cuda.get_device_name(device)})"
    if device.type == "xpu":
        return f"{_name(device)} ({torch.xpu.get_device_name(device)})"
    return _name(device)


def reason(asked: str | None) -> str | None:
    """Why it is this device, in words; None if somebody asked for it by name."""
    if asked is not None and asked.strip().lower() != "auto":
        return None
    said = os.environ.get(VARIABLE, "").strip() if asked is None else ""
    if said and said.lower() != "auto":
        return f"as {VARIABLE} says"
    if len(available_devices()) == 1:
        return "the only one there is"
    return f"the best there is; {option('device')} cpu chooses another"


def has_float64(device: torch.device) -> bool:
    """Whether it computes in double precision, which Apple's GPUs do not."""
    return device.type != "mps"


def precise(t: Tensor) -> Tensor:
    """The same numbers in float64: where they are if the device has it, else on the processor."""
    return t.double() if has_float64(t.device) else t.cpu().double()


def widened(t: Tensor) -> Tensor:
    """The same numbers in float64 if the device has it, else as they are."""
    return t.double() if has_float64(t.device) else t


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "xpu":
        return torch.xpu.device_count() if torch.xpu.is_available() else 0
    return int(torch.backends.mps.is_available())


def _name(device: torch.device) -> str:
    """`cuda`, or `cuda:1` where there are several."""
    return str(device) if _count(device.type) > 1 else device.type


def _without_cuda(kind: str) -> bool:
    return kind == "cuda" and not torch.backends.cuda.is_built()


def autocast(precision: Precision, schema: Schema, device: torch.device) -> torch.autocast:
    """A context in which networks run in bfloat16 if that is asked for, or `auto` and worth it.

    It is worth it for examples that are not tiny, where the hardware multiplies bfloat16 natively.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=lowers(precision, schema, device))


def lowers(precision: Precision, schema: Schema, device: torch.device) -> bool:
    """Whether that is so."""
    worth = schema.rank > 0 and min(schema.spatial) >= SMALL and _native(device)
    return precision == "bfloat16" or (precision == "auto" and worth)


def _native(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
