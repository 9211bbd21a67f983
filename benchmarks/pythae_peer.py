"""Examples a second of `tessella.train` beside those of pythae 0.1.2 training the same network.

pythae's VAE is given our encoder, head and decoder as its own `BaseEncoder` and `BaseDecoder`, so both have the same
layers and the same number of parameters; both go through the same binary pictures for the same number of epochs. Two
comparisons: `same settings` (batch, precision, learning rate) and `default settings` (each as it comes). Ours is
timed over the whole of `tessella.train`, with its checkpoints, metrics, 12 validations and pictures; theirs over the
whole of `BaseTrainer.train`, which validates on the same 500 pictures once an epoch. They take turns.

    python benchmarks/pythae_peer.py [--examples 12800] [--epochs 4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import common
import tessella
from tessella.data import Data
from tessella.models.latent_variable import LatentVariableModel
from tessella.models.spec import TrainOptions

BAR = 1.3
MISSING = "pythae is not installed: `make bench` installs it, or `pip install -c constraints.txt -e '.[bench]'`"
SIDE = 28


def installed() -> bool:
    return importlib.util.find_spec("pythae") is not None


def in_pythae(model: LatentVariableModel) -> Any:
    """pythae's VAE around the networks of ours; the parameters are shared."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.head = model.encoder, model.bottleneck.head

        def forward(self, x: Tensor) -> ModelOutput:
            mu, log_sigma = self.head(self.network(2 * x - 1, None)).chunk(2, 1)
            return ModelOutput(embedding=mu, log_covariance=2 * log_sigma.clamp(-8, 4))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.network = model.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.network(z, None)))

    config = VAEConfig(input_dim=model.schema.shape, latent_dim=model.latent_shape[0], reconstruction_loss="bce")
    return VAE(model_config=config, encoder=Encoder(), decoder=Decoder())


def fresh(data: Data) -> LatentVariableModel:
    torch.manual_seed(0)
    return tessella.VAE(data.schema)


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def ours(data: Data, epochs: int, **options: Any) -> Callable[[], float]:
    """Seconds of a whole training by tessella."""

    def once() -> float:
        model = fresh(data)
        with tempfile.TemporaryDirectory() as folder, common.silenced():
            started = time.perf_counter()
            tessella.train(model, data, Path(folder) / "run", TrainOptions(epochs=epochs, **options))
            return time.perf_counter() - started

    return once


def theirs(data: Data, epochs: int, **options: Any) -> Callable[[], float]:
    """Seconds of a whole training by pythae."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    logging.disable(logging.INFO)  # its loggers kept the terminal when they were imported

    def dataset(name: str) -> BaseDataset:
        split = data.split(name)
        return BaseDataset(split.batch(np.arange(len(split))).x, torch.ones(len(split)))

    train, valid = dataset("train"), dataset("valid")

    def once() -> float:
        model = in_pythae(fresh(data))
        with tempfile.TemporaryDirectory() as folder, common.silenced():
            config = BaseTrainerConfig(output_dir=folder, num_epochs=epochs, **options)
            trainer = BaseTrainer(model, train, valid, training_config=config)
            started = time.perf_counter()
            trainer.train()
            return time.perf_counter() - started

    return once


def compare(data: Data, epochs: int, rounds: int, our: dict[str, Any], their: dict[str, Any]) -> common.Record:
    """Both in turns."""
    one, other = ours(data, epochs, **our), theirs(data, epochs, **their)
    taken = common.alternate({"tessella": one, "pythae": other}, rounds)
    seen = epochs * len(data.split("train"))
    return {
        "options": {"tessella": our, "pythae": their},
        "seconds": taken,
        "examples_per_second": {name: seen / statistics.median(seconds) for name, seconds in taken.items()},
        "ratio": common.ratios(taken["pythae"], taken["tessella"]),
    }


def pythae_peer(examples: int = 12800, epochs: int = 4, rounds: int = 3, batch_size: int = 128) -> common.Record:
    """The record of both comparisons."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.npz"
        drawn = np.random.default_rng(0).integers(0, 2, (examples + 1000, SIDE, SIDE), dtype=np.uint8)
        np.savez(path, x_train=drawn[:examples], x_valid=drawn[examples:-500], x_test=drawn[-500:])
        data = tessella.open_data(str(path))
        rate = LatentVariableModel.learning_rate
        common.say("the same network, batch and precision")
        same = compare(
            data,
            epochs,
            rounds,
            {"batch_size": batch_size, "precision": "float32", "learning_rate": rate},
            {"per_device_train_batch_size": batch_size, "learning_rate": rate},
        )
        common.say("the default settings of both")
        default = compare(data, epochs, rounds, {}, {})
        model = fresh(data)
        sizes = {"tessella": size(model), "pythae": size(in_pythae(model))}
        trained = len(data.split("train"))
    claim = "examples/s of whole trainings / pythae 0.1.2, same network"
    return {
        "about": "examples a second of tessella.train over those of pythae's BaseTrainer.train, in turns, medians",
        "rows": [
            common.row(f"{claim}, batch and precision", BAR, same["ratio"]["median"], better="higher"),
            common.row(f"{claim}, default settings of both", BAR, default["ratio"]["median"], better="higher"),
        ],
        "data": f"{trained} random binary pictures of {SIDE}x{SIDE}, {epochs} epochs a training",
        "parameters": sizes,
        "same settings": same,
        "default settings": default,
        "environment": common.environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=12800)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    if not installed():
        print(f"skipped: {MISSING}")
        return
    record = pythae_peer(chosen.examples, chosen.epochs, chosen.rounds)
    common.write("pythae_peer", record)
    common.show(record)


if __name__ == "__main__":
    main()
