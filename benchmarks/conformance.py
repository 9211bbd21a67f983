"""scikit-learn's own checks of both estimators with their default options.

python benchmarks/conformance.py [--only NAME ...]
"""

from __future__ import annotations

import argparse
import time
import traceback
import warnings
from collections.abc import Sequence

from sklearn.utils.estimator_checks import estimator_checks_generator

import common
from tessella.sklearn import LatentOutlierDetector, LatentTransformer


def conformance(only: Sequence[str] = ()) -> common.Record:
    """The record; a check that is skipped by scikit-learn counts as neither."""
    found: dict[str, dict[str, dict[str, str | float]]] = {}
    for estimator in (LatentOutlierDetector(), LatentTransformer()):
        of = found.setdefault(type(estimator).__name__, {})
        for one, check in estimator_checks_generator(estimator):
            name = getattr(check, "func", check).__name__
            words = getattr(check, "keywords", {})
            name += "".join(f" {key}={value}" for key, value in words.items())
            if only and not any(word in name for word in only):
                continue
            started, result = time.perf_counter(), "passed"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    check(one)
            except Exception as error:
                result = traceback.format_exception_only(error)[-1].strip()
                result = f"skipped: {result}" if type(error).__name__ == "SkipTest" else result
            of[name] = {"result": result, "seconds": time.perf_counter() - started}
            common.say(f"{type(estimator).__name__} {name}: {result} ({of[name]['seconds']:.1f} s)")
    failed = {
        name: [check for check, how in of.items() if not str(how["result"]).startswith(("passed", "skipped"))]
        for name, of in found.items()
    }
    return {
        "about": "scikit-learn's checks of the estimators as they are made without options: 1000 steps each fit",
        "rows": [
            common.row(
                f"`{name}()`: scikit-learn's checks that fail, of {len(found[name])}", 0, len(of), better="lower"
            )
            for name, of in failed.items()
        ],
        "failed": failed,
        "checks": found,
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of checks; nothing is recorded then")
    only = parser.parse_args().only
    record = conformance(only)
    if not only:
        common.write("conformance", record)
    common.show(record)


if __name__ == "__main__":
    main()
