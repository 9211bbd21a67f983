"""Data sets: opened by a SPEC, with a schema, split into train, valid and test. Independent of any model."""

from tessella.data.dataset import Data, open_data
from tessella.data.splits import Schedule, Split, batches, stream

__all__ = ["Data", "Schedule", "Split", "batches", "open_data", "stream"]
