"""Whether a trained flow gives back what it is given: test pictures to z and back, from cells' middles and dequantised.

python benchmarks/inverse.py RUN --data FILE [--pictures 1000]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

import common


def main() -> None:
    import tessella
    from tessella.core.rng import Noise
    from tessella.models.flow import FlowModel

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pictures", type=int, default=1000)
    chosen = parser.parse_args()
    model = tessella.load(chosen.run)
    if not isinstance(model, FlowModel):
        raise SystemExit(f"{chosen.run} is no run of a flow")
    split = tessella.open_data(chosen.data).split("test")
    wrong, numbers, far, seconds = {"middles": 0, "dequantised": 0}, 0, 0.0, 0.0
    with torch.inference_mode():
        for start in range(0, min(chosen.pictures, len(split)), 100):
            x = split.batch(np.arange(start, min(start + 100, chosen.pictures, len(split)))).x
            numbers += x.numel()
            for kind, noise in (("middles", None), ("dequantised", Noise(0, start))):
                z = model.encode(x, noise=noise).z
                began = time.perf_counter()
                wrong[kind] += int((model.decode(z).mean != x).sum())
                seconds += time.perf_counter() - began
            z = model.encode(x).z
            far = max(far, float((model.flow(model.flow.inverse(z))[0] - z).abs().max()))
    record = {
        "about": "a trained flow, its inverse and what is lost on the way: no autocast",
        "rows": [
            common.row(
                f"CIFAR-10 flow as trained, {numbers // model.schema.dims} test pictures to z and back, {kind}: values "
                "that are not the same",
                0,
                count,
                better="lower",
            )
            for kind, count in wrong.items()
        ],
        "numbers": numbers,
        "largest_error_of_z": far,
        "seconds_per_inverse": seconds / (2 * numbers / model.schema.dims),
        "run": chosen.run.name,
        "environment": common.environment(),
    }
    common.write("flow-inverse", record)
    common.show(record)


if __name__ == "__main__":
    main()
