"""Data: what a SPEC names, as examples with a schema, divided into train, valid and test. Knows no model."""

from tessella.data.dataset import Data, open_data
from tessella.data.splits import Schedule, Split, batches, stream

__all__ = ["Data", "Schedule", "Split", "batches", "open_data", "stream"]
