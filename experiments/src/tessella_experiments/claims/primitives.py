"""a code stands for a visual primitive, not an object.

A primitive: the patches of data under one code are alike, so the code explains much of what a patch looks like (share
of the variance of patches that lies between codes, R^2). Not an object: one code tells little of the class, and all
codes of an example together tell it. Each position's probe is the class that is commonest with its code, all codes
together are given to a linear (ridge) classifier; both are fitted on training examples and judged on unseen ones.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tessella import Batch, Schema, image_grid
from tessella.plugin import CodeModel, Rows
from tessella_experiments.models import VQVAE
from tessella_experiments.records import Claim, EffectTest, Finding, Measure, bars, difference
from tessella_experiments.runner import AT_ONCE, ExperimentRunner

TRAIN, UNSEEN = 4000, 1000
EXPLAINED = 0.3
"""Share of the variance of patches that codes are predicted to explain at the least."""
ROWS, ACROSS = 8, 24


@torch.inference_mode()
def run(runner: ExperimentRunner) -> Finding:
    train, unseen = runner.examples(TRAIN), runner.unseen(UNSEEN)
    explained, chance = [], []
    scores: dict[str, list[float]] = {"one code": [], "best single position": [], "all codes": []}
    atlas: list[Rows] = []
    for seed in runner.seeds:
        model = cast(CodeModel, runner.model(VQVAE, seed))
        codes, others = _codes(model, train.x), _codes(model, unseen.x)
        patches = _patches(unseen.x, model)
        explained.append(_explained(patches, others))
        chance.append(_explained(patches, _shuffled(others, seed)))
        for name, score in _probes(codes, train, others, unseen, runner.classes, model).items():
            scores[name].append(score)
        if not atlas:
            atlas.append(_atlas(_patches(train.x, model), codes, model, runner.schema))
    classes = torch.bincount(unseen.label if unseen.label is not None else torch.zeros(1, dtype=torch.int64))
    guess = 100 * float(classes.max()) / float(classes.sum())
    effects = [
        EffectTest.over("share of the variance of patches that their code explains", explained, least=EXPLAINED),
        EffectTest.over(
            "class told by all codes less class told by the best single position",
            difference(scores["all codes"], scores["best single position"]),
            unit="points of accuracy",
        ),
    ]
    measures = [
        Measure.over("variance of patches explained by their code", [100 * e for e in explained], "%"),
        Measure.over("variance explained by codes shuffled between patches", [100 * c for c in chance], "%"),
        *(Measure.over(f"class told by {name}", values, "% right") for name, values in scores.items()),
    ]
    told = measures[2:5]
    guessed = Measure("class told by the commonest class", guess, None, "% right")
    labels = ("commonest class", "one code", "best position", "all codes")
    chart = bars("class told by codes", dict(zip(labels, (guessed, *told), strict=True)), "% right")
    sentence = (
        f"a code explains {measures[0].value:.0f} % of what its patch looks like; one code tells the class in "
        f"{told[0].value:.0f} % of unseen examples (at the best position {told[1].value:.0f} %), all codes together in "
        f"{told[2].value:.0f} %, where the commonest class is {guess:.0f} %"
    )
    return Finding.of(sentence, effects, [*measures, guessed], [chart, *atlas])


def _codes(model: CodeModel, x: Tensor) -> Tensor:
    """`[N, C, h, w]`."""
    return torch.cat([model.encode(part.to(model.device)).codes[0].cpu() for part in x.split(AT_ONCE)])


def _patches(x: Tensor, model: CodeModel) -> Tensor:
    """The cell of each position `[N, h, w, C * side * side]`, without what the position itself shows on average."""
    height, width = model.code_shapes[0][1:]
    tall, wide = -(-x.shape[2] // height), -(-x.shape[3] // width)
    padded = F.pad(x.float(), (0, wide * width - x.shape[3], 0, tall * height - x.shape[2]), mode="replicate")
    cells = padded.unfold(2, tall, tall).unfold(3, wide, wide)
    return cells.permute(0, 2, 3, 1, 4, 5).flatten(3)


def _explained(patches: Tensor, codes: Tensor) -> float:
    """R^2: the share of the patches' variance that lies between codes, less what chance gives it (adjusted)."""
    rows, code = patches.flatten(0, 2).double(), codes[:, 0].flatten()
    kinds, at, counts = code.unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(kinds), rows.shape[1], dtype=torch.float64).index_add_(0, at, rows)
    within = (rows - (sums / counts[:, None])[at]).square().sum()
    total = (rows - rows.mean(0)).square().sum()
    return 1 - float(within / (len(rows) - len(kinds))) / float(total / (len(rows) - 1))


