"""Tables as vectors. The modules here import pyarrow, so they are imported when a table is read."""

PARQUET = (".parquet", ".pq")
