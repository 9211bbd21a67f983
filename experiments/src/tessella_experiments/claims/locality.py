"""moving a number of a global z changes the whole picture; changing some codes changes only their place.

Both kinds of edit take what another picture has there, so both are of a natural size. A change is the squared
difference of the two drawings. Codes are changed in a box of about a quarter of the picture, and what lies outside the
box is counted. A number of z has no place, so it is given the best one: of all boxes of that size the one that holds
most of the change, picture by picture.
"""

from __future__ import annotations

import math
import statistics
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tessella import Model, Noise
from tessella.plugin import CodeModel
from tessella_experiments.models import VAE, VQVAE
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, difference
from tessella_experiments.runner import ExperimentRunner

PICTURES, BOXES = 200, 12
MOVES = 0.01
"""Variance over the pictures above which a number of z is used."""
IN_PLACE = 0.75
"""Share of a change of codes that must stay in its box, which is a quarter of the picture."""


def run(runner: ExperimentRunner) -> Finding:
    x = runner.unseen(PICTURES).x
    of_codes, of_z, best_of_codes = [], [], []
    for seed in runner.seeds:
        order = torch.argsort(Noise(seed, stream="exchange").uniform(len(x)))
        other = torch.empty_like(order).scatter_(0, order, order.roll(1))
        outside, best = _codes_outside(cast(CodeModel, runner.model(VQVAE, seed)), x, other, seed)
        of_codes.append(outside)
        best_of_codes.append(best)
        of_z.append(_z_outside(runner.model(VAE, seed), x, other))
    return conclude(of_codes, of_z, best_of_codes)


def conclude(of_codes: list[float], of_z: list[float], best_of_codes: list[float]) -> Finding:
    """The result of shares of the change outside the region, one a seed.

    Args:
        best_of_codes: those of codes if they, too, were given the box that holds most of the change.
    """
    effects = [
        EffectTest.over(
            "share of the change that stays in the box of the changed codes",
            [1 - share for share in of_codes],
            least=IN_PLACE,
        ),
        EffectTest.over(
            "share outside: a number of z more than codes",
            difference(of_z, of_codes),
        ),
    ]
    measures = [
        Measure.over("outside the box, codes", [100 * s for s in of_codes], "%"),
        Measure.over("outside its best box, a number of z", [100 * s for s in of_z], "%"),
        Measure.over("outside their best box, codes", [100 * s for s in best_of_codes], "%"),
        Measure("outside a quarter, were the change the same everywhere", 75.0, None, "%"),
    ]
    labels = ("codes (VQ-VAE)", "a number of z (VAE)", "everywhere alike")
    shown = dict(zip(labels, (measures[0], measures[1], measures[3]), strict=True))
    plot = bars("share of the change outside the edited quarter", shown, "%")
    z = measures[1].value
    of_number = (
        f"of the change that one number of z makes, {z:.0f} % falls outside the box of that size which suits it best"
    )
    if math.isnan(z):
        of_number = "no number of z is used by the VAE, so none can be moved"
    sentence = f"of the change that new codes make, {measures[0].value:.0f} % falls outside their box; {of_number}"
    return Finding.of(sentence, effects, measures, [plot])


@torch.inference_mode()
def _codes_outside(model: CodeModel, x: Tensor, other: Tensor, seed: int) -> tuple[float, float]:
    """Share of the change outside the boxes in which codes are another picture's, and outside the best boxes."""
    codes = model.encode(x).codes
    before, cell = model.decode(model.lookup(codes)).mean, model.downsampling[-1]
    height, width = x.shape[2:]
    shares, best = [], []
    noise = Noise(seed, stream="claim 10")
    for at in noise.uniform(BOXES, 2):
        tall, wide = max(cell, height // 2), max(cell, width // 2)
        top, left = int(at[0] * (height - tall + 1)), int(at[1] * (width - wide + 1))
        region = torch.zeros(height, width, dtype=torch.bool)
        region[top : top + tall, left : left + wide] = True
        covered = F.avg_pool2d(region[None].float(), cell, ceil_mode=True)[0]
        chosen = covered >= min(0.5, float(covered.max()))
        after = model.decode(model.lookup([torch.where(chosen, c[other], c) for c in codes])).mean
        change = (after - before).double().square().sum(1)
        mask = chosen.repeat_interleave(cell, 0).repeat_interleave(cell, 1)[:height, :width]
        inside = change[:, mask].sum()
        shares.append(1 - float(inside / change.sum()))
        best.append(1 - float(in_best_box(change, tall, wide).sum() / change.sum()))
    kept = [s for s in shares if s == s]  # a box that is empty in all pictures has no change, so no share
    return statistics.fmean(kept or [float("nan")]), statistics.fmean([b for b in best if b == b] or [float("nan")])


@torch.inference_mode()
def _z_outside(model: Model, x: Tensor, other: Tensor) -> float:
    """Share of the change that a number of z makes outside its best box, the mean over the numbers that are used."""
    z, (height, width) = model.encode(x).z, x.shape[2:]
    before = model.decode(z).mean
    shares = []
    for unit in (z.flatten(1).var(0) > MOVES).nonzero().flatten().tolist():
        moved = z.clone()
        moved.flatten(1)[:, unit] = z.flatten(1)[other, unit]
        change = (model.decode(moved).mean - before).double().square().sum(1)
        if total := float(change.sum()):
            shares.append(1 - float(in_best_box(change, height // 2, width // 2).sum()) / total)
    return statistics.fmean(shares or [float("nan")])


def in_best_box(change: Tensor, tall: int, wide: int) -> Tensor:
    """What the box of that size that holds most of `[B, H, W]` holds, `[B]`."""
    return F.avg_pool2d(change[:, None], (tall, wide), stride=1).flatten(1).amax(1) * tall * wide


CLAIM = Claim(
    number=10,
    title="Codes can be edited in one place, a global z cannot",
    hypothesis=(
        f"Of the change that new codes in a quarter of the picture make, at least {100 * IN_PLACE:.0f} % stays in that "
        "quarter; and a smaller share of it falls outside than of the change that one number of a VAE's z makes falls "
        "outside the best box of that size."
    ),
    method=(
        f"{PICTURES} unseen pictures; codes, or one number of z, replaced by another picture's; squared differences of "
        f"the drawings, {BOXES} boxes, every number of z that is used"
    ),
    run=run,
    needs=(VAE, VQVAE),
    skip_reason=lambda runner: None if runner.schema.rank == 2 else "vectors have no places to edit",
)
