"""Measures how a model uses its codes over a whole split, level by level.

Numbers from single batches mislead: a batch of N codes cannot use more than N distinct codes, nor have a higher
perplexity. So counts are added over all batches and processes, and the metrics are computed once at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tessella.core.device import precise
from tessella.core.outputs import Latent, Rate
from tessella.evaluation.results import CodesEvaluation, LevelEvaluation
from tessella.models.base import Model

POOR = 0.03
"""A codebook has collapsed if its perplexity is below this share of its size (or of the codes counted, if fewer)."""
ALONE = 1.05
"""A codebook has also collapsed if its perplexity is below this value: a single code is used."""
REMEDIES = {
    "ema": "the quantizer ema, which revives dead codes",
    "fsq": "the quantizer fsq, which has no codebook to lose",
}


def tally(
    model: Model, latent: Latent, rate: Rate | None, x: Tensor, label: Tensor | None, distortion: Tensor, count: int
) -> dict[str, Tensor]:
    """Compute the sums of a batch from which `figures` computes the metrics.

    Args:
        latent, rate: outputs of `model.encode` and `model.rate`.
        distortion: `[B]`, -log p(x | z) with all levels.
        count: number of examples that count, from the first on; the rest are padding.
    """
    sums: dict[str, Tensor] = {}
    assert rate is not None and rate.per_unit is not None  # noqa: PT018
    rates = rate.per_unit.split([c[0].numel() for c in latent.codes], 1)
    for level, (codes, quantizer) in enumerate(zip(latent.codes, model.levels, strict=True)):
        last = level == len(latent.codes) - 1
        if not last:
            coarse = coarse_only(model, latent.z, level + 1)
            sums[f"distortion {level}"] = -precise(model.decode(coarse, label).log_prob(x)[:count]).sum()
        else:
            sums[f"distortion {level}"] = precise(distortion[:count]).sum()
        sums[f"rate {level}"] = precise(rates[level][:count]).sum()
        sums[f"counts {level}"] = counts(codes[:count], quantizer.codebook_size)
    return sums


def coarse_only(model: Model, z: Tensor, levels: int = 1) -> Tensor:
    """Set the channels of z beyond the coarsest `levels` levels to zero."""
    kept = sum(q.latent_shape[0] for q in model.levels[:levels])
    return torch.cat([z[:, :kept], torch.zeros_like(z[:, kept:])], 1)


def counts(codes: Tensor, size: int) -> Tensor:
    """Count how often each code occurs in each slot: codes `[B, C, *spatial]` to `[C, size]` int64; -1 is no code."""
    slots = codes.shape[1]
    offset = (size + 1) * torch.arange(slots, device=codes.device).view(-1, *[1] * (codes.dim() - 2))
    counted = torch.bincount((codes + 1 + offset).flatten(), minlength=slots * (size + 1))
    return counted.view(slots, size + 1)[:, 1:]


def perplexity(counted: Tensor) -> float:
    """Compute the perplexity of counts `[C, K]`, averaged over the slots that are used.

    exp(-sum_k p_k log p_k) ranges from 1 (a single code) to K (all codes equally often).
    """
    p = counted[counted.sum(1) > 0].double()
    p = p / p.sum(1, keepdim=True)
    return float(torch.special.entr(p).sum(1).exp().mean())


def figures(model: Model, sums: Mapping[str, Tensor], examples: int) -> CodesEvaluation:
    """Compute the code metrics from the sums over `examples` examples."""
    levels = []
    for level, quantizer in enumerate(model.levels):
        counted = sums[f"counts {level}"]
        codes = round(int(counted.sum()) / examples)
        levels.append(
            LevelEvaluation(
                codes_per_example=codes,
                codebook_size=quantizer.codebook_size,
                code_usage=float((counted > 0).double().mean()),
                perplexity=perplexity(counted),
                rate_uniform=int(counted.sum()) / examples * math.log(quantizer.codebook_size),
                rate=float(sums[f"rate {level}"]) / examples,
                distortion=float(sums[f"distortion {level}"]) / examples,
            )
        )
    return CodesEvaluation(
        codes_per_example=sum(of.codes_per_example for of in levels),
        codebook_size=max(of.codebook_size for of in levels),
        code_usage=min(of.code_usage for of in levels),
        perplexity=min(of.perplexity for of in levels),
        rate_uniform=sum(of.rate_uniform for of in levels),
        learned=model.fitted,
        levels=tuple(levels),
    )


def warnings(codes: CodesEvaluation, examples: int, given: str) -> tuple[str, ...]:
    """Describe each level whose codebook has collapsed, and suggest remedies.

    Args:
        given: name of the quantizer in use, which is not suggested again.
    """
    remedies = [words for name, words in REMEDIES.items() if name != given]
    advice = f"Try {', '.join(remedies)}, or a smaller codebook size."
    found = []
    for level, of in enumerate(codes.levels):
        if of.perplexity < max(ALONE, POOR * min(of.codebook_size, examples * of.codes_per_example)):
            named = level_name(level, len(codes.levels))
            where = f" of {named}" if named else ""
            found.append(
                f"the codebook{where} has collapsed: {of.codebook_size * of.code_usage:.0f} of its "
                f"{of.codebook_size} codes occur, with a perplexity of {of.perplexity:.1f}. {advice}"
            )
    return tuple(found)


def level_name(level: int, levels: int) -> str:
    """Return the name of a level for users; empty if it is the only one."""
    if levels == 1:
        return ""
    return "the coarsest level" if level == 0 else "the finest level" if level == levels - 1 else f"level {level}"
