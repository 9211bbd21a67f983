"""Result of editing a picture: pictures, codes and masks before and after, and how far the change reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class EditedLevel:
    """One level of codes before and after an edit.

    Attributes:
        chosen: `[h, w]` bool, the positions that were edited.
        before, after: `[C, h, w]` and `[N, C, h, w]` int64.
        cell: pixels a side of a position.
    """

    chosen: Tensor
    before: Tensor
    after: Tensor
    cell: int


@final
@dataclass(frozen=True)
class Edited:
    """A picture before and after N variants of an edit; pictures are float32 in stored units, on the CPU.

    Attributes:
        x: `[C, H, W]`, the picture as stored.
        before: `[C, H, W]`, its reconstruction.
        after: `[N, C, H, W]`, the edited codes or latents decoded.
        result: `[N, C, H, W]`, `after`, or `x` with `after` blended in.
        region: `[H, W]` bool, as asked for.
        cells: `[H, W]` bool, the pixels of the positions that were edited; of latents without a grid the region.
        reach: `[H, W]` bool, all pixels that the edited codes can change: the cells and the receptive field.
        levels: each level of codes, coarsest first; empty for a model without codes.
        moved: `[N]`, for a model without codes the relative distance |z' - z| / |z|.
    """

    x: Tensor
    before: Tensor
    after: Tensor
    result: Tensor
    region: Tensor
    cells: Tensor
    reach: Tensor
    levels: tuple[EditedLevel, ...] = ()
    moved: Tensor | None = None

    @property
    def change(self) -> Tensor:
        """Squared change of each pixel from `before` to `after`, summed over channels, `[N, H, W]`."""
        return (self.after.double() - self.before.double()).square().sum(1)

    def share_outside(self, pixels: Tensor) -> Tensor:
        """Share of the squared change that lies outside `pixels` `[H, W]`, `[N]`; 0 where nothing changed."""
        change = self.change
        total = change.flatten(1).sum(1)
        return (change * ~pixels).flatten(1).sum(1) / total.clamp_min(torch.finfo(total.dtype).tiny)

    def changed(self, variant: int) -> list[dict[str, int]]:
        """List the codes that changed: level, slot, row, column, from, to."""
        found = []
        for number, level in enumerate(self.levels):
            now = level.after[variant]
            for slot, row, column in (now != level.before).nonzero().tolist():
                place = {"level": number, "slot": slot, "row": row, "column": column}
                found.append({**place, "from": int(level.before[slot, row, column]), "to": int(now[slot, row, column])})
        return found

    @property
    def codes_changed(self) -> float:
        """Mean number of codes that changed in a variant."""
        return sum(len(self.changed(n)) for n in range(len(self.after))) / len(self.after)

    @property
    def code_count(self) -> int:
        """Number of codes of the picture."""
        return sum(level.before.numel() for level in self.levels)

    def to_json(self) -> dict[str, Any]:
        """Numbers of the edit: what changed, and how far the change reached."""
        y, x = self.region.any(1).nonzero().flatten(), self.region.any(0).nonzero().flatten()
        box = {"x": int(x[0]), "y": int(y[0]), "width": int(x[-1] - x[0]) + 1, "height": int(y[-1] - y[0]) + 1}
        shares = {name: self.share_outside(getattr(self, name)).tolist() for name in ("region", "cells", "reach")}
        peak = self.change.flatten(1).amax(1).sqrt().tolist()
        return {
            "size": {"width": self.region.shape[1], "height": self.region.shape[0]},
            "region": {**box, "pixels": int(self.region.sum())},
            "cells": {"pixels": int(self.cells.sum())},
            "reach": {"pixels": int(self.reach.sum())},
            "levels": [
                {"grid": list(v.chosen.shape), "cell": v.cell, "positions_edited": int(v.chosen.sum())}
                for v in self.levels
            ],
            "variants": [
                {
                    "squared_change": float(self.change[n].sum()),
                    "largest_change": peak[n],
                    **{f"share_outside_{name}": share[n] for name, share in shares.items()},
                    **({"moved": float(self.moved[n])} if self.moved is not None else {}),
                    "codes_changed": self.changed(n),
                }
                for n in range(len(self.after))
            ],
        }
