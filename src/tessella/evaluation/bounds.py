"""Measures rate, distortion and bound of a model on a split, and the importance-weighted bound.

Randomness depends only on the seed and the example, and all batches have one size. So the numbers of an example do not
depend on the other examples; the numbers of a split are means over its examples.
"""

from __future__ import annotations

import math
import time

import torch
import torch.distributed as dist
from torch import Tensor

from tessella.core.batches import FixedBatch, fixed_batches, size_of
from tessella.core.device import autocast, precise
from tessella.core.observed import count_observed, zero_filled
from tessella.core.outputs import Terms
from tessella.core.rng import Noise
from tessella.core.schema import Precision, bits_per_dim
from tessella.data import Split, batches
from tessella.evaluation import codebook, collapse
from tessella.evaluation.quality import sounds
from tessella.evaluation.results import CollapseEvaluation, Evaluation, ImportanceBound, SoundQuality
from tessella.foundation.errors import SpecError, option
from tessella.foundation.progress import track
from tessella.models.base import Model

ACTIVE = 0.01
"""Mean KL, in nats, above which a latent unit is active."""
PASS = 2**21
"""Values of data decoded in one pass of the importance-weighted bound; features take some hundred megabytes."""


@torch.inference_mode()
def evaluate(
    model: Model,
    split: Split,
    *,
    importance_samples: int = 0,
    collapse_examples: int = collapse.EXAMPLES,
    quality_examples: int = sounds.EXAMPLES,
    seed: int = 0,
    limit: int | None = None,
    precision: Precision = "float32",
    data: str = "",
    split_name: str = "test",
    together: bool = False,
) -> Evaluation:
    """Evaluate `model` on `split`, in nats per example, averaged over the examples.

    Args:
        importance_samples: posterior samples per example for the importance-weighted bound; 0 omits it.
        collapse_examples: number of examples that posterior collapse is tested on; 0 omits the test.
        quality_examples: number of sounds whose reconstructions are compared with the inputs; 0 omits the comparison.
        limit: number of examples to measure, the same each time, spread over the split; all by default.
        precision: arithmetic of the networks; the bound holds for the model at this precision.
        data, split_name: names of the data and the split in the result.
        together: whether all processes of the group call this function. Each then measures its share of the batches,
            and all return the numbers of the whole split. Otherwise a process measures the whole split itself.

    Raises:
        SpecError: if an importance-weighted bound is requested of a model without a rate.
    """
    if importance_samples < 0:
        raise SpecError(
            f"{option('importance_samples')} must be at least 0, got {importance_samples}", code="out-of-range"
        )
    if importance_samples and not model.has_bound:
        raise SpecError(
            f"the model {model.name} has no prior and so no bound: leave {option('importance_samples')} at 0",
            code="no-prior",
        )
    started = time.perf_counter()
    training = model.training
    model.eval()
    rank, world = (dist.get_rank(), dist.get_world_size()) if together and dist.is_initialized() else (0, 1)
    measured = split if limit is None or limit >= len(split) else split.subset(split.random_rows(limit))
    size = size_of(model.schema.shape, model.device)
    noise, sums = Noise(seed, stream="evaluation"), {}
    for number, batch in enumerate(track(batches(measured, size), "evaluating", -(-len(measured) // size))):
        for fixed in fixed_batches(batch, model.device) if number % world == rank else ():
            with autocast(precision, model.schema, model.device):
                _add(sums, _sums(model, fixed, noise.of(fixed.example_ids), importance_samples))
    if world > 1:
        sums = _gathered(sums, world)
    diagnosis = None
    if collapse_examples and model.has_bound:
        examples = split.batch(split.random_rows(collapse_examples))
        with autocast(precision, model.schema, model.device):
            diagnosis = collapse.measure_collapse(model, examples, seed=seed)
    with autocast(precision, model.schema, model.device):
        quality = sounds.measure_quality(model, measured, quality_examples)
    model.train(training)
    return _evaluation(
        model, sums, diagnosis, quality, importance_samples, data, split_name, seconds=time.perf_counter() - started
    )


def _evaluation(
    model: Model,
    sums: dict[str, Tensor],
    diagnosis: CollapseEvaluation | None,
    quality: SoundQuality | None,
    importance_samples: int,
    data: str,
    split_name: str,
    *,
    seconds: float,
) -> Evaluation:
    """Build the evaluation from sums over the split."""
    done, values, schema = int(sums["examples"]), int(sums["values"]), model.schema
    dims = values / done
    mean = {name: float(total) / done for name, total in sums.items() if total.dim() == 0}
    rate, distortion = mean.get("rate"), mean["distortion"]
    bound = None if rate is None else rate + distortion
    units = tuple((sums["units"] / done).tolist()) if "units" in sums else None
    codes = codebook.figures(model, sums, done) if model.levels else None
    warned = () if codes is None else codebook.warnings(codes, done, _quantizer(model))
    mse = float(sums["squared"]) / values if "squared" in sums else None
    return Evaluation(
        model=model.name,
        data=data,
        split=split_name,
        examples=done,
        dims=round(dims),
        rate=rate,
        distortion=distortion,
        bound=bound,
        bits_per_dim=None if bound is None else bits_per_dim(bound, dims),
        importance_bound=ImportanceBound(importance_samples, mean["weighted"], bits_per_dim(mean["weighted"], dims))
        if importance_samples
        else None,
        kl_per_unit=units,
        active_units=None if units is None or codes else sum(u > ACTIVE for u in units),
        mse=mse,
        psnr=None if mse is None else psnr(mse, schema.values.high - schema.values.low),
        parameters=sum(p.numel() for p in model.parameters()),
        seconds=seconds,
        codes=codes,
        collapse=diagnosis,
        sound=sounds.sound_evaluation(schema, rate, bound, dims, quality),
        notes=(*warned, *([diagnosis.advice] if diagnosis and diagnosis.collapsed else [])),
    )


def _sums(model: Model, batch: FixedBatch, noise: Noise, importance_samples: int) -> dict[str, Tensor]:
    """Sum each metric over the examples of a batch, in float64."""
    x, label, count = batch.x, batch.label, batch.count
    sums = {"examples": torch.tensor(count), "values": torch.tensor(count_observed(x[:count]))}
    if model.levels:
        latent = model.encode(x, label, noise=noise)
        rate, drawing = model.rate(latent, label), model.decode(latent.z, label)
        terms = Terms.of(-drawing.log_prob(x), rate)
        sums |= codebook.tally(model, latent, rate, x, label, terms.distortion, count)
    else:
        terms, drawing = model(x, label, noise=noise), None
    sums["distortion"] = precise(terms.distortion[:count]).sum()
    if terms.rate is not None:
        sums["rate"] = precise(terms.rate[:count]).sum()
    if terms.rate_per_unit is not None:
        sums["units"] = precise(terms.rate_per_unit[:count]).sum(0)
    if not model.likelihood.sequential_mean:
        rebuilt = model.reconstruct(x, label) if drawing is None else drawing.mean
        sums["squared"] = zero_filled(precise((rebuilt - x)[:count])).square().sum()
    if importance_samples:
        weighted = importance_log_likelihood(model, x, label, importance_samples, noise.split("importance"))
        sums["weighted"] = -precise(weighted[:count]).sum()
    return sums


def _add(sums: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, total in more.items():
        sums[name] = sums[name] + total.cpu() if name in sums else total.cpu()


def _gathered(sums: dict[str, Tensor], world: int) -> dict[str, Tensor]:
    """Add the sums of all processes; a process without a batch has none."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(world)]
    dist.all_gather_object(parts, sums)
    joined: dict[str, Tensor] = {}
    for part in parts:
        _add(joined, part)
    return joined


def importance_log_likelihood(model: Model, x: Tensor, label: Tensor | None, samples: int, noise: Noise) -> Tensor:
    """Compute the importance-weighted lower bound on log p(x), `[B]`.

    log 1/K sum_k p(x, z_k) / q(z_k | x), z_k ~ q (Burda et al. 2015, eq. 8). Samples are decoded in passes of a fixed
    size, so memory does not grow with `samples`.
    """
    each = max(1, PASS // (len(x) * model.schema.dims))
    total: Tensor | None = None
    for first in range(0, samples, each):
        count = min(each, samples - first)
        weights = model(x, label, noise=noise.from_draw(first), draws=count).log_weights
        part = torch.logsumexp(weights, 0)
        total = part if total is None else torch.logaddexp(total, part)
    if total is None:
        raise ValueError("at least one sample is needed")
    return total - math.log(samples)


def psnr(mse: float, span: float) -> float:
    """Compute the peak signal-to-noise ratio in decibels; infinite for an exact copy.

    10 log10(span^2 / mse).
    """
    return math.inf if mse == 0 else 10 * math.log10((span or 1.0) ** 2 / mse)


def _quantizer(model: Model) -> str:
    """Return the name of the model's quantizer; empty if the model was built without a config."""
    return "" if model.config is None else model.config.to_record().get("quantizer", {}).get("type", "")