def _shuffled(codes: Tensor, seed: int) -> Tensor:
    flat = codes.flatten()
    return flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))].view_as(codes)


def _probes(
    codes: Tensor, train: Batch, others: Tensor, unseen: Batch, classes: int, model: CodeModel
) -> dict[str, float]:
    """Accuracies in percent on unseen examples."""
    from sklearn.linear_model import RidgeClassifier

    assert train.label is not None
    assert unseen.label is not None
    size, flat, held = model.levels[0].codebook_size, codes.flatten(1), others.flatten(1)
    each = []
    for position in range(flat.shape[1]):
        table = torch.zeros(size * classes, dtype=torch.int64)
        joint = flat[:, position] * classes + train.label
        table.index_add_(0, joint, torch.ones_like(joint))
        said = table.view(size, classes).argmax(1)
        each.append(float((said[held[:, position]] == unseen.label).double().mean()))
    kept = [(torch.arange(size) == part[..., None]).flatten(1).float().numpy() for part in (flat, held)]
    linear = RidgeClassifier(alpha=10.0).fit(kept[0], train.label.numpy())
    right = float(np.mean(linear.predict(kept[1]) == unseen.label.numpy()))
    return {
        "one code": 100 * sum(each) / len(each),
        "best single position": 100 * max(each),
        "all codes": 100 * right,
    }


def _atlas(patches: Tensor, codes: Tensor, model: CodeModel, schema: Schema) -> Rows:
    """The commonest codes, each with patches that it stands for."""
    height, width = model.code_shapes[0][1:]
    shape = (schema.shape[0], -(-schema.shape[1] // height), -(-schema.shape[2] // width))
    rows, code = patches.flatten(0, 2), codes[:, 0].flatten()
    counts = torch.bincount(code)
    order = torch.randperm(len(code), generator=torch.Generator().manual_seed(0))
    found = []
    for kind in counts.argsort(descending=True)[:ROWS].tolist():
        chosen = order[code[order] == kind][:ACROSS]
        of = rows[chosen].view(-1, *shape)
        small = Schema.of(shape, schema.values, schema.center, schema.scale)
        scale = max(1, 24 // max(shape[1:]))
        share = f"code {kind} ({100 * int(counts[kind]) / len(code):.0f} %)"
        found.append((share, image_grid(of, small, ACROSS, scale=scale)))
    return Rows(found, "The commonest codes, each with patches of training data that it stands for.")


def _skip_reason(runner: ExperimentRunner) -> str | None:
    if runner.schema.rank != 2:
        return "vectors have no patches"
    return None if runner.classes > 1 else "there are no classes to tell: the data has no labels"


CLAIM = Claim(
    number=9,
    title="A code stands for a visual primitive, not an object",
    hypothesis=(
        f"A code explains more than {EXPLAINED * 100:g} % of the variance of its patches, and all codes together tell "
        "the class of unseen examples better than the best single position does."
    ),
    method=(
        "the cells under each code of a VQ-VAE; the commonest class of each position's code; a linear classifier on "
        "all codes; a codebook atlas"
    ),
    run=run,
    needs=(VQVAE,),
    skip_reason=_skip_reason,
)
