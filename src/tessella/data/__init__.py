"""Data: what a SPEC names, as examples with a schema, divided into train, valid and test.

Knows no model. It leans on the ground layer, on `noise` and, for the contact sheet, on `pictures`.
"""

from tessella.data.batches import Schedule, batches, stream
from tessella.data.contact_sheet import contact_sheet, describe
from tessella.data.dataset import Data, open_data
from tessella.data.splits import Split

__all__ = ["Data", "Schedule", "Split", "batches", "contact_sheet", "describe", "open_data", "stream"]
