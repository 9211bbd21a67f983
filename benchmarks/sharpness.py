"""How sharp samples are, against data (8-bit Fashion-MNIST): a VAE, a VQ-VAE with a learned prior, a latent diffusion.

    python benchmarks/sharpness.py --data FOLDER [--steps 1000 --prior-steps 1000 --samples 1000] [--out RUNS]

All through the commands, with the same number of updates: the VAE as it comes; codes of 14 x 14 positions and a
PixelCNN over them; z of 14 x 14 positions of a VAE with the rate at a tenth, and a diffusion prior over them. Sharpness
is the high-frequency energy of samples over the data's, Frechet distance and the rest are in the features of one small
classifier, each beside what data itself has. A run that is in RUNS is taken as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
from startup import script

MODELS = {
    "vae": "vae --width 24 --depth 1",
    "vqvae": "vqvae --grid-size 14 --quantizer fsq --codebook-size 16 --width 24 --depth 1",
    "latent": "beta-vae --beta 0.1 --latent grid --latent-dim 4 --width 24 --depth 1",
}
PRIORS = {"vqvae": "--kind pixelcnn --width 32 --depth 3", "latent": "--kind diffusion --width 32 --depth 1"}
TITLES = {"vae": "VAE", "vqvae": "VQ-VAE and PixelCNN", "latent": "latent diffusion"}


def tessella(words: str) -> str:
    """What a command prints."""
    common.say(f"tessella {words}")
    return subprocess.run([*script(), *shlex.split(words)], check=True, stdout=subprocess.PIPE, text=True).stdout


def trained(name: str, data: Path, run: Path, steps: int, prior_steps: int) -> Path:
    """The run, with its prior."""
    if not (run / "model.safetensors").is_file():
        tessella(f"train {MODELS[name]} --data {shlex.quote(str(data))} --steps {steps} --out {run} --quiet")
    if name in PRIORS and not any(run.glob("priors/*/model.safetensors")):
        tessella(f"fit-prior {run} {PRIORS[name]} --steps {prior_steps} --quiet")
    return run


def told(run: common.Record) -> common.Record:
    """What is kept of the figures of a run."""
    evaluation = {
        key: run["evaluation"][key] for key in ("examples", "bits_per_dim", "rate", "distortion", "parameters")
    }
    return {"model": run["model"], "prior": run["prior"], **evaluation, "fidelity": run["fidelity"]}


def off(found: common.Record) -> float:
    """How far sharpness is from that of the data: |log| of the ratio."""
    return abs(math.log(found["fidelity"]["sharpness"]["value"]))


def sharpness(data: Path, out: Path, steps: int, prior_steps: int, samples: int) -> common.Record:
    """The record of all."""
    runs = [trained(name, data, out / name, steps, prior_steps) for name in MODELS]
    minutes = 60  # it is not the time that is in question
    said = tessella(
        f"compare {' '.join(map(str, runs))} --examples {samples} --minutes {minutes} --json -o {out / 'compared.html'}"
    )
    (group,) = json.loads(said)["groups"]
    found: dict[str, Any] = {name: told(run) for name, run in zip(MODELS, group["runs"], strict=True)}
    vae = found["vae"]
    rows = []
    for name in PRIORS:
        both = [found[each]["fidelity"]["sharpness"]["value"] for each in (name, "vae")]
        claim = (
            f"Fashion-MNIST, sharpness of samples (data: 1), {TITLES[name]} {both[0]:.3f} and VAE {both[1]:.3f}, "
            f"{steps:,} updates each and {prior_steps:,} of the prior: |log|, ratio"
        )
        rows.append(common.row(claim, 1.0, off(found[name]) / off(vae), better="lower"))
    return {
        "about": "high-frequency energy of samples over that of data, and Frechet distance in a classifier's features",
        "rows": rows,
        "models": MODELS,
        "priors": PRIORS,
        "budget": {"steps": steps, "prior_steps": prior_steps, "samples": samples},
        "seed": 0,
        "found": found,
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder that the data sets lie in")
    parser.add_argument("--steps", type=int, default=1000, help="updates of each model")
    parser.add_argument("--prior-steps", type=int, default=1000, help="of each prior")
    parser.add_argument("--samples", type=int, default=1000, help="of each model")
    parser.add_argument("--out", type=Path, help="where to keep the runs; by default they are not kept")
    chosen = parser.parse_args()
    with TemporaryDirectory() as temporary:
        out = chosen.out or Path(temporary)
        record = sharpness(chosen.data / "fashion_mnist.npz", out, chosen.steps, chosen.prior_steps, chosen.samples)
    common.write("sharpness", record)
    common.show(record)


if __name__ == "__main__":
    main()
