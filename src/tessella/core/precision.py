"""When to let networks run in bfloat16. Likelihoods, rates and quantisers are float32 whatever is chosen here."""

from __future__ import annotations

import torch

from tessella.core.schema import Precision, Schema

SMALL = 16
"""Pixels a side under which float32 is faster than converting to bfloat16."""


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
