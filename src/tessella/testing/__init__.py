"""Conformance tests for registered parts of this package and of other packages.

    from tessella.plugin import check_likelihood, check_quantizer

    check_quantizer(MyQuantizer())
    check_likelihood(MyLikelihood(), "real")

Each check raises AssertionError if the part breaks the contract of its kind, and needs only PyTorch.
`check_entry(entry)` runs the checks for the kind of an entry.
"""

from __future__ import annotations

from tessella.testing.models import check_bound, check_model, small_model
from tessella.testing.parts import (
    check_bottleneck,
    check_code_prior,
    check_entry,
    check_likelihood,
    check_prior,
    check_quantizer,
    check_source,
    check_task,
)

__all__ = [
    "check_bottleneck",
    "check_bound",
    "check_code_prior",
    "check_entry",
    "check_likelihood",
    "check_model",
    "check_prior",
    "check_quantizer",
    "check_source",
    "check_task",
    "small_model",
]
