"""One page about a run that a stranger understands: `report.html`, which stands alone.

page.py puts it together; codes.py is its part on codes, words.py the numbers, charts.py and blocks.py its figures;
kept.py are the evaluations that it is written from.
"""

from __future__ import annotations

from tessella.report.charts import bar_chart, line_chart, ticks
from tessella.report.kept import jsonable, store, store_fidelity, stored, stored_fidelity
from tessella.report.page import REPORT, train_command, write
from tessella.report.words import Number, fidelity_numbers, numbers, size_text

__all__ = [
    "REPORT",
    "Number",
    "bar_chart",
    "fidelity_numbers",
    "jsonable",
    "line_chart",
    "numbers",
    "size_text",
    "store",
    "store_fidelity",
    "stored",
    "stored_fidelity",
    "ticks",
    "train_command",
    "write",
]
