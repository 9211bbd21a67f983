"""Laws of the figures of codes: over a whole split, level by level, and warned of when they collapse."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tessella
from making import make
from tessella.core.batches import size_of
from tessella.core.rng import Noise
from tessella.evaluation import bounds, codebook
from tessella.evaluation.bounds import evaluate
from tessella.evaluation.results import CodesEvaluation, Evaluation, LevelEvaluation
from tessella.models import presets
from tessella.models.codes import CodeModel

SMALL = {"width": 8, "depth": 1, "codebook_size": 16, "code_dim": 4}
LEVEL = LevelEvaluation(
    codes_per_example=16, codebook_size=512, code_usage=0.5, perplexity=200.0, rate_uniform=99.8, rate=99.8,
    distortion=60.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return tessella.open_data("digits", binarize="static")


def made(schema, kind: str = "VQVAE", **options: object) -> CodeModel:
    torch.manual_seed(0)
    model = make(getattr(presets, kind), schema, **{**SMALL, **options})
    for parameter in model.parameters():  # fresh decoders ignore z
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def test_the_perplexity_of_a_distribution_is_the_number_of_codes_it_is_as_if() -> None:
    assert codebook.perplexity(torch.tensor([[5, 5, 5, 5, 0, 0]])) == pytest.approx(4)
    assert codebook.perplexity(torch.tensor([[7, 0, 0]])) == pytest.approx(1)
    p = torch.tensor([0.5, 0.25, 0.125, 0.125])
    assert codebook.perplexity((p * 8).long()[None]) == pytest.approx(2 ** float(-(p * p.log2()).sum()))
    assert codebook.perplexity(torch.tensor([[4, 4, 0], [9, 0, 0]])) == pytest.approx(1.5)


@pytest.mark.parametrize("shape", [(50, 3), (50, 3, 4, 5)])
def test_codes_are_counted_slot_by_slot(shape: tuple[int, ...]) -> None:
    codes = (Noise(0).uniform(*shape) * 7).long()
    found = codebook.counts(codes, 11)
    assert found.shape == (3, 11)
    for slot in range(3):
        assert found[slot].tolist() == [int((codes[:, slot] == k).sum()) for k in range(11)]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("VQVAE", {}),
        ("VQVAE", {"codes_per_position": 2}),
        ("VQVAE", {"quantizer": "residual", "codes_per_position": 3}),
        ("VQVAE2", {}),
    ],
    ids=["one", "two a position", "residual", "two levels"],
)
def test_an_evaluation_says_what_the_codes_of_the_whole_split_are(digits, kind: str, options: dict) -> None:
    model = made(digits.schema, kind, **options)
    split = digits.split("test")
    e = evaluate(model, digits.split("test"), collapse_examples=0)
    whole = model.eval().encode(split.batch(range(len(split))).x)
    assert e.codes is not None
    assert len(e.codes.levels) == len(whole.codes)
    for level, codes in zip(e.codes.levels, whole.codes, strict=True):
        slots = codes.movedim(1, 0).flatten(1)
        assert level.codes_per_example == codes[0].numel()
        assert level.codebook_size == 16
        assert level.code_usage == pytest.approx(sum(len(s.unique()) / 16 for s in slots) / len(slots))
        assert level.perplexity == pytest.approx(codebook.perplexity(codebook.counts(codes, 16)))
        assert level.rate == pytest.approx(level.rate_uniform) == pytest.approx(codes[0].numel() * math.log(16))
    assert e.codes.codes_per_example == sum(c[0].numel() for c in whole.codes)
    assert e.rate == pytest.approx(e.codes.rate_uniform)
    assert e.codes.levels[-1].distortion == e.distortion
    assert not e.codes.learned
    assert e.active_units is None
    assert Evaluation.from_json(e.to_json()) == e


def test_the_coarse_level_alone_is_measured_with_the_finer_ones_blank(digits) -> None:
    model = made(digits.schema, "VQVAE2").eval()
    e = evaluate(model, digits.split("test"), limit=30, collapse_examples=0)
    order = digits.split("test").example_ids.argsort()[:30]
    x = digits.split("test").batch(order).x
    with torch.no_grad():
        alone = -model.decode(codebook.coarse_only(model, model.encode(x).z)).log_prob(x).mean()
    assert e.codes is not None
    assert e.codes.levels[0].distortion == pytest.approx(float(alone))
    assert e.codes.levels[0].distortion != e.distortion


def test_codes_are_encoded_once(digits, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(digits.schema, "VQVAE2")
    seen: list[int] = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda x, *a, **k: seen.append(len(x)) or encode(x, *a, **k))
    evaluate(model, digits.split("test"), collapse_examples=0)
    assert len(seen) == -(-len(digits.split("test")) // size_of(digits.schema.shape, model.device))


def test_a_codebook_that_collapses_to_one_code_is_warned_of_with_the_remedy(digits) -> None:
    model = made(digits.schema)
    with torch.no_grad():
        for parameter in model.levels[0].head.parameters():  # pyright: ignore[reportAttributeAccessIssue]
            parameter.zero_()
    e = evaluate(model, digits.split("test"))
    assert e.codes is not None
    assert e.codes.perplexity == 1
    assert e.codes.code_usage == 1 / 16
    told = e.notes[0]
    assert "has collapsed: 1 of its 16 codes" in told
    assert "quantizer fsq" in told
    assert "--quantizer ema" not in told  # that is what it has
    assert e.collapse is not None
    assert e.collapse.collapsed
    assert (e.collapse.active_units, e.collapse.mutual_information, e.collapse.shuffle_cost) == (0, 0, 0)
    assert e.notes[1] == e.collapse.advice


@pytest.mark.parametrize(
    ("perplexity", "examples", "warned"),
    [(200.0, 1000, False), (16.0, 1000, False), (15.0, 1000, True), (15.0, 10, False), (1.04, 1, True)],
)
def test_a_collapse_is_a_perplexity_of_few_percent_of_what_could_be(
    perplexity: float, examples: int, warned: bool
) -> None:
    levels = (replace(LEVEL, perplexity=perplexity), LEVEL)
    codes = CodesEvaluation(32, 512, 0.5, perplexity, 199.6, False, levels)
    told = codebook.warnings(codes, examples, "vq")
    assert len(told) == warned
    if told:
        assert told[0].startswith("the codebook of the coarsest level has collapsed")
        assert "quantizer ema" in told[0]


@pytest.mark.slow
def test_two_processes_together_have_the_figures_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
        import json, sys, torch, tessella
        import torch.distributed as dist
        from making import make
        from tessella.evaluation import bounds
        from tessella.models import presets
        out, rank, world = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        dist.init_process_group("gloo", init_method=f"file://{out}-{world}", rank=rank, world_size=world)
        bounds.size_of = lambda shape, device: 50
        torch.manual_seed(0)
        data = tessella.open_data("digits", binarize="static")
        model = make(presets.VQVAE, data.schema, width=8, depth=1, codebook_size=16, code_dim=4)
        with open(f"{out}-{rank}.json", "w") as file:
            json.dump(tessella.evaluate(model, data.split("test"), together=True).to_json(), file)
        dist.destroy_process_group()
        """
    path, out = tmp_path / "script.py", tmp_path / "out"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    started = [
        subprocess.Popen([sys.executable, str(path), str(out), str(rank), str(world)], env=environment)
        for rank, world in ((0, 2), (1, 2))
    ]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    two, same = (json.loads((tmp_path / f"out-{rank}.json").read_text()) for rank in (0, 1))
    monkeypatch.setattr(bounds, "size_of", lambda shape, device: 50)
    torch.manual_seed(0)
    data = tessella.open_data("digits", binarize="static")
    model = make(presets.VQVAE, data.schema, width=8, depth=1, codebook_size=16, code_dim=4)
    one = json.loads(json.dumps(tessella.evaluate(model, data.split("test")).to_json()))
    assert {**two, "seconds": 0} == {**same, "seconds": 0}
    for name in ("codes_per_example", "code_usage", "perplexity", "rate_uniform"):
        assert one["codes"][name] == pytest.approx(two["codes"][name], rel=1e-12)
    assert (one["examples"], one["notes"]) == (two["examples"], two["notes"])
    assert one["bound"] == pytest.approx(two["bound"], rel=1e-12)
