"""Readers of tables as vectors. They import pyarrow, so they are imported only when a table is read."""

PARQUET = (".parquet", ".pq")
