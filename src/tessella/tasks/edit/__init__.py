"""Changing one part of a picture: the codes of a region are drawn anew, pasted, set or blended, and all others stay.

A region is a mask of pixels `[H, W]`. A position of a grid of codes is edited if half or
more of its cell of pixels lies in the region.
What an edited code can change is found exactly, by one pass of the decoder: its vectors are replaced by what is not a
number, and so is every pixel that depends on them. Two drawings are compared: of the codes as they were, and as they
are now. A model without codes is edited in its latents, so that both kinds can be seen side by side.

editing.py does it; operations.py is what can be done, regions.py where, reach.py how far, records.py the result.
"""

from __future__ import annotations

from tessella.tasks.edit.editing import edit
from tessella.tasks.edit.operations import Blend, Code, Operation, Paste, Resample
from tessella.tasks.edit.reach import receptive_field
from tessella.tasks.edit.records import Edited, EditedLevel
from tessella.tasks.edit.regions import box, read_mask

__all__ = [
    "Blend",
    "Code",
    "Edited",
    "EditedLevel",
    "Operation",
    "Paste",
    "Resample",
    "box",
    "edit",
    "read_mask",
    "receptive_field",
]
